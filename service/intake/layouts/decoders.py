"""Tensors of decoders."""

from service.intake.layouts.shapes import Layout, Shapes, Values, labels_of, linear, norm, repeated, table, tied


def _heads(values: Values, hidden: int, *, tie: bool) -> dict[str, Shapes]:
    output = table("lm_head", values["vocab_size"], hidden)
    return {
        "causal-lm": {} if tie else output,
        "text-classification": linear("score", labels_of(values), hidden, bias=False),
    }


def gpt2(values: Values) -> Layout:
    """GPT-2 (Radford et al., 2019): weights stand with their inputs as rows, query, key and value in one."""
    hidden, wide, layers = values["n_embd"], values["n_inner"], values["n_layer"]
    layer = {
        **norm("ln_1", hidden),
        **_transposed("attn.c_attn", hidden, 3 * hidden),
        **_transposed("attn.c_proj", hidden, hidden),
        **norm("ln_2", hidden),
        **_transposed("mlp.c_fc", hidden, wide),
        **_transposed("mlp.c_proj", wide, hidden),
    }
    same = tied(values, "lm_head.weight", "wte.weight")
    return Layout(
        "transformer.",
        {
            **table("wte", values["vocab_size"], hidden),
            **table("wpe", values["n_positions"], hidden),
            **repeated("h.", layers, layer),
            **norm("ln_f", hidden),
        },
        {"h.": layers},
        _heads(values, hidden, tie=bool(same)),
        same=same,
    )


def _transposed(name: str, inputs: int, outputs: int) -> Shapes:
    return {f"{name}.weight": (inputs, outputs), f"{name}.bias": (outputs,)}


def llama(values: Values) -> Layout:
    """Llama (Touvron et al., 2023) and Mistral (Jiang et al., 2023)."""
    biased = bool(values.get("attention_bias"))
    return _rope(values, biased, biased)


def qwen2(values: Values) -> Layout:
    """Qwen2 (Yang et al., 2024): query, key and value have a bias, the output of attention has none."""
    return _rope(values, True, False)


def qwen3(values: Values) -> Layout:
    """Qwen3 (Yang et al., 2025): query and key are normed, head by head."""
    width = values["head_dim"]
    normed = {**norm("self_attn.q_norm", width, bias=False), **norm("self_attn.k_norm", width, bias=False)}
    biased = bool(values.get("attention_bias"))
    return _rope(values, biased, biased, normed)


def _rope(values: Values, bias_in: bool, bias_out: bool, extra: Shapes | None = None) -> Layout:
    hidden, wide, width = values["hidden_size"], values["intermediate_size"], values["head_dim"]
    queries, keys = values["num_attention_heads"] * width, values["num_key_value_heads"] * width
    bias = bool(values.get("mlp_bias"))
    layer = {
        **norm("input_layernorm", hidden, bias=False),
        **linear("self_attn.q_proj", queries, hidden, bias=bias_in),
        **linear("self_attn.k_proj", keys, hidden, bias=bias_in),
        **linear("self_attn.v_proj", keys, hidden, bias=bias_in),
        **linear("self_attn.o_proj", hidden, queries, bias=bias_out),
        **(extra or {}),
        **norm("post_attention_layernorm", hidden, bias=False),
        **linear("mlp.gate_proj", wide, hidden, bias=bias),
        **linear("mlp.up_proj", wide, hidden, bias=bias),
        **linear("mlp.down_proj", hidden, wide, bias=bias),
    }
    layers = values["num_hidden_layers"]
    same = tied(values, "lm_head.weight", "embed_tokens.weight", default=False)
    return Layout(
        "model.",
        {
            **table("embed_tokens", values["vocab_size"], hidden),
            **repeated("layers.", layers, layer),
            **norm("norm", hidden, bias=False),
        },
        {"layers.": layers},
        _heads(values, hidden, tie=bool(same)),
        same=same,
    )
