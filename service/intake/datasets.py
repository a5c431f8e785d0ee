"""A data set from its form or archive to storage: one checked JSONL file per split."""

from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from service.errors import Invalid
from service.ids import new_id
from service.intake.archive import unpack
from service.intake.fields import unknown_part
from service.intake.limits import Limits
from service.intake.multipart import Multipart
from service.intake.rows import SPLITS, Labels, read_rows
from service.intake.sources import Source
from service.intake.unpacking import Policy, Stored
from service.storage import Storage, all_or_nothing
from service.tables import Dataset

_SUFFIXES = frozenset({".jsonl", ".json", ".csv"})


@dataclass(frozen=True)
class Rows:
    """The splits of a data set: rows and file of each, and what their labels are."""

    splits: dict[str, tuple[int, Path, Stored]]
    labels: Labels


def read_form(form: Multipart, folder: Path, limits: Limits) -> tuple[Rows, dict[str, str]]:
    """Splits from the parts of a form, and its text fields `name` and `task`. Raises `SecateurError`."""
    rows = Rows({}, Labels())
    given: dict[str, str] = {}
    for part in form:
        if part.name in SPLITS:
            _read(rows, part.name, part, folder, limits)
        elif part.name in ("name", "task"):
            given[part.name] = part.text()
        else:
            raise unknown_part(", ".join((*SPLITS, "name", "task")))
    return _complete(rows), given


def read_archive(source: Source, folder: Path, limits: Limits) -> Rows:
    """Splits from the files of an archive that are named after them. Raises `SecateurError`."""
    unpacked = unpack(source, folder, limits, _POLICY)
    rows = Rows({}, Labels())
    for name in sorted(unpacked.files, key=lambda name: SPLITS.index(_split_of(name) or "")):
        split = _split_of(name) or ""
        if split in rows.splits:
            raise Invalid(f"The archive has the split {split} twice.", code="SPLIT_REPEATED")
        with (unpacked.folder / name).open("rb") as file:
            _read(rows, split, file, folder, limits)
    return _complete(rows)


def _split_of(name: str) -> str | None:
    path = PurePosixPath(name)
    return path.stem if path.stem in SPLITS and path.suffix in _SUFFIXES and len(path.parts) <= 2 else None


_POLICY = Policy(lambda name, _: _split_of(name) is not None)


def _read(rows: Rows, split: str, source: Source, folder: Path, limits: Limits) -> None:
    target = folder / f"{split}.jsonl"
    count, stored = read_rows(source, split, target, rows.labels, limits)
    rows.splits[split] = (count, target, stored)


def _complete(rows: Rows) -> Rows:
    if not rows.splits:
        raise Invalid(f"Send at least one of the splits {', '.join(SPLITS)}.", code="SPLIT_MISSING")
    return rows


def publish(storage: Storage, rows: Rows, *, tenant: str, name: str, task: str) -> Dataset:
    """Move the files to storage; returns the row, not yet stored. On any error nothing is kept."""
    dataset_id = new_id("ds")
    prefix = f"datasets/{dataset_id}"
    with all_or_nothing(storage, prefix):
        for split, (_, path, _) in rows.splits.items():
            storage.put(f"{prefix}/{split}.jsonl", path)
    return Dataset(
        id=dataset_id,
        tenant=tenant,
        name=name,
        task=task,
        splits={
            split: {"rows": rows.splits[split][0], "size": stored.size, "sha256": stored.sha256}
            for split in SPLITS
            if split in rows.splits
            for stored in (rows.splits[split][2],)
        },
        labels=rows.labels.summary(),
        prefix=prefix,
    )
