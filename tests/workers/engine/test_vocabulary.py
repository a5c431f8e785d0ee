"""A smaller vocabulary changes nothing for the texts it was made for, and leaves none out."""

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest
import sentencepiece
import tokenizers
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

from workers.engine.failures import EngineError
from workers.engine.tasks.row_task import load_tokenizer
from workers.engine.vocabulary import Target, Text, Words, cut_tokenizer, texts_of
from workers.engine.vocabulary.fast import FastFiles
from workers.engine.vocabulary.models import greedy

SEEN = [
    "The gardener cut the roses in the old garden before the winter came.",
    "A sharp blade makes a clean cut, and a clean cut heals within weeks.",
    "Which branches should be cut first: the dead ones or the crossing ones?",
    "Naïve pruning (at the wrong time) costs next year's flowers!",
]
OTHER = [
    "Quantum mechanics describes microscopic phenomena with extraordinary precision.",
    "Shipping companies publish quarterly earnings reports for their shareholders.",
    "Vous souhaitez réserver une chambre près de la gare à Genève jusqu'à jeudi?",
    "Wizards jumped quickly over the lazy foxes while zebras played xylophones.",
]
TEXTS: list[Text] = [*SEEN, (SEEN[0], SEEN[1]), Words(SEEN[2].split())]
UNSEEN = "Ωmega 漢字 😀 quixotic zephyrs\tżółw"
"""Words that no text has, and characters that no tokenizer here was trained on."""


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


def wordpiece(specials: list[str], unknown: str = "[UNK]") -> Tokenizer:
    found = Tokenizer(models.WordPiece(unk_token=unknown))
    found.normalizer = tokenizers.normalizers.BertNormalizer()
    found.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    found.train_from_iterator(
        SEEN + OTHER, trainers.WordPieceTrainer(vocab_size=400, special_tokens=specials, show_progress=False)
    )
    ends = [(token, found.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    found.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B:1 [SEP]:1", special_tokens=ends
    )
    return found


def with_unused_ids(made: Tokenizer) -> Tokenizer:
    """Ids before and between the special ones that no text can have, so that special ones move."""
    made.enable_padding(pad_id=1, pad_token="[PAD]")
    definition = json.loads(made.to_str())
    definition["added_tokens"] = [token for token in definition["added_tokens"] if "unused" not in token["content"]]
    return Tokenizer.from_str(json.dumps(definition))


def byte_level(specials: list[str]) -> Tokenizer:
    found = Tokenizer(models.BPE())
    found.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    found.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    found.train_from_iterator(
        SEEN + OTHER,
        trainers.BpeTrainer(vocab_size=600, special_tokens=specials, initial_alphabet=alphabet, show_progress=False),
    )
    if "<s>" in specials:
        found.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), True, False)
    return found


def byte_fallback() -> Tokenizer:
    found = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    found.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
    found.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    specials = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    found.train_from_iterator(
        SEEN + OTHER, trainers.BpeTrainer(vocab_size=700, special_tokens=specials, show_progress=False)
    )
    found.post_processor = processors.TemplateProcessing(single="<s> $A", pair="<s> $A $B", special_tokens=[("<s>", 1)])
    definition = json.loads(found.to_str())
    definition["added_tokens"] = definition["added_tokens"][:3]
    return Tokenizer.from_str(json.dumps(definition))


def unigram(specials: list[str], unknown: str, ends: list[str]) -> Tokenizer:
    found = Tokenizer(models.Unigram())
    found.pre_tokenizer = pre_tokenizers.Metaspace()
    found.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(vocab_size=300, special_tokens=specials, unk_token=unknown, show_progress=False)
    found.train_from_iterator(SEEN + OTHER, trainer)
    found.post_processor = processors.TemplateProcessing(
        single=" ".join((*ends[:-1], "$A", ends[-1])),
        pair=" ".join((*ends[:-1], "$A", ends[-1], "$B", ends[-1])),
        special_tokens=[(token, found.token_to_id(token)) for token in set(ends)],
    )
    return found


