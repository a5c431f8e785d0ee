"""A model directory from its upload to storage: which folder is the model, whether it fits together, what it is."""

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from service import catalog
from service.errors import Invalid
from service.ids import new_id
from service.intake import companions, content, strict_json
from service.intake.archive import unpack
from service.intake.config import Config, read_config
from service.intake.layouts import LAYOUTS, Weights
from service.intake.limits import Limits
from service.intake.safetensors import DTYPES, Tensor, check_finite, read_header
from service.intake.sources import Source
from service.intake.unpacking import Policy, Stored
from service.storage import Storage, all_or_nothing
from service.storage.tar import TarLayout
from service.tables import Model

_WEIGHTS = "model.safetensors"
POLICY = Policy(content.admit, content.check_not_torch)
"""Which files of an upload are kept, and which refuse it."""

_MAX_TOKENIZER = 32 << 20
_LABELLED = ("text-classification", "token-classification")
_NO_CONFIG = "The upload has no config.json at its root or in its one top folder."


@dataclass(frozen=True)
class Checked:
    """A model directory that may be kept: its files in archive order and what they hold."""

    files: dict[str, tuple[Path, Stored]]
    config: Config
    tensors: dict[str, Tensor]
    parameters: int
    has_head: bool

    @property
    def labels(self) -> list[str] | None:
        """Of the trained head, in the order of their ids; None without one, or where its task has none."""
        if not self.has_head or self.config.task not in _LABELLED:
            return None
        return self.config.labels or ["LABEL_0", "LABEL_1"]

    @property
    def has_tokenizer(self) -> bool:
        """Whether text can be turned into tokens with what is here."""
        return catalog.has_tokenizer(self.files.keys())


def read_model(source: Source, folder: Path, limits: Limits) -> Checked:
    """Unpack and check an archive; `folder` takes the files. Raises `SecateurError` for whatever we do not take."""
    unpacked = unpack(source, folder, limits, POLICY)
    files = {path: (unpacked.folder / path, stored) for path, stored in unpacked.files.items()}
    return check_model(files, unpacked.names, folder)


def check_model(given: Mapping[str, tuple[Path, Stored]], names: Sequence[str], folder: Path) -> Checked:
    """The one check of every upload, however it came: `given` files were admitted by `POLICY`, out of all `names`.

    `folder` takes the files that are written anew. Raises `SecateurError` for whatever we do not take.
    """
    files = _select(given, names)
    config = read_config(_small(files["config.json"][0]))
    tensors, shards = _read_weights(files)
    parameters, has_head = _check_fit(config, tensors)
    _name_weights(files, shards, folder)
    _rewrite(files, folder, "config.json", config.values)
    _check_companions(files, folder)
    return Checked(dict(sorted(files.items())), config, tensors, parameters, has_head)


def _select(given: Mapping[str, tuple[Path, Stored]], names: Sequence[str]) -> dict[str, tuple[Path, Stored]]:
    """Each kept file by its path in the model's folder, which is the upload's root or its one top folder."""
    if "config.json" in given:
        root = ""
    else:
        tops = {name.partition("/")[0] for name in names if "/" in name and not name.startswith("__MACOSX/")}
        if len(tops) != 1 or f"{min(tops)}/config.json" not in given:
            raise Invalid(_NO_CONFIG, code="CONFIG_MISSING")
        root = f"{tops.pop()}/"
    selected = {path.removeprefix(root): file for path, file in given.items() if path.startswith(root)}
    return {
        name: file
        for name, file in selected.items()
        if name in content.KEPT_FILES or (name.endswith(".safetensors") and "/" not in name)
    }


def _read_weights(files: dict[str, tuple[Path, Stored]]) -> tuple[dict[str, Tensor], dict[str, list[str]]]:
    """All tensors, and the names of each shard's."""
    shards = sorted(name for name in files if name.endswith(".safetensors"))
    if not shards:
        raise Invalid("The upload has no .safetensors file.", code="WEIGHTS_MISSING")
    if content.INDEX in files:
        _check_index(_small(files[content.INDEX][0]), shards)
    tensors: dict[str, Tensor] = {}
    names: dict[str, list[str]] = {}
    for shard in shards:
        with files[shard][0].open("rb") as file:
            found = read_header(file)
            check_finite(file, found)
        if tensors.keys() & found.keys():
            raise Invalid("Two safetensors files hold the same tensor.", code="SAFETENSORS_REFUSED")
        tensors.update(found)
        names[shard] = list(found)
    return tensors, names


def _check_index(data: bytes, shards: list[str]) -> None:
    """Every shard must be a plain name among the upload's own files: loaders open whatever path stands there."""
    index = _json(data, content.INDEX)
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise Invalid(f"{content.INDEX} has no weight_map from tensors to files.", code="INDEX_REFUSED")
    if set(weight_map.values()) != set(shards):
        raise Invalid(
            f"{content.INDEX} must name exactly the upload's .safetensors files, without folders.",
            code="INDEX_REFUSED",
        )


