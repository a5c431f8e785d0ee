"""Files of the client: bodies built while they are sent, downloads that can go on, archives unpacked with checks."""

import base64
import hashlib
import json
import os
import tempfile
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import BinaryIO, TypeAlias

from service.errors import SecateurError
from service.intake.content import is_kept
from service.intake.limits import Limits
from service.intake.sources import Metered
from service.intake.tarball import read_tar
from service.intake.unpacking import Policy, Unpacked
from service.storage.tar import TarLayout

Progress: TypeAlias = Callable[[int, int], None]
"""Called with the bytes moved so far and the bytes in all."""

Check: TypeAlias = Callable[[Path, list[str]], None]
"""Called with a folder and the names of the files that were unpacked there; raises `CorruptDownload` to refuse them."""

SPLITS = ("train", "validation", "test", "calibration")
_SUFFIXES = (".jsonl", ".csv")
_PIECE = 256 * 1024


class UnusableFolder(Exception):
    """A local folder that holds nothing to send; the message says what was looked for."""


class CorruptDownload(Exception):
    """What arrived is not what the service announced, or an archive that no honest service sends."""


@dataclass(frozen=True)
class Body:
    """Bytes to send: how many, of which type, and how to produce them, as often as a repeated request needs them."""

    size: int
    media_type: str
    pieces: Callable[[], Iterator[bytes]]
    headers: Mapping[str, str] = field(default_factory=dict)


def model_files(folder: Path) -> dict[str, Path]:
    """The files of a folder that the service keeps, by name. Raises `UnusableFolder` when there is no config.json."""
    if not (folder / "config.json").is_file():
        raise UnusableFolder(f"{folder} is no Hugging Face model directory: it has no config.json.")
    found = {path.relative_to(folder).as_posix(): path for path in sorted(folder.rglob("*")) if path.is_file()}
    return {name: path for name, path in found.items() if is_kept(name)}


def archive_body(paths: Mapping[str, Path], progress: Progress | None = None) -> Body:
    """Files as a tar, never stored, with its digest in the headers."""
    layout = TarLayout([(name, path.stat().st_size) for name, path in paths.items()])

    def opener(name: str) -> BinaryIO:
        return paths[name].open("rb")

    digest = base64.b64encode(bytes.fromhex(layout.sha256(opener))).decode()
    return Body(
        layout.size,
        "application/x-tar",
        lambda: _counted(layout.read(0, layout.size, opener), layout.size, progress),
        {"Repr-Digest": f"sha-256=:{digest}:"},
    )


def chunk_body(path: Path, start: int, size: int) -> Body:
    """A piece of a file, held in memory, with its digest in the headers as the tus protocol has it.

    Raises `UnusableFolder` when the file has become shorter.
    """
    with path.open("rb") as file:
        file.seek(start)
        data = file.read(size)
    if len(data) != size:
        raise UnusableFolder(f"{path} was changed while it was sent; push it again.")
    digest = base64.b64encode(hashlib.sha256(data).digest()).decode()
    headers = {"Tus-Resumable": "1.0.0", "Upload-Offset": str(start), "Upload-Checksum": f"sha256 {digest}"}
    return Body(size, "application/offset+octet-stream", lambda: _slices(data), headers)


def _slices(data: bytes) -> Iterator[bytes]:
    for start in range(0, len(data), _PIECE):
        yield data[start : start + _PIECE]


def split_files(folder: Path) -> dict[str, Path]:
    """The files of a data set's folder by split. Raises `UnusableFolder` when there is none, or two for one split."""
    found: dict[str, Path] = {}
    for split in SPLITS:
        candidates = [folder / f"{split}{suffix}" for suffix in _SUFFIXES if (folder / f"{split}{suffix}").is_file()]
        if len(candidates) > 1:
            raise UnusableFolder(f"{folder} holds both {candidates[0].name} and {candidates[1].name}; keep one.")
        if candidates:
            found[split] = candidates[0]
    if not found:
        raise UnusableFolder(
            f"{folder} holds no train.jsonl, validation.jsonl, test.jsonl or calibration.jsonl (or .csv)."
        )
    return found


def multipart_body(files: Mapping[str, Path], progress: Progress | None = None) -> Body:
    """Files as multipart/form-data, one part per name; every production gives the same bytes."""
    boundary = uuid.uuid4().hex
    heads = {
        name: (
            f'--{boundary}\r\nContent-Disposition: form-data; name="{name}"; filename="{path.name}"\r\n'
            "Content-Type: application/octet-stream\r\n\r\n"
        ).encode()
        for name, path in files.items()
    }
    tail = f"--{boundary}--\r\n".encode()
    size = sum(len(heads[name]) + path.stat().st_size + 2 for name, path in files.items()) + len(tail)

    def pieces() -> Iterator[bytes]:
        for name, path in files.items():
            yield heads[name]
            with path.open("rb") as file:
                while piece := file.read(_PIECE):
                    yield piece
            yield b"\r\n"
        yield tail

    return Body(size, f"multipart/form-data; boundary={boundary}", lambda: _counted(pieces(), size, progress))


