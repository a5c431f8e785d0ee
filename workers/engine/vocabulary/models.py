"""The `model` of a tokenizer.json: what a smaller one needs to split the same texts alike, and cutting it.

A kind's rules rest on how it splits a word. WordPiece takes the longest token that fits, again and again. BPE merges
neighbours in a fixed order. Unigram chooses the best of all ways to cover the word. Tokens that took no part can go,
since what won among more candidates wins among fewer.
"""

from collections.abc import Iterable, Iterator, Mapping
from itertools import chain, pairwise
from typing import Any, TypeAlias

from tokenizers.pre_tokenizers import ByteLevel

from workers.engine.failures import EngineError

Model: TypeAlias = dict[str, Any]
"""The value of `model`, as JSON."""

BYTES = frozenset(f"<0x{byte:02X}>" for byte in range(256))
"""Tokens that stand for one byte of a character that has no token."""

BYTE_CHARACTERS = frozenset(ByteLevel.alphabet())
"""Characters by which byte-level BPE writes the 256 bytes (Radford et al., 2019)."""


def kind_of(model: Model) -> str:
    """The kind of model; old files do not name it. Raises EngineError TOKENIZER_UNUSABLE where it cannot be cut."""
    if isinstance(model.get("vocab"), list):
        return "Unigram"
    kind = model.get("type") or ("BPE" if "merges" in model else "WordPiece")
    if kind not in ("BPE", "WordPiece", "WordLevel"):
        message = "the vocabulary of this kind of tokenizer cannot be cut; leave vocabulary out of the cuts"
        raise EngineError("TOKENIZER_UNUSABLE", message, blame="user")
    return str(kind)


def vocabulary_of(model: Model) -> dict[str, int]:
    """Ids of the model's own tokens."""
    vocabulary: Any = model["vocab"]
    if isinstance(vocabulary, list):
        return {token: index for index, (token, _) in enumerate(vocabulary)}
    return dict(vocabulary)


def fallbacks(model: Model, *, byte_level: bool) -> set[int]:
    """What text of any kind falls back to: the unknown token and bytes."""
    vocabulary = vocabulary_of(model)
    known = BYTES | BYTE_CHARACTERS if byte_level else BYTES
    found = {vocabulary[token] for token in known & vocabulary.keys()}
    if model.get("unk_token") in vocabulary:
        found.add(vocabulary[model["unk_token"]])
    return found


def closure(model: Model, tokens: set[int], unknown_words: Iterable[str]) -> set[int]:
    """`tokens` and all others that splitting has to have; `unknown_words` are those that end as the unknown token."""
    kind, vocabulary = kind_of(model), vocabulary_of(model)
    names = {index: token for token, index in vocabulary.items()}
    used = {names[token] for token in tokens if token in names}
    if kind == "WordPiece":
        needed = _of_wordpiece(model, vocabulary, used, unknown_words)
    elif kind == "BPE":
        needed = set(chain.from_iterable(_merged(model, used)))
    elif kind == "Unigram":
        needed = _of_unigram(model, used)
    else:
        needed = set()
    return tokens | {vocabulary[token] for token in needed & vocabulary.keys()}


def _of_wordpiece(
    model: Model, vocabulary: Mapping[str, int], used: set[str], unknown_words: Iterable[str]
) -> set[str]:
    """Single characters of the used alphabet, so that new words are spelled and not unknown.

    A word that cannot be split to its end keeps what it was split into until then: with a shorter token there,
    splitting might go on where it used to fail.
    """
    prefix = model.get("continuing_subword_prefix", "##")
    alphabet = set().union(*(token.removeprefix(prefix) for token in used))
    spelled = alphabet | {prefix + character for character in alphabet}
    return spelled.union(*(greedy(word, vocabulary, prefix) for word in unknown_words))


def greedy(word: str, vocabulary: Mapping[str, int], prefix: str) -> Iterator[str]:
    """The longest token that fits at each place of a word, until none does."""
    start = 0
    while start < len(word):
        lead = prefix if start else ""
        pieces = (lead + word[start:end] for end in range(len(word), start, -1))
        token = next((piece for piece in pieces if piece in vocabulary), None)
        if token is None:
            return
        yield token
        start += len(token) - len(lead)


def _merged(model: Model, used: set[str]) -> Iterator[list[str]]:
    """Symbols and results of all merges that lead to the used tokens.

    Merges next to a token's edges never came to pass where it is used, so that it grew there as it does alone.
    """
    ranks = {pair: rank for rank, pair in enumerate(_pairs(model))}
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for token in used:
        symbols = symbols_of(token, prefix, suffix)
        yield symbols.copy()
        while len(symbols) > 1:
            rank, place = min((ranks.get(pair, len(ranks)), place) for place, pair in enumerate(pairwise(symbols)))
            if rank == len(ranks):
                break
            symbols[place : place + 2] = [symbols[place] + symbols[place + 1].removeprefix(prefix)]
            yield [symbols[place]]


def symbols_of(token: str, prefix: str, suffix: str) -> list[str]:
    """What merging starts from: characters, marked where they do not begin a word or end it."""
    bare = token.removeprefix(prefix).removesuffix(suffix)
    marked = [prefix + character for character in bare]
    if not marked:
        return [token]
    if not token.startswith(prefix):
        marked[0] = bare[0]
    if token.endswith(suffix):
        marked[-1] += suffix
    return marked


def _pairs(model: Model) -> Iterator[tuple[str, str]]:
    for merge in model["merges"]:
        left, right = merge.split(" ") if isinstance(merge, str) else merge
        yield left, right


def _of_unigram(model: Model, used: set[str]) -> set[str]:
    """Single characters of the used alphabet, the worst token, and all up to the unknown token's id.

    A character without a token of its own may be covered by the unknown token, at the worst score of all less a
    penalty: both have to stay as they are. Loaders number the unknown token by themselves, so its id stays as well.
    """
    entries = model["vocab"]
    worst = min(entries, key=lambda entry: float(entry[1]))[0]
    first = [token for token, _ in entries[: (model.get("unk_id") or 0) + 1]]
    return {worst, *first}.union(*used)


def cut_model(model: Model, numbers: Mapping[int, int]) -> Model:
    """The model with the tokens in `numbers`, which gives the new id of each."""
    if kind_of(model) == "Unigram":
        # The unknown token's id, `unk_id`, is not one that changes: all ids up to it are kept.
        return model | {"vocab": [entry for index, entry in enumerate(model["vocab"]) if index in numbers]}
    vocabulary = {token: numbers[index] for token, index in model["vocab"].items() if index in numbers}
    if "merges" not in model:
        return model | {"vocab": vocabulary}
    prefix = model.get("continuing_subword_prefix") or ""
    merges = [
        merge
        for merge, (left, right) in zip(model["merges"], _pairs(model), strict=True)
        if {left, right, left + right.removeprefix(prefix)} <= vocabulary.keys()
    ]
    return model | {"vocab": vocabulary, "merges": merges}
