"""Marian's tokenizer: two sentencepiece models find the pieces, a vocabulary common to both numbers them."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sentencepiece import sentencepiece_model_pb2

from workers.engine.failures import EngineError
from workers.engine.vocabulary.models import BYTES
from workers.engine.vocabulary.texts import AutoEncoder, Text

VOCABULARY = "vocab.json"
MODELS = ("source.spm", "target.spm")

ModelProto: Any = sentencepiece_model_pb2.ModelProto  # type: ignore[attr-defined] # made at run time


def is_marian(folder: Path) -> bool:
    """Whether a folder has the files of Marian's tokenizer."""
    return all((folder / name).is_file() for name in (VOCABULARY, *MODELS))


class MarianFiles:
    """The tokenizer files of a folder. Raises EngineError TOKENIZER_UNUSABLE where each language has a vocabulary."""

    def __init__(self, folder: Path) -> None:
        if (folder / "target_vocab.json").is_file():
            message = "a vocabulary for each language cannot be cut; leave vocabulary out of the cuts"
            raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
        self._folder = folder
        self._vocabulary: dict[str, int] = json.loads((folder / VOCABULARY).read_text(encoding="utf-8"))
        self.auto, self.plain = AutoEncoder(folder), None

    def needed(self, used: set[int], _texts: Iterable[Text]) -> set[int]:
        """`used` with the codes of languages, bytes, and the single characters of the used pieces."""
        tokens = {token for token, index in self._vocabulary.items() if index in used}
        codes = {token for token in self._vocabulary if token.startswith(">>") and token.endswith("<<")}
        fallbacks = (codes | BYTES).union(*tokens)
        return used | {self._vocabulary[token] for token in fallbacks & self._vocabulary.keys()}

    def write(self, target: Path, kept: list[int]) -> None:
        """Writes the vocabulary of the tokens `kept`, whose new ids are their positions, and both models."""
        numbers = {old: new for new, old in enumerate(kept)}
        tokens = {token: numbers[index] for token, index in self._vocabulary.items() if index in numbers}
        (target / VOCABULARY).write_text(json.dumps(tokens, ensure_ascii=False), encoding="utf-8")
        gone = self._vocabulary.keys() - tokens.keys()
        for name in MODELS:
            (target / name).write_bytes(without(gone, (self._folder / name).read_bytes()))


def without(gone: Iterable[str], serialized: bytes) -> bytes:
    """A sentencepiece model that does not use the pieces `gone`, so that words are put together from the others.

    Pieces stay in the file, as their places are their ids there. Single characters are used in any case, as is the
    worst piece: the score of unknown characters is its score less a penalty.
    """
    model = ModelProto.FromString(serialized)
    normal = [piece for piece in model.pieces if piece.type == piece.NORMAL]
    worst = min((piece.score for piece in normal), default=0.0)
    gone = set(gone)
    for piece in normal:
        if piece.piece in gone and len(piece.piece) > 1 and piece.score > worst:
            piece.type = piece.UNUSED
    smaller: bytes = model.SerializeToString()
    return smaller