def _counted(pieces: Iterator[bytes], size: int, progress: Progress | None) -> Iterator[bytes]:
    done = 0
    for piece in pieces:
        yield piece
        done += len(piece)
        if progress is not None:
            progress(done, size)


class PartialFile:
    """A download on its way to `target`: bytes gather in a hidden file named after their digest.

    A later process that downloads the same bytes to the same place goes on where this one stopped.
    """

    def __init__(self, target: Path, sha256: str, size: int, progress: Progress | None = None) -> None:
        self.target = target
        self.sha256 = sha256
        self.size = size
        self._progress = progress
        self._path = target.parent / f".{target.name}.{sha256[:16]}.part"
        self._digest = hashlib.sha256()
        self.offset = 0
        if self._path.exists() and self._path.stat().st_size <= size:
            with self._path.open("rb") as file:
                while piece := file.read(_PIECE):
                    self._count(piece)
        else:
            self._path.write_bytes(b"")

    @property
    def complete(self) -> bool:
        """Whether as many bytes as were announced are here."""
        return self.offset >= self.size

    def accept(self, status: int, headers: Mapping[str, str]) -> Callable[[bytes], None]:
        """Take an answer: 206 goes on where the file ends, 200 begins anew."""
        if status != 206:
            self._restart()
        elif not headers.get("content-range", "").startswith(f"bytes {self.offset}-"):
            raise CorruptDownload("The service sent another range than the one asked for.")
        return self._write

    def finish(self) -> Path:
        """Verify the bytes and move them to `target`. Raises `CorruptDownload` and forgets them otherwise."""
        if self._digest.hexdigest() != self.sha256:
            self._path.unlink()
            raise CorruptDownload(f"The download of {self.target.name} does not have the digest that was announced.")
        with self._path.open("rb") as file:
            os.fsync(file.fileno())
        return self._path.replace(self.target)

    def _restart(self) -> None:
        self._path.write_bytes(b"")
        self._digest = hashlib.sha256()
        self.offset = 0

    def _write(self, piece: bytes) -> None:
        with self._path.open("ab") as file:
            file.write(piece)
        self._count(piece)

    def _count(self, piece: bytes) -> None:
        self._digest.update(piece)
        self.offset += len(piece)
        if self._progress is not None:
            self._progress(self.offset, self.size)


def unpack(archive: Path, out: Path, check: Check | None = None) -> list[Path]:
    """Write the files of a tar under `out`, replacing those of the same name; returns them.

    Read as the service reads uploads: links, devices and names that climb raise `CorruptDownload`, and nothing is left.
    Nothing appears under `out` before `check` has accepted the files.
    """
    with tempfile.TemporaryDirectory(prefix=".unpacked-", dir=out) as folder, archive.open("rb") as file:
        size = archive.stat().st_size
        unpacked = Unpacked(
            Path(folder), Limits("archive", size, out, 0), Policy(lambda name, head: True), lambda: size
        )
        try:
            read_tar(Metered(file), unpacked)
        except SecateurError as error:
            raise CorruptDownload(f"The archive is not one that the service sends: {error}") from error
        if check is not None:
            check(Path(folder), list(unpacked.files))
        return [_move(Path(folder) / name, name, out) for name in unpacked.files]


def check_files(folder: Path, names: Iterable[str], listed: Mapping[str, str]) -> None:
    """Compare files with the digests that were promised, name by name. Raises `CorruptDownload` with what differs."""
    found = {name: _sha256(folder / name) for name in names}
    lacking, unknown = sorted(listed.keys() - found.keys()), sorted(found.keys() - listed.keys())
    changed = sorted(name for name in found.keys() & listed.keys() if found[name] != listed[name])
    faults = [("not as promised", changed), ("missing", lacking), ("not promised", unknown)]
    told = [f"{', '.join(files[:5])} {fault}" for fault, files in faults if files]
    if told:
        raise CorruptDownload(f"The files are not those of the manifest: {'; '.join(told)}. Nothing was kept.")


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _move(file: Path, name: str, out: Path) -> Path:
    target = out / name
    target.parent.mkdir(parents=True, exist_ok=True)
    if not target.parent.resolve().is_relative_to(out.resolve()):
        raise CorruptDownload(f"A link in {out} would lead {name} elsewhere; remove it first.")
    file.chmod(0o644)
    return file.replace(target)


def read_spec(path: Path) -> dict[str, object]:
    """A job spec from a JSON file. Raises `UnusableFolder` when it is not a JSON object."""
    try:
        spec = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UnusableFolder(f"{path} is no readable JSON file: {error}") from error
    if not isinstance(spec, dict):
        raise UnusableFolder(f"{path} must hold one JSON object.")
    return spec