KINDS: dict[str, Callable[[], tuple[Tokenizer, dict[str, Any]]]] = {
    "bert": lambda: (
        with_unused_ids(wordpiece(["[unused0]", "[PAD]", "[unused1]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"])),
        {"tokenizer_class": "BertTokenizer", "added_tokens_decoder": {"6": {"content": "[MASK]", "special": True}}},
    ),
    "gpt2": lambda: (byte_level(["<|endoftext|>"]), {"tokenizer_class": "GPT2Tokenizer"}),
    "roberta": lambda: (
        byte_level(["<s>", "<pad>", "</s>", "<unk>", "<mask>"]),
        {"tokenizer_class": "RobertaTokenizer"},
    ),
    "llama": lambda: (
        byte_fallback(),
        {"tokenizer_class": "PreTrainedTokenizerFast", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"},
    ),
    "xlm-roberta": lambda: (
        unigram(["<s>", "<pad>", "</s>", "<unk>", "<mask>"], "<unk>", ["<s>", "</s>"]),
        {"tokenizer_class": "XLMRobertaTokenizer"},
    ),
    "t5": lambda: (
        unigram(["<pad>", "</s>", "<unk>"], "<unk>", ["</s>"]),
        {"tokenizer_class": "T5Tokenizer", "extra_ids": 4},
    ),
    "albert": lambda: (
        unigram(["<pad>", "<unk>", "[CLS]", "[SEP]", "[MASK]"], "<unk>", ["[CLS]", "[SEP]"]),
        {"tokenizer_class": "AlbertTokenizer"},
    ),
    "deberta-v2": lambda: (
        unigram(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"], "[UNK]", ["[CLS]", "[SEP]"]),
        {"tokenizer_class": "DebertaV2Tokenizer"},
    ),
}


def save(kind: str, folder: Path) -> Path:
    folder.mkdir()
    found, config = KINDS[kind]()
    found.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    padding = next((found.token_to_id(token) for token in ("[PAD]", "<pad>") if token in found.get_vocab()), None)
    network = {"model_type": kind, "vocab_size": found.get_vocab_size(), "pad_token_id": padding}
    (folder / "config.json").write_text(json.dumps(network))
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_texts_keep_their_tokens(kind: str, tmp_path: Path) -> None:
    source, target = save(kind, tmp_path / "source"), tmp_path / "target"
    kept = cut_tokenizer(source, target, TEXTS)
    whole, cut = AutoTokenizer.from_pretrained(source), AutoTokenizer.from_pretrained(target)
    assert len(cut) == len(kept) < len(whole)
    assert bool((kept.diff() > 0).all())
    for inputs in ((SEEN,), (SEEN, SEEN[::-1])):
        old, new = whole(*inputs), cut(*inputs)
        assert [kept[ids].tolist() for ids in new["input_ids"]] == old["input_ids"]
        assert new["attention_mask"] == old["attention_mask"]
    for text in SEEN:
        ids = Tokenizer.from_file(str(target / "tokenizer.json")).encode(text).ids
        assert kept[ids].tolist() == Tokenizer.from_file(str(source / "tokenizer.json")).encode(text).ids
    assert cut.special_tokens_map == whole.special_tokens_map
    assert kept[cut.all_special_ids].tolist() == whole.all_special_ids


def test_special_tokens_have_their_new_ids_in_every_file(tmp_path: Path) -> None:
    target = tmp_path / "target"
    kept = cut_tokenizer(save("bert", tmp_path / "source"), target, TEXTS).tolist()
    assert kept[:5] == [1, 3, 4, 5, 6], "no text has what is unused"
    definition = json.loads((target / "tokenizer.json").read_text())
    added = {token["content"]: token["id"] for token in definition["added_tokens"]}
    assert added == {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    assert definition["model"]["vocab"].items() >= added.items()
    ends = definition["post_processor"]["special_tokens"]
    assert {token: ends[token]["ids"] for token in ends} == {"[CLS]": [2], "[SEP]": [3]}
    assert definition["padding"]["pad_id"] == 0
    assert json.loads((target / "tokenizer_config.json").read_text())["added_tokens_decoder"].keys() == {"4"}


def test_words_keep_their_tokens_with_and_without_spaces(tmp_path: Path) -> None:
    source, target = save("roberta", tmp_path / "source"), tmp_path / "target"
    words = SEEN[0].split()
    kept = cut_tokenizer(source, target, [Words(words)])
    encoded = []
    for spaced in (False, True):
        whole, cut = (AutoTokenizer.from_pretrained(folder, add_prefix_space=spaced) for folder in (source, target))
        encoded.append(whole(words, is_split_into_words=True)["input_ids"])
        assert kept[cut(words, is_split_into_words=True)["input_ids"]].tolist() == encoded[-1]
    assert encoded[0] != encoded[1]


@pytest.mark.parametrize("kind", KINDS)
def test_other_texts_are_still_encoded(kind: str, tmp_path: Path) -> None:
    source, target = save(kind, tmp_path / "source"), tmp_path / "target"
    cut_tokenizer(source, target, TEXTS)
    cut: Any = AutoTokenizer.from_pretrained(target)
    for text in (UNSEEN, *OTHER):
        assert 0 < max(cut(text)["input_ids"]) < len(cut)
    if kind in ("gpt2", "roberta", "llama"):
        assert cut.decode(cut(UNSEEN)["input_ids"], skip_special_tokens=True).strip() == UNSEEN
    else:  # a new word made of known characters is spelled
        ids = cut("dustbin", add_special_tokens=False)["input_ids"]
        assert cut.unk_token_id not in ids
        assert cut.decode(ids) == "dustbin"


def test_everything_else_of_the_folder_travels_and_old_vocabularies_do_not(tmp_path: Path) -> None:
    source, target = save("bert", tmp_path / "source"), tmp_path / "target"
    for name in ("vocab.txt", "spiece.model", "generation_config.json", "modules.json", "weights.bin"):
        (source / name).write_text("{}")
    cut_tokenizer(source, target, TEXTS)
    names = {file.name for file in target.iterdir()}
    assert names == {"config.json", "modules.json", "tokenizer.json", "tokenizer_config.json"}


def test_ids_that_the_configs_name_are_kept(tmp_path: Path) -> None:
    source = save("bert", tmp_path / "source")
    config = {"model_type": "bert", "vocab_size": 400, "decoder": {"forced_bos_token_id": 301}, "eos_token_id": [302]}
    (source / "config.json").write_text(json.dumps(config))
    (source / "generation_config.json").write_text(json.dumps({"bad_words_ids": [[303, 304]], "max_length": 305}))
    kept = set(cut_tokenizer(source, tmp_path / "target", SEEN[:1]).tolist())
    assert {301, 302, 303, 304} <= kept
    assert 305 not in kept


def test_padding_that_positions_count_from_stays_where_it_is(tmp_path: Path) -> None:
    source = save("roberta", tmp_path / "source")
    for model_type, stays in (("roberta", True), ("bart", False)):
        config = {"model_type": model_type, "vocab_size": 600, "pad_token_id": 400}
        (source / "config.json").write_text(json.dumps(config))
        kept = cut_tokenizer(source, tmp_path / model_type, TEXTS).tolist()
        assert 400 in kept
        assert (kept.index(400) == 400) == stays


@pytest.mark.parametrize("kind", ["bert", "gpt2", "t5"])
def test_older_files_do_as_well(kind: str, tmp_path: Path) -> None:
    source, target = tmp_path / "source", tmp_path / "target"
    source.mkdir()
    (source / "config.json").write_text(json.dumps({"model_type": kind, "vocab_size": 600}))
    if kind == "bert":
        words = wordpiece(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]).get_vocab()
        (source / "vocab.txt").write_text("\n".join(sorted(words, key=words.__getitem__)))
    elif kind == "gpt2":
        byte_level(["<|endoftext|>"]).model.save(str(source))
    else:
        train_sentencepiece(source / "spiece.model", SEEN + OTHER, bos_id=-1, eos_id=1, pad_id=0, unk_id=2)
    whole = AutoTokenizer.from_pretrained(source)
    expected = whole(SEEN)["input_ids"]
    kept = cut_tokenizer(source, target, TEXTS)
    cut = AutoTokenizer.from_pretrained(target)
    assert len(kept) < len(whole)
    assert [kept[ids].tolist() for ids in cut(SEEN)["input_ids"]] == expected
    assert not list(target.glob("*.model"))
    assert not list(target.glob("vocab.*"))


def test_a_word_that_could_not_be_split_stays_unknown(tmp_path: Path) -> None:
    """Without `ab`, which no text ends up with, `abx` would become `a ##bx`."""
    vocabulary = {"[UNK]": 0, "a": 1, "ab": 2, "c": 3, "##bx": 4, "other": 5}
    assert list(greedy("abx", vocabulary, "##")) == ["ab"]
    made = Tokenizer(models.WordPiece(vocabulary, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    assert made.encode("a cbx abx").tokens == ["a", "c", "##bx", "[UNK]"]
    assert cut_tokenizer(save_plain(made, tmp_path / "source"), tmp_path / "target", ["a cbx abx"]).tolist() == [
        0, 1, 2, 3, 4
    ]  # fmt: skip


def test_the_unknown_token_stays_as_unlikely_as_it_was(tmp_path: Path) -> None:
    """Its score follows the worst of all; with that gone, `ab <unk> cd` would beat `a bqc d`."""
    scores = {"<unk>": 0.0, "ab": -1.0, "cd": -1.0, "a": -30.0, "d": -30.0, "bqc": -30.0, "zz": -100.0, "yy": -50.0}
    made = Tokenizer(models.Unigram(list(scores.items()), 0))
    assert made.encode("abqcd").tokens == ["a", "bqc", "d"]
    kept = cut_tokenizer(save_plain(made, tmp_path / "source"), tmp_path / "target", ["abqcd", "ab", "cd"])
    assert kept.tolist() == [0, 1, 2, 3, 4, 5, 6]


def save_plain(made: Tokenizer, folder: Path) -> Path:
    folder.mkdir()
    made.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "PreTrainedTokenizerFast"}))
    return folder


def test_a_tokenizer_that_splits_otherwise_is_not_handed_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FastFiles, "needed", lambda _self, used, _texts: used - {max(used)})
    with pytest.raises(EngineError) as caught:
        cut_tokenizer(save("gpt2", tmp_path / "source"), tmp_path / "target", TEXTS)
    assert caught.value.code == "VERIFICATION_FAILED"


