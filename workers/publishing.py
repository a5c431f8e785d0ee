"""What an engine made becomes artifacts and a model: bytes into storage first, then rows."""

import errno
import hashlib
import os
import stat
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, BinaryIO, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from service.downloads import ARCHIVED_MANIFEST, MANIFEST, NETWORK_DIRECTORIES, job_archive
from service.ids import new_id
from service.intake import strict_json
from service.jobs import Claim
from service.schemas import EngineFacts, Measurement, VerdictLine
from service.specs.findings import Findings
from service.storage import Storage
from service.storage.tar import TarLayout
from service.tables import Artifact, Model
from workers.lease import JobFailed
from workers.provenance import manifest_of
from workers.staging import Order

MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".json": "application/json",
    ".md": "text/markdown; charset=utf-8",
    ".py": "text/x-python; charset=utf-8",
    ".txt": "text/plain; charset=utf-8",
}
MAX_RESULT_BYTES = 16 << 20
MAX_FILES = 10_000
_LONGEST_PATH = 400
_PIECE = 1 << 20


def _shown_as(view: type[BaseModel]) -> AfterValidator:
    """Refuses what the API could not show: one such result would make its job unreadable, and every list of jobs."""

    def check(value: dict[str, Any]) -> dict[str, Any]:
        view.model_validate(value)
        return value

    return AfterValidator(check)


class _Sizes(BaseModel):
    model_config = ConfigDict(strict=True)

    layers: int | None
    hidden_size: int | None
    attention_heads: list[int]
    ffn_width: list[int]
    vocabulary: int | None
    key_value_heads: list[int] | None = None
    decoder_layers: int | None = None
    decoder_attention_heads: list[int] | None = None
    decoder_ffn_width: list[int] | None = None


class _Network(BaseModel):
    model_config = ConfigDict(strict=True)

    directory: Literal["huggingface", "huggingface_custom", "network"]
    family: str = Field(max_length=50)
    architecture: str = Field(max_length=100)
    task: str | None = Field(max_length=50)
    parameters: int
    dtype: str = Field(max_length=20)
    structure: _Sizes
    facts: dict[str, Any]


class Result(BaseModel):
    """The engine's `result.json`, as far as the service reads it itself."""

    model_config = ConfigDict(strict=True)

    verdict: list[Annotated[dict[str, Any], _shown_as(VerdictLine)]]
    passed: bool
    before: Annotated[dict[str, Any], _shown_as(Measurement)]
    after: Annotated[dict[str, Any], _shown_as(Measurement)]
    model: _Network
    engine: Annotated[dict[str, Any], _shown_as(EngineFacts)]


class Inspected(Findings):
    """The engine's `result.json` of an inspection."""

    engine: Annotated[dict[str, Any], _shown_as(EngineFacts)]


Form = TypeVar("Form", bound=BaseModel)


@dataclass(frozen=True)
class Publication:
    """What is stored when the job is finished; the bytes are in storage already."""

    status: str
    result: dict[str, Any]
    model: Model | None
    artifacts: list[Artifact]


def read_result(folder: Path, form: type[Form]) -> Form:
    """The result that the engine left, `Result` or `Inspected`.

    Raises `JobFailed` when it is missing or malformed, `OSError` when the disk cannot read it.
    """
    try:
        file = folder / "result.json"
        if file.is_symlink() or file.stat().st_size > MAX_RESULT_BYTES:
            raise ValueError
        return form.model_validate(strict_json.loads(file.read_bytes()))
    except (OSError, ValueError) as error:  # so are JsonRefused and pydantic's ValidationError
        if isinstance(error, OSError) and error.errno == errno.EIO:
            raise
        raise JobFailed("ENGINE_ERROR", "The engine ended without a complete result.") from None


def publish(storage: Storage, folder: Path, held: Claim, order: Order, check: Callable[[], None]) -> Publication:
    """Move everything under `folder/out` into storage and describe it.

    `check` is called between pieces and raises to stop; what is in storage by then lies below `artifact_prefix`.
    """
    if order.configuration.get("kind") == "inspection":
        inspected = read_result(folder, Inspected)
        artifacts = _store(storage, folder / "out", held, check)
        return Publication("succeeded", inspected.model_dump(mode="json"), None, artifacts)
    result = read_result(folder, Result)
    artifacts = _store(storage, folder / "out", held, check)
    model = _model(storage, held, order, result, artifacts)
    manifest = manifest_of(order.origin, held, result.engine, model, artifacts)
    artifacts.append(_store_manifest(storage, folder, held, manifest))
    stored = result.model_dump() | {"model_id": model.id, "archive": _archive(storage, job_archive(artifacts))}
    return Publication("succeeded" if result.passed else "rejected", stored, model, artifacts)


