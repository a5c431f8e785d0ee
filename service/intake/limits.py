"""How much one upload may hold: a setting, or the room on the disk less a reserve."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path

from service.config import Settings
from service.errors import InsufficientStorage, PayloadTooLarge, SecateurError

MAX_ENTRIES = 10_000
MAX_RATIO = 100
RATIO_FREE_BYTES = 10_000_000
"""Unpacked bytes before the ratio counts: small texts compress well."""


@dataclass(frozen=True)
class Limits:
    """Bounds of one upload, packed and unpacked alike."""

    what: str
    """`model` or `dataset`."""
    total: int
    disk: Path
    reserve: int
    by_disk: bool = False
    refused_with: SecateurError | None = None

    def narrowed(self, total: int, error: SecateurError) -> "Limits":
        """The same with a lower total; one byte more is refused with `error`."""
        return replace(self, total=total, by_disk=False, refused_with=error)

    def refusal(self) -> SecateurError:
        """The error for one byte too many."""
        if self.refused_with is not None:
            return self.refused_with
        if self.by_disk:
            return no_space()
        code = f"{self.what.upper()}_TOO_LARGE"
        return PayloadTooLarge(f"A {self.what} holds at most {self.total} bytes here.", code=code)

    def check_disk(self) -> None:
        """Raises `InsufficientStorage` when the reserve is touched, as other uploads fill the disk too."""
        if shutil.disk_usage(self.disk).free < self.reserve:
            raise no_space()


def limits_of(settings: Settings, what: str) -> Limits:
    """The bounds at this moment."""
    settings.scratch.mkdir(parents=True, exist_ok=True)
    room = max(0, shutil.disk_usage(settings.scratch).free - settings.disk_reserve_bytes)
    by_disk = settings.max_upload_bytes is None or room < settings.max_upload_bytes
    total = room if by_disk or settings.max_upload_bytes is None else settings.max_upload_bytes
    return Limits(what, total, settings.scratch, settings.disk_reserve_bytes, by_disk)


def no_space() -> InsufficientStorage:
    """The disk cannot take this upload."""
    return InsufficientStorage("There is not enough room on the service's disk; nothing was kept.")
