"""A data set from its form or archive to storage: one checked JSONL file per split."""

from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from service.errors import Invalid, invalid
from service.ids import new_id
from service.intake.archive import unpack
from service.intake.fields import unknown_part
from service.intake.limits import Limits
from service.intake.multipart import Multipart
from service.intake.rows import SPLITS, Kind, kind_of, read_rows
from service.intake.sources import Source, pieces
from service.intake.unpacking import Policy, Stored
from service.storage import Storage, all_or_nothing
from service.tables import Dataset

_SUFFIXES = frozenset({".jsonl", ".json", ".csv"})


@dataclass(frozen=True)
class Rows:
    """The splits of a data set of one task: rows and file of each, and what they agree on."""

    task: str
    kind: Kind
    splits: dict[str, tuple[int, Path, Stored]] = field(default_factory=dict)


def read_form(form: Multipart, folder: Path, limits: Limits, task: str | None) -> tuple[Rows, dict[str, str]]:
    """Splits from the parts of a form, and its text fields `name` and `task`. Raises `SecateurError`.

    Without `task`, splits that come before that part wait on the disk until it is known what their rows are.
    """
    given = {} if task is None else {"task": task}
    rows: Rows | None = None
    waiting: dict[str, Path] = {}
    for part in form:
        if part.name in SPLITS and "task" in given:
            rows = rows or _rows_of(given["task"])
            _read(rows, part.name, part, folder, limits)
        elif part.name in SPLITS:
            waiting[part.name] = _kept(part, folder / f"{part.name}.given", limits)
        elif part.name in ("name", "task"):
            _note(given, part.name, part.text())
        else:
            raise unknown_part(", ".join((*SPLITS, "name", "task")))
    rows = rows or _rows_of(given.get("task"))
    for split, path in waiting.items():
        with path.open("rb") as file:
            _read(rows, split, file, folder, limits)
    return _complete(rows), given


def _rows_of(task: str | None) -> Rows:
    return Rows(task or "", kind_of(task))


def _note(given: dict[str, str], field_name: str, value: str) -> None:
    if field_name == "task" and given.get("task", value) != value:
        raise invalid("/task", "task is given twice, and not alike", "TASK_REPEATED")
    given[field_name] = value


def _kept(source: Source, path: Path, limits: Limits) -> Path:
    """A part as it came, in a file."""
    size = 0
    with path.open("xb") as file:
        for piece in pieces(source):
            size += len(piece)
            if size > limits.total:
                raise limits.refusal()
            file.write(piece)
    return path


def read_archive(source: Source, folder: Path, limits: Limits, task: str | None) -> Rows:
    """Splits from the files of an archive that are named after them. Raises `SecateurError`."""
    rows = _rows_of(task)
    unpacked = unpack(source, folder, limits, _POLICY)
    for name in sorted(unpacked.files, key=lambda name: SPLITS.index(_split_of(name) or "")):
        with (unpacked.folder / name).open("rb") as file:
            _read(rows, _split_of(name) or "", file, folder, limits)
    return _complete(rows)


def _split_of(name: str) -> str | None:
    path = PurePosixPath(name)
    return path.stem if path.stem in SPLITS and path.suffix in _SUFFIXES and len(path.parts) <= 2 else None


_POLICY = Policy(lambda name, _: _split_of(name) is not None)


def _read(rows: Rows, split: str, source: Source, folder: Path, limits: Limits) -> None:
    if split in rows.splits:
        raise Invalid(f"The archive has the split {split} twice.", code="SPLIT_REPEATED")
    target = folder / f"own.{split}.jsonl"
    count, stored = read_rows(source, split, target, rows.kind, limits)
    rows.splits[split] = (count, target, stored)


def _complete(rows: Rows) -> Rows:
    if not rows.splits:
        raise Invalid(f"Send at least one of the splits {', '.join(SPLITS)}.", code="SPLIT_MISSING")
    return rows


def publish(storage: Storage, rows: Rows, *, tenant: str, name: str) -> Dataset:
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
        task=rows.task,
        splits={
            split: {"rows": rows.splits[split][0], "size": stored.size, "sha256": stored.sha256}
            for split in SPLITS
            if split in rows.splits
            for stored in (rows.splits[split][2],)
        },
        labels=rows.kind.summary(),
        prefix=prefix,
    )
