"""Decoders: a text in, its next token out."""

from service.catalog.family import Default, Family
from service.catalog.keys import COMMON, GENERATION, LABELS, SUMMARY, words

TASKS = ("causal-lm", "text-classification")
STOCK = ("attention_heads", "ffn_neurons", "layers", "hidden_size", "vocabulary", "weights")
_ROPE = (
    COMMON
    | LABELS
    | GENERATION
    | words(
        """hidden_size intermediate_size num_hidden_layers num_attention_heads num_key_value_heads head_dim hidden_act
        max_position_embeddings initializer_range rms_norm_eps rope_parameters rope_scaling rope_theta
        attention_dropout classifier_dropout"""
    )
)
_WINDOW = words("sliding_window use_sliding_window max_window_layers layer_types")


def _heads(prefix: str) -> dict[str, str | None]:
    return {
        f"{prefix}Model": None,
        f"{prefix}ForCausalLM": "causal-lm",
        f"{prefix}ForSequenceClassification": "text-classification",
    }


def _shared_by(key_value_heads: Default, head_width: Default) -> dict[str, Default]:
    return {"num_key_value_heads": key_value_heads, "head_dim": head_width}


def _rope(model_type: str, prefix: str, keys: str, kv: Default, width: Default, *, divides: bool = False) -> Family:
    """A family with rotary positions, whose config says how wide a head is."""
    return Family(
        model_type,
        _heads(prefix),
        TASKS,
        kv_heads="num_key_value_heads",
        head_width="head_dim",
        defaults=_shared_by(kv, width),
        config_keys=_ROPE | words(keys),
        stock_structures=STOCK,
        heads_divide_hidden=divides,
    )


LLAMA = _rope(
    "llama",
    "Llama",
    "attention_bias mlp_bias pretraining_tp",
    lambda config: int(config["num_attention_heads"]),
    lambda config: int(config["hidden_size"]) // int(config["num_attention_heads"]),
    divides=True,
)
QWEN2 = _rope(
    "qwen2",
    "Qwen2",
    " ".join(_WINDOW),
    lambda _: 32,
    lambda config: int(config["hidden_size"]) // int(config["num_attention_heads"]),
)
QWEN3 = _rope("qwen3", "Qwen3", "attention_bias " + " ".join(_WINDOW), lambda _: 32, lambda _: 128)
MISTRAL = _rope(
    "mistral",
    "Mistral",
    "sliding_window",
    lambda _: 8,
    lambda config: int(config["hidden_size"]) // int(config["num_attention_heads"]),
)
GPT2 = Family(
    "gpt2",
    {"GPT2Model": None, "GPT2LMHeadModel": "causal-lm", "GPT2ForSequenceClassification": "text-classification"},
    TASKS,
    layers="n_layer",
    heads="n_head",
    ffn="n_inner",
    hidden="n_embd",
    positions="n_positions",
    defaults={"n_inner": lambda config: 4 * int(config["n_embd"])},
    config_keys=COMMON
    | LABELS
    | GENERATION
    | SUMMARY
    | words(
        """n_positions n_embd n_layer n_head n_inner activation_function resid_pdrop embd_pdrop attn_pdrop
        layer_norm_epsilon initializer_range scale_attn_weights scale_attn_by_inverse_layer_idx
        reorder_and_upcast_attn add_cross_attention"""
    ),
)