def test_a_kind_that_cannot_be_cut_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "byt5"}))
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "ByT5Tokenizer"}))
    with pytest.raises(EngineError, match="leave vocabulary out") as caught:
        cut_tokenizer(tmp_path, tmp_path / "target", TEXTS)
    assert (caught.value.code, caught.value.blame) == ("TOKENIZER_UNUSABLE", "user")


def train_sentencepiece(file: Path, texts: Iterable[str], **ids: Any) -> list[str]:
    """Writes a Unigram model and returns its pieces."""
    with file.open("wb") as writer:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(texts),
            model_writer=writer,
            vocab_size=130,
            hard_vocab_limit=False,
            minloglevel=2,
            **ids,
        )
    model = sentencepiece.SentencePieceProcessor(model_file=str(file))
    return [model.id_to_piece(index) for index in range(len(model))]


SOURCES, TARGETS = SEEN + OTHER[:2], OTHER[2:] + SEEN[2:]


@pytest.fixture
def marian(tmp_path: Path) -> Path:
    folder = tmp_path / "marian"
    folder.mkdir()
    pieces = [train_sentencepiece(folder / f"{side}.spm", texts) for side, texts in
              (("source", SOURCES), ("target", TARGETS))]  # fmt: skip
    tokens = dict.fromkeys(["</s>", "<unk>", ">>fra<<", *pieces[0][3:], *pieces[1][3:], "<pad>"])
    (folder / "vocab.json").write_text(json.dumps({token: index for index, token in enumerate(tokens)}))
    config = dict.fromkeys(("pad_token_id", "decoder_start_token_id"), len(tokens) - 1)
    config |= {"eos_token_id": 0, "forced_eos_token_id": 0, "vocab_size": len(tokens)}
    (folder / "config.json").write_text(json.dumps(config | {"model_type": "marian"}))
    (folder / "tokenizer_config.json").write_text(json.dumps({"tokenizer_class": "MarianTokenizer"}))
    return folder


