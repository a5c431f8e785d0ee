"""config.json: what is kept builds the same network, and nothing in it can be obeyed."""

import json
from typing import Any

import pytest
import transformers

from service.catalog import FAMILIES
from service.catalog.keys import LABELS
from service.errors import Invalid
from service.intake.config import read_config
from service.intake.config_values import CHECKS
from tests.models import SIZES

_HANDLED = LABELS | {"architectures", "model_type"}


def _read(family: str, **changes: Any) -> Any:
    config = {"model_type": family, **SIZES[family], **changes}
    return read_config(json.dumps(config).encode())


def _sizes(family: str) -> set[str | None]:
    known = FAMILIES[family]
    roles = "layers heads ffn hidden vocabulary positions decoder_layers decoder_heads decoder_ffn kv_heads head_width"
    return {getattr(known, role) for role in roles.split()} | set(known.defaults)


@pytest.mark.parametrize("family", FAMILIES)
def test_no_key_is_kept_unchecked(family: str) -> None:
    assert FAMILIES[family].config_keys - _HANDLED - _sizes(family) <= CHECKS.keys()
    assert _sizes(family) - {None} <= FAMILIES[family].config_keys


@pytest.mark.parametrize("family", FAMILIES)
def test_every_setting_of_the_library_is_kept(family: str) -> None:
    """A setting that shapes a network and that we would drop would change it."""
    default = transformers.AutoConfig.for_model(family)
    general = set(transformers.PreTrainedConfig().to_dict()) | {"_name_or_path", "num_labels", "output_attentions"}
    assert set(default.to_dict()) - general - FAMILIES[family].config_keys == set()


@pytest.mark.parametrize("family", FAMILIES)
def test_sizes_that_are_left_out_are_the_librarys(family: str) -> None:
    built = transformers.AutoConfig.for_model(family, **SIZES[family])
    values = _read(family).values
    for key in FAMILIES[family].defaults:
        explicit = getattr(built, key, None)
        assert explicit is None or values[key] == explicit, key


BAD: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"rope_parameters": {"rope_type": "evil"}}),
    ("llama", {"rope_parameters": {"rope_type": "default", "path": "/etc"}}),
    ("llama", {"rope_scaling": "linear"}),
    ("llama", {"rope_theta": "1e4"}),
    ("llama", {"head_dim": 7}),
    ("llama", {"num_key_value_heads": 3}),
    ("llama", {"num_attention_heads": 3, "num_key_value_heads": 3}),
    ("llama", {"hidden_act": "os.system"}),
    ("llama", {"is_encoder_decoder": True}),
    ("qwen2", {"layer_types": ["full_attention"]}),
    ("qwen2", {"layer_types": ["full_attention", "linear_attention"]}),
    ("qwen2", {"layer_types": ["full_attention", "sliding_attention"]}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 4, "max_window_layers": 1}),
    ("qwen3", {"sliding_window": -1}),
    ("mistral", {"sliding_window": 1.5}),
    ("gpt2", {"n_layer": 10_000_000}),
    ("gpt2", {"n_inner": 0}),
    ("gpt2", {"n_head": 5}),
    ("gpt2", {"add_cross_attention": True}),
    ("marian", {"decoder_attention_heads": 5}),
    ("marian", {"decoder_start_token_id": 120}),
    ("marian", {"is_encoder_decoder": False}),
    ("marian", {"num_beams": 1_000_000}),
    ("marian", {"bad_words_ids": [["a"]]}),
    ("marian", {"decoder_vocab_size": 1 << 30}),
    ("bart", {"forced_bos_token_id": -1}),
    ("t5", {"feed_forward_proj": "gated-evil"}),
    ("t5", {"feed_forward_proj": "relu", "is_gated_act": True}),
    ("t5", {"num_decoder_layers": 0}),
    ("t5", {"dense_act_fn": "exec"}),
    ("albert", {"num_hidden_groups": 2}),
    ("albert", {"inner_group_num": 17}),
    ("deberta-v2", {"pos_att_type": ["p2p"]}),
    ("deberta-v2", {"pos_att_type": "c2p|exec"}),
    ("deberta-v2", {"pooler_hidden_size": 64}),
    ("deberta-v2", {"norm_rel_ebd": "batch_norm"}),
    ("deberta-v2", {"conv_kernel_size": 3, "conv_groups": 5}),
    ("electra", {"summary_type": "attn"}),
    ("electra", {"embedding_size": 1 << 20}),
    ("bert", {"problem_type": "regression"}),
]


@pytest.mark.parametrize(("family", "changes"), BAD, ids=[f"{family}-{list(keys)[-1]}" for family, keys in BAD])
def test_values_that_no_network_should_have(family: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Invalid) as caught:
        _read(family, **changes)
    assert caught.value.code == "CONFIG_INVALID"
    assert any(key in caught.value.detail for key in (*changes, "max_window_layers", "layer_types"))


def test_a_head_for_questions_has_no_labels() -> None:
    config = _read("bert", architectures=["BertForQuestionAnswering"], num_labels=7)
    assert (config.task, config.labels) == ("question-answering", None)
    assert not LABELS & config.values.keys()


def test_generation_settings_of_old_configs_stay() -> None:
    given = {"num_beams": 6, "bad_words_ids": [[0]], "max_length": 512, "forced_eos_token_id": 3}
    assert given.items() <= _read("marian", **given).values.items()


@pytest.mark.parametrize("key", ["auto_map", "custom_pipelines"])
@pytest.mark.parametrize("family", ["bert", "other"])
def test_code_is_refused_at_any_depth(family: str, key: str) -> None:
    config = {"model_type": family, **SIZES["bert"], "parts": [{"inner": {key: {"AutoModel": "evil.Model"}}}]}
    with pytest.raises(Invalid) as caught:
        read_config(json.dumps(config).encode())
    assert caught.value.code == "REMOTE_CODE_REFUSED"


@pytest.mark.parametrize("name", ["", "../bert", "Bert", "b" * 51, ["bert"], None, 1])
def test_a_family_has_a_name(name: Any) -> None:
    with pytest.raises(Invalid) as caught:
        read_config(json.dumps({**SIZES["bert"], "model_type": name}).encode())
    assert caught.value.code == "FAMILY_UNSUPPORTED"
