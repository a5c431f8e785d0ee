"""Tokenizers that a tokenizer.json defines."""

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from workers.engine.failures import EngineError
from workers.engine.tasks.row_task import load_tokenizer
from workers.engine.vocabulary import models
from workers.engine.vocabulary.texts import AutoEncoder, PlainEncoder, Text, strings_of

FILE = "tokenizer.json"


class FastFiles:
    """The tokenizer files of a folder; `scratch` gets a tokenizer.json where there are only older ones."""

    def __init__(self, folder: Path, scratch: Path) -> None:
        file = folder / FILE
        if not file.is_file():
            load_tokenizer(folder).save_pretrained(scratch)
            file = scratch / FILE
        if not file.is_file():
            message = "the vocabulary of this kind of tokenizer cannot be cut; leave vocabulary out of the cuts"
            raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
        self._definition: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        self._model: models.Model = self._definition["model"]
        self.auto, self.plain = AutoEncoder(folder), PlainEncoder(file)

    def needed(self, used: set[int], texts: Iterable[Text]) -> set[int]:
        """`used` and all other ids without which `texts` might be split otherwise, or other texts not at all."""
        added = {token["id"] for token in self._definition["added_tokens"]}

        def note(token: int) -> int:
            added.add(token)
            return token

        _renumbered_ends(self._definition.get("post_processor"), note)
        parts = json.dumps([self._definition.get(part) for part in ("normalizer", "pre_tokenizer", "decoder")])
        kept = used | added | models.fallbacks(self._model, byte_level='"ByteLevel"' in parts)
        unknown = models.vocabulary_of(self._model).get(self._model.get("unk_token") or "")
        broken = models.kind_of(self._model) == "WordPiece" and unknown in used
        return models.closure(self._model, kept, self._unknown_words(texts) if broken else ())

    def _unknown_words(self, texts: Iterable[Text]) -> Iterator[str]:
        """Words that become the unknown token, each once."""
        seen: set[str] = set()
        backends = (self.auto.tokenizer.backend_tokenizer, self.plain.backend)
        for text in texts:
            for string in strings_of(text):
                for backend in backends:
                    words = words_of(backend, string) - seen
                    seen |= words
                    for word in words:
                        if backend.model.tokenize(word)[0].value == self._model["unk_token"]:
                            yield word

    def write(self, target: Path, kept: list[int]) -> None:
        """Writes the tokenizer.json of the tokens `kept`, whose new ids are their positions."""
        numbers = {old: new for new, old in enumerate(kept)}
        definition = self._definition | {"model": models.cut_model(self._model, numbers)}
        definition["added_tokens"] = [token | {"id": numbers[token["id"]]} for token in definition["added_tokens"]]
        definition["post_processor"] = _renumbered_ends(definition.get("post_processor"), numbers.__getitem__)
        if definition.get("padding"):
            definition["padding"] |= {"pad_id": numbers[definition["padding"]["pad_id"]]}
        (target / FILE).write_text(json.dumps(definition, ensure_ascii=False), encoding="utf-8")


def _renumbered_ends(part: Any, renumber: Callable[[int], int]) -> Any:
    """A post-processor, or a part of one, with new ids of the tokens that it puts around texts."""
    if isinstance(part, list):
        return [_renumbered_ends(item, renumber) for item in part]
    if not isinstance(part, dict):
        return part
    changed = {}
    for key, value in part.items():
        if key == "ids" and isinstance(value, list):
            changed[key] = [renumber(token) for token in value]
        elif key in ("cls", "sep") and isinstance(value, list):
            changed[key] = [value[0], renumber(value[1])]
        else:
            changed[key] = _renumbered_ends(value, renumber)
    return changed


def words_of(backend: Tokenizer, string: str) -> set[str]:
    """What a tokenizer gives to its model, but for tokens that are set apart before."""
    normal = backend.normalizer.normalize_str(string) if backend.normalizer else string
    if backend.pre_tokenizer is None:
        return {normal} - {""}
    return {word for word, _ in backend.pre_tokenizer.pre_tokenize_str(normal)}