def test_marian_keeps_both_languages_and_spells_what_is_new(marian: Path, tmp_path: Path) -> None:
    target = tmp_path / "target"
    kept = cut_tokenizer(marian, target, [SEEN[0], Target(OTHER[2])])
    whole, cut = load_tokenizer(marian), load_tokenizer(target)
    assert len(cut) == len(kept) < len(whole)
    for inputs in ({"text": SEEN[0]}, {"text": ">>fra<< " + SEEN[0]}, {"text_target": OTHER[2]}):
        assert kept[cut(**inputs)["input_ids"]].tolist() == whole(**inputs)["input_ids"]
    assert cut.pad_token_id == len(kept) - 1
    ids = cut("brandished")["input_ids"]
    assert cut.unk_token_id not in ids
    assert cut.decode(ids, skip_special_tokens=True) == "brandished"


def test_texts_are_those_that_the_tasks_tokenize(tmp_path: Path) -> None:
    rows: dict[str, tuple[dict[str, Any], list[Text]]] = {
        "text-classification": ({"text": "a", "text_pair": "b", "label": 0}, [("a", "b")]),
        "question-answering": (
            {"question": "q", "context": "c a", "answers": {"text": ["a"], "answer_start": [2]}},
            [("q", "c a"), "a"],
        ),
        "translation": ({"source": "s", "target": "t"}, ["s", Target("t")]),
        "token-classification": ({"tokens": ["a", "b"], "tags": ["X", "Y"]}, ["a b", Words(["a", "b"])]),
        "causal-lm": ({"text": "a"}, ["a"]),
        "masked-lm": ({"text": "a"}, ["a"]),
        "sentence-embedding": ({"text": "a", "text_pair": "b", "score": 0.5}, ["a", "b"]),
    }
    for task, (row, texts) in rows.items():
        for split in ("test", "train"):
            (tmp_path / f"{split}.jsonl").write_text(json.dumps(row) + "\n")
        found = texts_of(tmp_path, task)
        assert list(found) == texts * 2
        assert [type(text) for text in found] == [type(text) for text in texts] * 2, "and again"