def _store(storage: Storage, out: Path, held: Claim, check: Callable[[], None]) -> list[Artifact]:
    prefix = artifact_prefix(held.job_id, held.token)
    artifacts = []
    for path in sorted(_regular_files(out)):
        name = path.relative_to(out).as_posix()
        size, digest = path.stat().st_size, sha256_of(path, check)
        storage.put(f"{prefix}/{name}", path)
        artifacts.append(_artifact(held, name, size, digest, f"{prefix}/{name}"))
        check()
    return artifacts


def _store_manifest(storage: Storage, folder: Path, held: Claim, manifest: bytes) -> Artifact:
    key = f"{artifact_prefix(held.job_id, held.token)}/{MANIFEST}"
    # A name that is made up: what the engine left in its folder is not to be written through.
    with tempfile.NamedTemporaryFile(dir=folder, delete=False) as file:
        file.write(manifest)
    Path(file.name).chmod(0o644)
    storage.put(key, Path(file.name))
    return _artifact(held, MANIFEST, len(manifest), hashlib.sha256(manifest).hexdigest(), key)


def artifact_prefix(job_id: str, token: int) -> str:
    """Where an attempt puts its files: the fencing token keeps attempts apart."""
    return f"artifacts/{job_id}/{token}"


def _regular_files(folder: Path) -> Iterator[Path]:
    if folder.is_symlink():  # which os.walk follows at its root
        raise JobFailed("ENGINE_ERROR", "The engine's output is a link.")
    found = 0
    for parent, folders, files in os.walk(folder, followlinks=False):
        for path in (Path(parent, name) for name in (*folders, *files)):
            mode = path.lstat().st_mode
            found += 1
            if not (stat.S_ISREG(mode) or stat.S_ISDIR(mode)) or found > MAX_FILES:
                raise JobFailed("ENGINE_ERROR", "The engine's output holds something that is not a plain file.")
            name = path.relative_to(folder).as_posix()
            if len(name) > _LONGEST_PATH or not name.isprintable() or _is_ours(name):
                raise JobFailed("ENGINE_ERROR", "The engine's output holds a file whose name cannot be kept.")
            if stat.S_ISREG(mode):
                yield path


def _is_ours(name: str) -> bool:
    """Whether a file would stand where the manifest goes, in the job's folder or in its archive."""
    folder, _, rest = name.partition("/")
    return name == MANIFEST or (folder in NETWORK_DIRECTORIES and rest == ARCHIVED_MANIFEST)


def sha256_of(path: Path, check: Callable[[], None]) -> str:
    """SHA-256 of a file, in hexadecimal; `check` is called between pieces and raises to stop."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_PIECE):
            digest.update(piece)
            check()
    return digest.hexdigest()


def _artifact(held: Claim, name: str, size: int, digest: str, key: str) -> Artifact:
    folder = "manifest" if name == MANIFEST else name.partition("/")[0]
    return Artifact(
        id=new_id("art"),
        job_id=held.job_id,
        tenant=held.tenant,
        path=name,
        kind="onnx_int8" if name.startswith("onnx/model_int8.") else folder[:40],
        media_type=MEDIA_TYPES.get(Path(name).suffix, "application/octet-stream"),
        size=size,
        sha256=digest,
        key=key,
    )


def _model(storage: Storage, held: Claim, order: Order, result: Result, artifacts: list[Artifact]) -> Model:
    directory = result.model.directory
    assert directory in NETWORK_DIRECTORIES
    inside = [(a.path.removeprefix(f"{directory}/"), a) for a in artifacts if a.path.startswith(f"{directory}/")]
    if not inside:
        raise JobFailed("ENGINE_ERROR", "The engine ended without the model that its result names.")
    archive = _archive(storage, inside)
    return Model(
        id=new_id("mdl"),
        tenant=held.tenant,
        name=order.name,
        state="ready",
        size=sum(artifact.size for _, artifact in inside),
        files=[{"path": path, "size": a.size, "sha256": a.sha256} for path, a in inside],
        prefix=f"{artifact_prefix(held.job_id, held.token)}/{directory}",
        archive_size=archive["size"],
        archive_sha256=archive["sha256"],
        parent_model_id=order.model_id,
        job_id=held.job_id,
        metadata_={},
        **result.model.model_dump(exclude={"directory"}, exclude_unset=True),  # a stack that is not there has no sizes
    )


def _archive(storage: Storage, files: list[tuple[str, Artifact]]) -> dict[str, Any]:
    keys = {name: artifact.key for name, artifact in files}
    layout = TarLayout([(name, artifact.size) for name, artifact in files])

    def opener(name: str) -> BinaryIO:
        return storage.open(keys[name])

    return {"size": layout.size, "sha256": layout.sha256(opener)}
