"""Which values a key of a config.json may have: what a library would turn into code, a path or a giant is none."""

import re
from collections.abc import Callable
from typing import Any, TypeAlias

Check: TypeAlias = Callable[[Any], bool]

_ACTIVATIONS = frozenset(
    "gelu gelu_new gelu_fast gelu_pytorch_tanh gelu_python relu relu2 silu swish tanh mish sigmoid".split()
)
_DTYPES = frozenset({"float32", "float16", "bfloat16", "float64"})
_ROPE_TYPES = frozenset("default linear dynamic yarn longrope llama3".split())
_WORD = re.compile(r"[A-Za-z0-9._+-]{1,64}")
_LARGEST_LIST = 4096


def is_count(value: Any) -> bool:
    """An integer from 0 on that fits 31 bits."""
    return type(value) is int and 0 <= value < 1 << 31


def _is_bool(value: Any) -> bool:
    return isinstance(value, bool)


def _is_word(value: Any) -> bool:
    return isinstance(value, str) and _WORD.fullmatch(value) is not None


def _up_to(limit: int) -> Check:
    return lambda value: is_count(value) and value <= limit


def _is_small(value: Any) -> bool:
    return type(value) in (int, float) and 0 <= value <= 10


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and abs(value) <= 1e12


def _is_distance(value: Any) -> bool:
    """A count, or -1 where it is to follow from another."""
    return is_count(value) or (type(value) is int and value == -1)


def _is_ids(value: Any) -> bool:
    """One id of a token, or some."""
    return is_count(value) or _is_list_of(is_count)(value)


def _is_list_of(check: Check) -> Check:
    return lambda value: isinstance(value, list) and len(value) <= _LARGEST_LIST and all(map(check, value))


def _one_of(*values: Any) -> Check:
    return lambda value: any(type(value) is type(allowed) and value == allowed for allowed in values)


def _is_projection(value: Any) -> bool:
    """T5's feed-forward part: an activation, gated or not."""
    return isinstance(value, str) and value.removeprefix("gated-") in _ACTIVATIONS


def _is_attention_kinds(value: Any) -> bool:
    """DeBERTa's kinds of attention to positions, as a list or between bars."""
    kinds = value.lower().split("|") if isinstance(value, str) else value
    return isinstance(kinds, list) and all(kind in ("c2p", "p2c") for kind in kinds)


_ROPE: dict[str, Check] = {
    "rope_type": _one_of(*_ROPE_TYPES),
    "type": _one_of(*_ROPE_TYPES),
    "short_factor": _is_list_of(_is_number),
    "long_factor": _is_list_of(_is_number),
    "truncate": _is_bool,
    "original_max_position_embeddings": is_count,
    **dict.fromkeys(
        """rope_theta factor attention_factor beta_fast beta_slow low_freq_factor high_freq_factor mscale mscale_all_dim
        partial_rotary_factor""".split(),
        _is_number,
    ),
}


def _is_rope(value: Any) -> bool:
    return isinstance(value, dict) and all(key in _ROPE and _ROPE[key](item) for key, item in value.items())


_GENERATION: dict[str, Check] = {
    **dict.fromkeys("do_sample remove_invalid_values renormalize_logits".split(), _is_bool),
    **dict.fromkeys(
        """diversity_penalty epsilon_cutoff eta_cutoff length_penalty min_p repetition_penalty temperature top_p
        typical_p""".split(),
        _is_number,
    ),
    **dict.fromkeys(
        """encoder_no_repeat_ngram_size max_length max_new_tokens min_length min_new_tokens no_repeat_ngram_size
        top_k""".split(),
        _up_to(1 << 20),
    ),
    **dict.fromkeys("num_beam_groups num_beams num_return_sequences".split(), _up_to(64)),
    **dict.fromkeys(
        """begin_suppress_tokens suppress_tokens decoder_start_token_id forced_bos_token_id
        forced_eos_token_id""".split(),
        _is_ids,
    ),
    "bad_words_ids": _is_list_of(_is_list_of(is_count)),
    "exponential_decay_length_penalty": _is_list_of(_is_number),
    "early_stopping": lambda value: _is_bool(value) or value == "never",
}

CHECKS: dict[str, Check] = {
    **dict.fromkeys("hidden_act activation activation_function dense_act_fn conv_act".split(), _one_of(*_ACTIVATIONS)),
    **dict.fromkeys("pooler_hidden_act summary_activation".split(), _one_of(*_ACTIVATIONS)),
    **dict.fromkeys("torch_dtype dtype".split(), _one_of(*_DTYPES)),
    **dict.fromkeys("pad_token_id bos_token_id eos_token_id".split(), _is_ids),
    **dict.fromkeys("is_decoder add_cross_attention".split(), _one_of(False)),
    **dict.fromkeys("max_relative_positions position_buckets".split(), _is_distance),
    **dict.fromkeys(
        """use_cache gradient_checkpointing tie_word_embeddings tie_weights_ sinusoidal_pos_embds is_encoder_decoder
        summary_use_proj summary_proj_to_labels relative_attention share_att_key position_biased_input legacy
        share_encoder_decoder_embeddings scale_embedding is_gated_act scale_decoder_outputs scale_attn_weights
        scale_attn_by_inverse_layer_idx reorder_and_upcast_attn attention_bias mlp_bias
        use_sliding_window""".split(),
        _is_bool,
    ),
    **dict.fromkeys(
        """initializer_range initializer_factor init_std layer_norm_eps layer_norm_epsilon rms_norm_eps
        classifier_dropout classifier_dropout_prob cls_dropout hidden_dropout_prob attention_probs_dropout_prob dropout
        dropout_rate attention_dropout activation_dropout pooler_dropout qa_dropout seq_classif_dropout
        encoder_layerdrop decoder_layerdrop resid_pdrop embd_pdrop attn_pdrop summary_last_dropout
        summary_first_dropout""".split(),
        _is_small,
    ),
    **dict.fromkeys(
        "relative_attention_max_distance sliding_window max_window_layers pretraining_tp".split(), is_count
    ),
    **dict.fromkeys("rope_parameters rope_scaling".split(), _is_rope),
    **_GENERATION,
    "transformers_version": _is_word,
    "position_embedding_type": _one_of("absolute"),
    "problem_type": _one_of("single_label_classification", "multi_label_classification"),
    "summary_type": _one_of("first", "last", "mean", "cls_index"),
    "feed_forward_proj": _is_projection,
    "pos_att_type": _is_attention_kinds,
    "norm_rel_ebd": _one_of("none", "layer_norm"),
    "layer_types": _is_list_of(_one_of("full_attention", "sliding_attention")),
    "rope_theta": _is_number,
}
"""How the value of a key is checked that is neither a size nor about labels; null is always allowed."""
