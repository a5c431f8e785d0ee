"""The tokenizer's side of a smaller vocabulary: its files, cut to the tokens that texts use, and proven on them."""

import hashlib
import json
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import AutoConfig

from workers.engine.exporters.folder import copy_inert
from workers.engine.failures import EngineError
from workers.engine.vocabulary.fast import FastFiles
from workers.engine.vocabulary.ids import ids_in
from workers.engine.vocabulary.marian import MarianFiles, is_marian
from workers.engine.vocabulary.texts import AutoEncoder, Encoder, PlainEncoder, Text, batches_of

STALE = ("*.model", "vocab.txt", "vocab.json", "merges.txt", "added_tokens.json", "generation_config.json")
"""Files of the old vocabulary; what they say is in tokenizer.json, or in the network's own generation config."""

POSITIONS_FROM_PADDING = frozenset(
    "camembert data2vec-text esm ibert lilt longformer luke m2m_100 markuplm mpnet nllb-moe roberta "
    "roberta-prelayernorm xlm-roberta xlm-roberta-xl xmod".split()
)
"""Model types that count positions from the id of padding."""


class Files(Protocol):
    """The tokenizer files of one folder, and the ways in which they are read."""

    @property
    def auto(self) -> AutoEncoder:
        """That of the tasks."""

    @property
    def plain(self) -> PlainEncoder | None:
        """That of other libraries, where they read these files."""

    def needed(self, used: set[int], texts: Iterable[Text]) -> set[int]:
        """`used` and all other ids without which `texts` might be split otherwise, or other texts not at all."""

    def write(self, target: Path, kept: list[int]) -> None:
        """Writes the files of the tokens `kept`, whose new ids are their positions."""


def cut_tokenizer(source: Path, target: Path, texts: Iterable[Text]) -> Tensor:
    """Makes the new folder `target` of `source`, less weights, with a tokenizer that knows only what `texts` use.

    Kept are tokens of the texts, whole as they are, all special and added ones, those that config and generation name,
    and what other texts fall back to: bytes, single characters, the unknown token. `texts` is read several times.
    Returns the kept ids, int64 of (kept tokens,), ascending; a token's new id is its position there. The config.json of
    `target` says only what a tokenizer's class is chosen by; the rest is for `cut_vocabulary` to change.

    Raises EngineError TOKENIZER_UNUSABLE for files that cannot be read or kinds that cannot be cut, VERIFICATION_FAILED
    where any text is not encoded as before.
    """
    target.mkdir(parents=True, exist_ok=True)
    copy_inert(source, target)
    files: Files = MarianFiles(source) if is_marian(source) else FastFiles(source, target)
    for stale in (file for pattern in STALE for file in target.glob(pattern)):
        stale.unlink()
    readings = [read(encoder, texts) for encoder in encoders_of(files)]
    used = _named(source, files.auto.tokenizer).union(*(reading.used for reading in readings))
    kept = sorted(files.needed(used, texts))
    files.write(target, kept)
    _write_configs(source, target, kept)
    cut: Files = MarianFiles(target) if is_marian(target) else FastFiles(target, target)
    for encoder, reading in zip(encoders_of(cut), readings, strict=True):
        if read(encoder, texts, kept).digest != reading.digest:
            raise EngineError("VERIFICATION_FAILED", "some texts are encoded otherwise with the smaller vocabulary")
    return torch.tensor(kept)


def encoders_of(files: Files) -> list[Encoder]:
    """All ways to read the files."""
    return [files.auto] if files.plain is None else [files.auto, files.plain]


@dataclass(frozen=True)
class Reading:
    """What one encoder makes of all texts."""

    used: set[int]
    digest: bytes
    """Of all ids in order."""


def read(encoder: Encoder, texts: Iterable[Text], kept: Sequence[int] | None = None) -> Reading:
    """Encodes all texts; with `kept` the ids are read as positions there, and ids beyond it as none."""
    used: set[int] = set()
    digest = hashlib.sha256()
    for batch in batches_of(texts):
        for ids in encoder(batch):
            old = ids if kept is None else [kept[token] if token < len(kept) else -1 for token in ids]
            used.update(old)
            digest.update(array("q", [len(old), *old]).tobytes())
    return Reading(used, digest.digest())


def _named(source: Path, tokenizer: Any) -> set[int]:
    """Ids that tokenizer, config and generation config name, as far as tokenizer or network know them."""
    named, known = set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder), len(tokenizer)
    settings: dict[str, Any] = {}
    if (source / "config.json").is_file():
        settings = AutoConfig.from_pretrained(source, trust_remote_code=False).to_dict()
        known = max(known, settings.get("vocab_size") or 0)
    named |= ids_in(settings) | ids_in(_json(source / "generation_config.json"))
    padding = settings.get("pad_token_id")
    if settings.get("model_type") in POSITIONS_FROM_PADDING and padding is not None:
        named |= set(range(padding + 1))
    return {token for token in named if token < known}


def _json(file: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return content


def _write_configs(source: Path, target: Path, kept: list[int]) -> None:
    """The ids in the tokenizer's config; and of the network's config what the choice of a tokenizer class goes by."""
    numbers = {str(old): str(new) for new, old in enumerate(kept)}
    file = target / "tokenizer_config.json"
    config = _json(file)
    if added := config.get("added_tokens_decoder"):
        config["added_tokens_decoder"] = {numbers[token]: entry for token, entry in added.items() if token in numbers}
        file.write_text(json.dumps(config, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
    network = _json(source / "config.json")
    if model := {key: network[key] for key in ("model_type", "tokenizer_class") if network.get(key)}:
        (target / "config.json").write_text(json.dumps(model, indent=2) + "\n", encoding="utf-8")
