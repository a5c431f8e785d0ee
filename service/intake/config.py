"""config.json at the door: parsed with bounds, checked value by value, rewritten from an allow-list.

What a newer transformers might obey (code references, kernels, paths, quantisers) never reaches it: a key that is not
on the family's list is dropped, or refuses the upload where dropping it would change the model. Of an unknown family
nothing is ever built, so its config is kept, less what a library could obey.
"""

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from service.catalog import FAMILIES, Family, family_of
from service.errors import Invalid
from service.intake import strict_json
from service.intake.config_values import CHECKS, is_count

MAX_BYTES = 1 << 20
MAX_LABELS = 100_000
MAX_LABEL = 256
LONGEST_TEXT = 8192
"""Tokens, where a family's config sets no limit."""
_MAX_LAYERS, _MAX_WIDTH, _MAX_FFN, _MAX_TABLE = 256, 65_536, 1 << 20, 1_000_000
_CAPS = {
    "type_vocab_size": 1024,
    "inner_group_num": 16,
    "conv_kernel_size": 64,
    "decoder_vocab_size": _MAX_TABLE,
}
"""The largest value of a size that only some families have."""
_TOKEN_IDS = (
    "pad_token_id bos_token_id eos_token_id decoder_start_token_id forced_bos_token_id forced_eos_token_id".split()
)
_FIRST_NEAR_LAYER = 28
"""Where a config with sliding windows does not say which layers have one."""
_MODEL_TYPE = re.compile(r"[a-z0-9][a-z0-9_.-]{0,49}")
_CLASS = re.compile(r"[A-Za-z][A-Za-z0-9_]{0,99}")
_OBEYED = re.compile(r"_.*|trust_remote_code|.*name_or_path|.*_implementation")


@dataclass(frozen=True)
class Config:
    """A config that passed: `values` is what is stored as config.json, sizes that were left out filled in."""

    family: Family
    architecture: str
    values: dict[str, Any]
    labels: list[str] | None = None
    """In the order of their ids; None when the config names none."""

    def size(self, role: str) -> int:
        """A size by its role, such as `layers` or `hidden`, whose key is the family's."""
        value: int = self.values[getattr(self.family, role)]
        return value

    @property
    def task(self) -> str | None:
        """What the architecture's head is for; None for one without a head."""
        return self.family.architectures.get(self.architecture)

    def structure(self) -> dict[str, Any]:
        """Sizes, layer by layer; of an unknown family only those whose keys are the usual ones."""
        if not self.family.known:
            return _visible_sizes(self.values)
        layers = self.size("layers")
        sizes = {
            "layers": layers,
            "hidden_size": self.size("hidden"),
            "attention_heads": [self.size("heads")] * layers,
            "ffn_width": [self.size("ffn")] * layers,
            "vocabulary": self.size("vocabulary"),
        }
        if self.family.kv_heads:
            sizes["key_value_heads"] = [self.size("kv_heads")] * layers
        if self.family.stacks:
            layers = self.size("decoder_layers")
            sizes["decoder_layers"] = layers
            sizes["decoder_attention_heads"] = [self.size("decoder_heads")] * layers
            sizes["decoder_ffn_width"] = [self.size("decoder_ffn")] * layers
        return sizes

    def max_length(self) -> int | None:
        """Tokens of the longest text; None where it is not known."""
        if not self.family.known:
            return None
        return self.size("positions") - self.family.position_offset if self.family.positions else LONGEST_TEXT


def read_config(data: bytes) -> Config:
    """Parse, check and rewrite a config.json. Raises `Invalid` with a code per cause, pointing at the key."""
    given = read_object(data, "config.json", MAX_BYTES)
    refuse_code(given, "config.json")
    if given.get("quantization_config") is not None:
        raise _refused("quantization_config", "quantised weights are not taken", "QUANTIZATION_UNSUPPORTED")
    family = _family(given)
    architecture = _architecture(given, family)
    if not family.known:
        return Config(family, architecture, without_obeyed(given))
    values = {key: value for key, value in given.items() if key in family.config_keys}
    for key, check in CHECKS.items():
        if values.get(key) is not None and not check(values[key]):
            raise _refused(key, "has a value that is not supported")
    _check_sizes(values, family)
    _check_agreement(values, family)
    labels = _labels(values)
    if family.architectures[architecture] == "question-answering":
        labels = None
        _drop_labels(values)
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
    """Raises `Invalid` when a config, or a config within it, names Python code that it wants loaded."""
    for part in _objects(given):
        if part.get("auto_map") is not None or part.get("custom_pipelines") is not None:
            raise Invalid(
                f"{name} refers to code of its own (auto_map), and uploaded code is never run.",
                code="REMOTE_CODE_REFUSED",
            )


def _objects(value: Any) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        yield value
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        yield from _objects(item)


def without_obeyed(value: Any) -> Any:
    """A JSON value less every key that makes a library look for code, kernels or other models."""
    if isinstance(value, list):
        return [without_obeyed(item) for item in value]
    if not isinstance(value, dict):
        return value
    return {key: without_obeyed(item) for key, item in value.items() if not _OBEYED.fullmatch(key)}


def _family(given: dict[str, Any]) -> Family:
    model_type = given.get("model_type")
    if not isinstance(model_type, str) or not _MODEL_TYPE.fullmatch(model_type):
        known = ", ".join(FAMILIES)
        raise _refused("model_type", f"must name the architecture, best one of {known}", "FAMILY_UNSUPPORTED")
    return family_of(model_type)


