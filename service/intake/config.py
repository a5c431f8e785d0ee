"""config.json at the door: parsed with bounds, checked value by value, rewritten from an allow-list.

What a newer transformers might obey (code references, kernels, paths, quantisers) never reaches it: a key that is not
on the family's list is dropped, or refuses the upload where dropping it would change the model.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from service.catalog import FAMILIES, Family
from service.errors import Invalid
from service.intake import strict_json

MAX_BYTES = 1 << 20
MAX_LABELS = 100_000
MAX_LABEL = 256
_CAPS = {
    "layers": 256,
    "heads": 65_536,
    "hidden": 65_536,
    "ffn": 1 << 20,
    "vocab_size": 1_000_000,
    "max_position_embeddings": 1_000_000,
    "type_vocab_size": 1024,
}
_ACTIVATIONS = frozenset("gelu gelu_new gelu_fast gelu_pytorch_tanh gelu_python relu silu swish tanh mish".split())
_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
_WORD = re.compile(r"[A-Za-z0-9._+-]{1,64}")


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 1 << 31


def _is_small(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 10


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _one_of(*values: Any) -> Callable[[Any], bool]:
    return lambda value: any(type(value) is type(allowed) and value == allowed for allowed in values)


_CHECKS: dict[str, Callable[[Any], bool]] = {
    "hidden_act": _one_of(*_ACTIVATIONS),
    "activation": _one_of(*_ACTIVATIONS),
    "torch_dtype": _one_of(*_DTYPES),
    "dtype": _one_of(*_DTYPES),
    "transformers_version": _is_word,
    "position_embedding_type": _one_of("absolute"),
    "is_decoder": _one_of(False),
    "add_cross_attention": _one_of(False),
    "problem_type": _one_of("single_label_classification"),
    **dict.fromkeys("pad_token_id bos_token_id eos_token_id".split(), _is_count),
    **dict.fromkeys("use_cache gradient_checkpointing tie_word_embeddings tie_weights_".split(), _is_bool),
    "sinusoidal_pos_embds": _is_bool,
    **dict.fromkeys(
        """initializer_range layer_norm_eps classifier_dropout hidden_dropout_prob attention_probs_dropout_prob dropout
        attention_dropout qa_dropout seq_classif_dropout""".split(),
        _is_small,
    ),
}
"""How the value of a key is checked that is neither a size nor about labels; null is always allowed."""
_DEFAULT_TYPES = 2


@dataclass(frozen=True)
class Config:
    """A config that passed: `values` is what is stored as config.json."""

    family: Family
    architecture: str
    values: dict[str, Any]
    labels: list[str] | None
    """In the order of their ids; None when the config names none."""

    def size(self, name: str) -> int:
        """A size by its key, or by `layers`, `heads`, `ffn`, `hidden`, whose keys are the family's."""
        value: int = self.values[getattr(self.family, name, name)]
        return value

    @property
    def token_types(self) -> int:
        """Rows of the token-type table."""
        value: int = self.values.get("type_vocab_size", _DEFAULT_TYPES)
        return value

    @property
    def task(self) -> str | None:
        """What the architecture's head is for; None for a bare encoder."""
        return self.family.tasks[self.architecture] or None

    def structure(self) -> dict[str, Any]:
        """Sizes, layer by layer."""
        layers = self.size("layers")
        return {
            "layers": layers,
            "hidden_size": self.size("hidden"),
            "attention_heads": [self.size("heads")] * layers,
            "ffn_width": [self.size("ffn")] * layers,
            "vocabulary": self.size("vocab_size"),
        }

    def max_length(self) -> int:
        """Tokens of the longest text."""
        return self.size("max_position_embeddings") - self.family.position_offset


def read_config(data: bytes) -> Config:
    """Parse, check and rewrite a config.json. Raises `Invalid` with a code per cause, pointing at the key."""
    given = read_object(data, "config.json", MAX_BYTES)
    refuse_code(given, "config.json")
    if given.get("quantization_config") is not None:
        raise _refused("quantization_config", "quantised weights are not taken", "QUANTIZATION_UNSUPPORTED")
    family = _family(given)
    architecture = _architecture(given, family)
    values = {key: value for key, value in given.items() if key in family.config_keys}
    for key, check in _CHECKS.items():
        if values.get(key) is not None and not check(values[key]):
            raise _refused(key, "has a value that is not supported")
    _check_sizes(values, family)
    labels = _labels(values)
    values["architectures"] = [architecture]
    return Config(family, architecture, values, labels)


