"""The small JSON files beside the weights: checked and rewritten where a library would obey them."""

import re
from typing import Any

from service.catalog.keys import GENERATION
from service.errors import Invalid
from service.intake.config import read_object, refuse_code
from service.intake.config_values import CHECKS, is_count
from service.intake.content import refusal
from service.intake.strict_json import plain

MAX_BYTES = 4 << 20
_TOKENIZER_KEYS = frozenset(
    """add_bos_token add_eos_token add_prefix_space added_tokens_decoder additional_special_tokens bos_token
    chat_template clean_up_tokenization_spaces cls_token do_basic_tokenize do_lower_case eos_token errors
    extra_special_tokens keep_accents lowercase mask_token max_length model_input_names model_max_length
    model_specific_special_tokens never_split pad_to_multiple_of pad_token pad_token_type_id padding_side remove_space
    sep_token split_special_tokens stride strip_accents tokenize_chinese_chars tokenizer_class trim_offsets
    truncation_side truncation_strategy unk_token vocab_size word_delimiter_token""".split()
)
"""What a tokenizer config may say: no paths, no names of other models, no classes outside transformers."""
_GENERATION_KEYS = GENERATION | {"pad_token_id", "bos_token_id", "eos_token_id", "use_cache", "transformers_version"}
_CLASS = re.compile(r"[A-Za-z0-9_]{1,100}")
_OWN_MODULE = re.compile(r"sentence_transformers(\.[A-Za-z_]+)+")
_FIRST_PIECE = b"\x0a"
"""The tag of a message's first field, of type bytes."""
_POOLING_PATH = re.compile(r"[A-Za-z0-9_-]{0,60}")


def tokenizer_config(data: bytes) -> dict[str, Any]:
    """A tokenizer_config.json with the keys of the allow-list only. Raises `Invalid`."""
    given = read_object(data, "tokenizer_config.json", MAX_BYTES)
    refuse_code(given, "tokenizer_config.json")
    kept = {key: value for key, value in given.items() if key in _TOKENIZER_KEYS}
    named = kept.get("tokenizer_class")
    if named is not None and not (isinstance(named, str) and _CLASS.fullmatch(named)):
        raise Invalid("tokenizer_config.json: tokenizer_class is no class name.", code="CONFIG_INVALID")
    return kept


def generation_config(data: bytes) -> dict[str, Any]:
    """A generation_config.json with the settings of the allow-list that have sound values. Raises `Invalid`."""
    given = read_object(data, "generation_config.json", MAX_BYTES)
    refuse_code(given, "generation_config.json")
    kept = {key: value for key, value in given.items() if key in _GENERATION_KEYS}
    return {key: value for key, value in kept.items() if value is None or CHECKS[key](value)}


def check_vocabulary(value: Any, name: str) -> None:
    """A vocabulary in JSON maps tokens to their numbers. Raises `Invalid`."""
    if not isinstance(value, dict) or not all(is_count(number) for number in value.values()):
        raise _refused(name, "does not map tokens to their numbers")


def check_text(data: bytes, name: str, limit: int) -> None:
    """A vocabulary, merges or a template as text of at most `limit` bytes. Raises `Invalid`."""
    if len(data) > limit:
        raise _refused(name, f"is larger than {limit} bytes")
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise _refused(name, "is not UTF-8") from error
    if not plain(text):
        raise _refused(name, "has NUL bytes")


def check_sentencepiece(head: bytes, name: str) -> None:
    """A sentencepiece model is a message that begins with a piece; only the engine parses it. Raises `Invalid`."""
    if not head.startswith(_FIRST_PIECE):
        raise _refused(name, "is no sentencepiece model")


def _refused(name: str, fault: str) -> Invalid:
    return Invalid(f"{name} {fault}.", code="TOKENIZER_REFUSED")


def check_modules(value: Any) -> None:
    """A sentence-transformers modules.json names classes by import path: only that library's own may stay."""
    modules = value if isinstance(value, list) else []
    sound = all(
        isinstance(module, dict)
        and isinstance(module.get("type"), str)
        and _OWN_MODULE.fullmatch(module["type"])
        and isinstance(module.get("path"), str)
        and _POOLING_PATH.fullmatch(module["path"])
        for module in modules
    )
    if not modules or not sound:
        raise refusal("REMOTE_CODE_REFUSED", "modules.json")