def _architecture(given: dict[str, Any], family: Family) -> str:
    named = given.get("architectures")
    if not family.known:
        first = named[0] if isinstance(named, list) and named else None
        return first if isinstance(first, str) and _CLASS.fullmatch(first) else "unknown"
    if named is None:
        return next(iter(family.architectures))
    if not isinstance(named, list) or len(named) != 1 or named[0] not in family.architectures:
        allowed = ", ".join(family.architectures)
        raise _refused("architectures", f"must name one of {allowed}", "ARCHITECTURE_UNSUPPORTED")
    return str(named[0])


def _visible_sizes(values: dict[str, Any]) -> dict[str, Any]:
    def size(key: str) -> int | None:
        value = values.get(key)
        return value if is_count(value) else None

    return {
        "layers": size("num_hidden_layers"),
        "hidden_size": size("hidden_size"),
        "attention_heads": [],
        "ffn_width": [],
        "vocabulary": size("vocab_size"),
    }


def _check_sizes(values: dict[str, Any], family: Family) -> None:
    """Every size in its bounds; those that were left out are filled in, as the library would."""
    caps = {
        family.layers: _MAX_LAYERS,
        family.decoder_layers: _MAX_LAYERS,
        family.heads: _MAX_WIDTH,
        family.decoder_heads: _MAX_WIDTH,
        family.hidden: _MAX_WIDTH,
        family.ffn: _MAX_FFN,
        family.decoder_ffn: _MAX_FFN,
        family.vocabulary: _MAX_TABLE,
        family.positions: _MAX_TABLE,
    }
    for key, cap in caps.items():
        if key is not None and key not in family.defaults:
            _check_size(values, key, cap)
    for key, default in family.defaults.items():
        filled = default(values)
        if values.get(key) is None:
            values[key] = filled
        _check_size(values, key, caps.get(key) or _CAPS.get(key, _MAX_WIDTH), least=min(1, filled))


def _check_size(values: dict[str, Any], key: str, cap: int, least: int = 1) -> None:
    if not is_count(values.get(key)) or not least <= values[key] <= cap:
        raise _refused(key, f"must be an integer from {least} to {cap}")


def _check_agreement(values: dict[str, Any], family: Family) -> None:
    """What two keys say together."""
    if family.head_width is None or family.heads_divide_hidden:
        for key in {family.heads, family.decoder_heads or family.heads}:
            if values[family.hidden] % values[key]:
                raise _refused(key, f"must divide {family.hidden}")
    if family.kv_heads and values[family.heads] % values[family.kv_heads]:
        raise _refused(family.kv_heads, f"must divide {family.heads}")
    if family.kv_heads and family.head_width and values[family.head_width] % 2:
        raise _refused(family.head_width, "must be even")
    if family.positions and values[family.positions] <= family.position_offset:
        raise _refused(family.positions, f"must be more than {family.position_offset}")
    if values.get("is_encoder_decoder") not in (None, bool(family.stacks)):
        raise _refused("is_encoder_decoder", "does not fit model_type")
    if values.get("layer_types") is not None and len(values["layer_types"]) != values[family.layers]:
        raise _refused("layer_types", f"must have one entry for each of {family.layers}")
    _check_token_ids(values)
    _check_variants(values)


def _check_token_ids(values: dict[str, Any]) -> None:
    rows = max(values["vocab_size"], values.get("decoder_vocab_size") or 0)
    for key in _TOKEN_IDS:
        given = values.get(key)
        if given is not None and max(given if isinstance(given, list) else [given], default=0) >= rows:
            raise _refused(key, "must be less than vocab_size")


def _check_variants(values: dict[str, Any]) -> None:
    """Keys by which one family is built in more than one way."""
    if values.get("num_hidden_groups", 1) > 1:
        raise _refused("num_hidden_groups", "must be 1 in this version: all layers share one set of weights")
    if "pooler_hidden_size" in values and values["pooler_hidden_size"] != values["hidden_size"]:
        raise _refused("pooler_hidden_size", "must be the hidden_size")
    if "conv_groups" in values and values["hidden_size"] % max(1, values["conv_groups"]):
        raise _refused("conv_groups", "must divide hidden_size")
    if _layers_differ(values):
        raise _refused("layer_types", "must be the same for every layer in this version")
    gated = str(values.get("feed_forward_proj") or "relu").startswith("gated-")
    if values.get("is_gated_act") not in (None, gated):
        raise _refused("is_gated_act", "does not fit feed_forward_proj")


def _layers_differ(values: dict[str, Any]) -> bool:
    """Whether some layers look at all tokens and some at near ones only."""
    if values.get("layer_types") is not None:
        return len(set(values["layer_types"])) > 1
    if not values.get("use_sliding_window") or values.get("sliding_window", 1) is None:
        return False
    first_near = values.get("max_window_layers")
    return 0 < int(_FIRST_NEAR_LAYER if first_near is None else first_near) < int(values["num_hidden_layers"])


def _labels(values: dict[str, Any]) -> list[str] | None:
    """The labels by id; `label2id` and `num_labels` are made to agree with them."""
    count = values.pop("num_labels", None)
    if count is not None and not (is_count(count) and 1 <= count <= MAX_LABELS):
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


def _drop_labels(values: dict[str, Any]) -> None:
    """Start and end of an answer are no labels, and a head for them has two rows whatever a config says."""
    for key in ("id2label", "label2id"):
        values.pop(key, None)


def _refused(key: str, fault: str, code: str = "CONFIG_INVALID") -> Invalid:
    return Invalid(f"config.json: {key} {fault}.", code=code)