def read_object(data: bytes, name: str, limit: int) -> dict[str, Any]:
    """A bounded JSON object of a model directory. Raises `Invalid`."""
    if len(data) > limit:
        raise Invalid(f"{name} is larger than {limit} bytes.", code="CONFIG_INVALID")
    try:
        value = strict_json.loads(data)
    except strict_json.JsonRefused as error:
        raise Invalid(f"{name} {error}.", code="CONFIG_INVALID") from error
    if not isinstance(value, dict):
        raise Invalid(f"{name} holds no JSON object.", code="CONFIG_INVALID")
    return value


def refuse_code(given: dict[str, Any], name: str) -> None:
    """Raises `Invalid` when a config names Python code that it wants loaded."""
    if given.get("auto_map") is not None or given.get("custom_pipelines") is not None:
        raise Invalid(
            f"{name} refers to code of its own (auto_map), and uploaded code is never run.", code="REMOTE_CODE_REFUSED"
        )


def _family(given: dict[str, Any]) -> Family:
    model_type = given.get("model_type")
    family = FAMILIES.get(model_type) if isinstance(model_type, str) else None
    if family is None:
        raise _refused("model_type", f"must be one of {', '.join(FAMILIES)}", "FAMILY_UNSUPPORTED")
    return family


def _architecture(given: dict[str, Any], family: Family) -> str:
    named = given.get("architectures")
    if named is None:
        return next(iter(family.tasks))
    if not isinstance(named, list) or len(named) != 1 or named[0] not in family.tasks:
        raise _refused("architectures", f"must name one of {', '.join(family.tasks)}", "ARCHITECTURE_UNSUPPORTED")
    return str(named[0])


def _check_sizes(values: dict[str, Any], family: Family) -> None:
    for name, cap in _CAPS.items():
        key = getattr(family, name, name)
        optional = name == "type_vocab_size"
        if optional and key not in values:
            continue
        if not _is_count(values.get(key)) or not 1 <= values[key] <= cap:
            raise _refused(key, f"must be an integer from 1 to {cap}")
    if values[family.hidden] % values[family.heads]:
        raise _refused(family.heads, f"must divide {family.hidden}")
    if values["max_position_embeddings"] <= family.position_offset:
        raise _refused("max_position_embeddings", f"must be more than {family.position_offset}")
    for key in ("pad_token_id", "bos_token_id", "eos_token_id"):
        if values.get(key) is not None and values[key] >= values["vocab_size"]:
            raise _refused(key, "must be less than vocab_size")


def _labels(values: dict[str, Any]) -> list[str] | None:
    """The labels by id; `label2id` and `num_labels` are made to agree with them."""
    count = values.pop("num_labels", None)
    if count is not None and not (_is_count(count) and 1 <= count <= MAX_LABELS):
        raise _refused("num_labels", f"must be an integer from 1 to {MAX_LABELS}")
    values.pop("label2id", None)
    names = values.pop("id2label", None)
    if names is None:
        return None if count is None else _name_labels(values, [f"LABEL_{number}" for number in range(count)])
    if not isinstance(names, dict) or not 1 <= len(names) <= MAX_LABELS:
        raise _refused("id2label", f"must map 1 to {MAX_LABELS} ids to names")
    labels = [names.get(str(number)) for number in range(len(names))]
    if not all(isinstance(label, str) and 0 < len(label) <= MAX_LABEL and label.isprintable() for label in labels):
        raise _refused("id2label", f"must map the ids from 0 on to names of 1 to {MAX_LABEL} printable characters")
    if len(set(labels)) != len(labels) or count not in (None, len(labels)):
        raise _refused("id2label", "must have as many different names as num_labels says")
    return _name_labels(values, [str(label) for label in labels])


def _name_labels(values: dict[str, Any], labels: list[str]) -> list[str]:
    values["id2label"] = {str(number): label for number, label in enumerate(labels)}
    values["label2id"] = {label: number for number, label in enumerate(labels)}
    return labels


def _refused(key: str, fault: str, code: str = "CONFIG_INVALID") -> Invalid:
    return Invalid(f"config.json: {key} {fault}.", code=code)