def _check_fit(config: Config, tensors: dict[str, Tensor]) -> tuple[int, bool]:
    """How many parameters the network has, and whether its head is there; of an unknown one nothing is demanded."""
    if not config.family.known:
        return sum(tensor.elements for tensor in _floats(tensors)), True
    weights = Weights(LAYOUTS[config.family.model_type](config.values), tensors, config.task)
    weights.check()
    return weights.parameters(), weights.has_head


def _name_weights(files: dict[str, tuple[Path, Stored]], shards: dict[str, list[str]], folder: Path) -> None:
    """One file of weights is stored as model.safetensors; several get an index of our own making."""
    files.pop(content.INDEX, None)
    if len(shards) == 1:
        files[_WEIGHTS] = files.pop(next(iter(shards)))
        return
    weight_map = {tensor: shard for shard, tensors in shards.items() for tensor in tensors}
    size = sum(files[shard][1].size for shard in shards)
    _rewrite(files, folder, content.INDEX, {"metadata": {"total_size": size}, "weight_map": weight_map})


_REWRITTEN = {
    "tokenizer_config.json": companions.tokenizer_config,
    "generation_config.json": companions.generation_config,
}


def _check_companions(files: dict[str, tuple[Path, Stored]], folder: Path) -> None:
    for name, rewritten in _REWRITTEN.items():
        if name in files:
            _rewrite(files, folder, name, rewritten(_small(files[name][0])))
    for name in content.INERT_FILES | content.VOCABULARY_FILES | {"special_tokens_map.json"}:
        if name in files:
            value = _json(_small(files[name][0], _MAX_TOKENIZER), name, _MAX_TOKENIZER)
            if name == "modules.json":
                companions.check_modules(value)
            if name in content.VOCABULARY_FILES:
                companions.check_vocabulary(value, name)
    for name in content.TEXT_FILES & files.keys():
        companions.check_text(_small(files[name][0], _MAX_TOKENIZER), name, _MAX_TOKENIZER)
    for name in content.SENTENCEPIECE_FILES & files.keys():
        companions.check_sentencepiece(_small(files[name][0], 1), name)


def _rewrite(files: dict[str, tuple[Path, Stored]], folder: Path, name: str, value: dict[str, Any]) -> None:
    data = json.dumps(value, indent=2, ensure_ascii=False, sort_keys=True).encode() + b"\n"
    path = folder / f"own.{name}"
    path.write_bytes(data)
    files[name] = (path, Stored(len(data), sha256(data).hexdigest()))


def _small(path: Path, limit: int = companions.MAX_BYTES) -> bytes:
    """A file of a few megabytes at most; a larger one is cut, which its parser then refuses by size."""
    with path.open("rb") as file:
        return file.read(limit + 1)


def _json(data: bytes, name: str, limit: int = companions.MAX_BYTES) -> Any:
    if len(data) > limit:
        raise Invalid(f"{name} is larger than {limit} bytes.", code="CONFIG_INVALID")
    try:
        return strict_json.loads(data)
    except strict_json.JsonRefused as error:
        raise Invalid(f"{name} {error}.", code="CONFIG_INVALID") from error


def publish(storage: Storage, checked: Checked, *, tenant: str, name: str, metadata: dict[str, str]) -> Model:
    """Move the files to storage; returns the row, not yet stored. On any error nothing is kept."""
    model_id = new_id("mdl")
    return Model(id=model_id, tenant=tenant, name=name, metadata_=metadata, **store(storage, checked, model_id))


def store(storage: Storage, checked: Checked, model_id: str) -> dict[str, Any]:
    """Move the files to storage; returns the columns of a ready model that they decide. Keeps nothing on any error."""
    prefix = f"models/{model_id}"
    with all_or_nothing(storage, prefix):
        for path, (source, _) in checked.files.items():
            storage.put(f"{prefix}/{path}", source)
        layout = TarLayout([(path, stored.size) for path, (_, stored) in checked.files.items()])
        archive_sha256 = layout.sha256(lambda path: storage.open(f"{prefix}/{path}"))
    return {
        "state": "ready",
        "family": checked.config.family.model_type,
        "architecture": checked.config.architecture,
        "task": checked.config.task,
        "parameters": checked.parameters,
        "size": sum(stored.size for _, stored in checked.files.values()),
        "dtype": _dtype(checked.tensors),
        "files": [
            {"path": path, "size": stored.size, "sha256": stored.sha256} for path, (_, stored) in checked.files.items()
        ],
        "structure": checked.config.structure(),
        "facts": {
            "labels": checked.labels,
            "max_length": checked.config.max_length(),
            "has_head": checked.has_head,
            "has_tokenizer": checked.has_tokenizer,
            "multi_label": checked.config.values.get("problem_type") == "multi_label_classification",
            "uniform": True,
        },
        "prefix": prefix,
        "archive_size": layout.size,
        "archive_sha256": archive_sha256,
    }


def _floats(tensors: dict[str, Tensor]) -> list[Tensor]:
    return [tensor for tensor in tensors.values() if DTYPES[tensor.dtype].infinite is not None]


def _dtype(tensors: dict[str, Tensor]) -> str:
    """The element type of most parameters."""
    counts: Counter[str] = Counter()
    for tensor in _floats(tensors):
        counts[tensor.dtype] += tensor.elements
    return DTYPES[counts.most_common(1)[0][0]].name
