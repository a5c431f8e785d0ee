"""Small files beside the weights."""

import json
from typing import Any

import pytest
from transformers import GenerationConfig

from service.errors import Invalid
from service.intake import companions


def test_generation_settings_that_the_library_writes_stay() -> None:
    written = GenerationConfig(
        num_beams=4, max_length=64, bad_words_ids=[[0]], forced_eos_token_id=3, early_stopping=True, pad_token_id=0
    ).to_diff_dict()
    written.pop("transformers_version")
    assert written.items() <= companions.generation_config(json.dumps(written).encode()).items()


@pytest.mark.parametrize(
    "given",
    [
        {"num_beams": 1 << 30},
        {"cache_implementation": "static"},
        {"compile_config": {"backend": "evil"}},
        {"assistant_name_or_path": "/etc"},
        {"_from_model_config": True},
        {"watermarking_config": {}},
        {"bad_words_ids": "all"},
    ],
)
def test_other_generation_settings_are_dropped(given: dict[str, Any]) -> None:
    assert companions.generation_config(json.dumps(given).encode()) == {}


def test_generation_settings_name_no_code() -> None:
    with pytest.raises(Invalid) as caught:
        companions.generation_config(b'{"auto_map": {"x": "y"}}')
    assert caught.value.code == "REMOTE_CODE_REFUSED"


@pytest.mark.parametrize("value", [["a"], {"a": "b"}, {"a": -1}, {"a": True}, 1])
def test_a_vocabulary_maps_tokens_to_numbers(value: Any) -> None:
    companions.check_vocabulary({"a": 0, "b": 1}, "vocab.json")
    with pytest.raises(Invalid) as caught:
        companions.check_vocabulary(value, "vocab.json")
    assert caught.value.code == "TOKENIZER_REFUSED"


@pytest.mark.parametrize("data", [b"a\0b", b"\xff\xfe", b"too long"])
def test_files_of_text_are_text(data: bytes) -> None:
    companions.check_text("a b\né\n".encode(), "merges.txt", 7)
    with pytest.raises(Invalid) as caught:
        companions.check_text(data, "merges.txt", 7)
    assert caught.value.code == "TOKENIZER_REFUSED"


@pytest.mark.parametrize("head", [b"", b"PK", b"{"])
def test_a_sentencepiece_model_begins_with_a_piece(head: bytes) -> None:
    companions.check_sentencepiece(b"\n\x0e", "source.spm")
    with pytest.raises(Invalid) as caught:
        companions.check_sentencepiece(head, "source.spm")
    assert caught.value.code == "TOKENIZER_REFUSED"
