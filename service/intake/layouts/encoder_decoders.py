"""Tensors of encoder-decoders."""

from service.intake.layouts.shapes import Layout, Shapes, Values, linear, norm, repeated, table

_OUTPUT = "lm_head.weight"


def marian(values: Values) -> Layout:
    """Marian (Junczys-Dowmunt et al., 2018): positions are sines, computed where a file lacks them."""
    width, positions = values["d_model"], values["max_position_embeddings"]
    sines: Shapes = {f"{stack}.embed_positions.weight": (positions, width) for stack in ("encoder", "decoder")}
    rows = values["decoder_vocab_size"] if values.get("share_encoder_decoder_embeddings") is False else None
    return _bart(values, {}, sines, rows)


def bart(values: Values) -> Layout:
    """BART (Lewis et al., 2020): learned positions, two rows of which are spent on padding."""
    width, positions = values["d_model"], values["max_position_embeddings"]
    body: Shapes = {}
    for stack in ("encoder", "decoder"):
        body |= table(f"{stack}.embed_positions", positions + 2, width)
        body |= norm(f"{stack}.layernorm_embedding", width)
    return _bart(values, body, {}, None)


def _bart(values: Values, body: Shapes, computed: Shapes, decoder_rows: int | None) -> Layout:
    """`decoder_rows` is the decoder's own vocabulary, None where both stacks read the same."""
    words, width = values["vocab_size"], values["d_model"]
    rows = words if decoder_rows is None else decoder_rows
    embeddings, same, output = _embeddings(values, decoder_rows)
    encoder, decoder = values["encoder_layers"], values["decoder_layers"]
    layers = {
        **repeated("encoder.layers.", encoder, _layer(width, values["encoder_ffn_dim"])),
        **repeated("decoder.layers.", decoder, _layer(width, values["decoder_ffn_dim"], crossed=True)),
    }
    return Layout(
        "model.",
        {**embeddings, **body, **layers},
        {"encoder.layers.": encoder, "decoder.layers.": decoder},
        {"translation": output},
        computed=computed,
        buffers={"final_logits_bias": (1, rows)},
        same=same,
    )


def _embeddings(values: Values, decoder_rows: int | None) -> tuple[Shapes, dict[str, tuple[str, ...]], Shapes]:
    """Tables of the body, the other names of each, and the output where it is a tensor of its own."""
    words, width = values["vocab_size"], values["d_model"]
    tie = values.get("tie_word_embeddings") in (None, True)
    encoder, decoder = "encoder.embed_tokens.weight", "decoder.embed_tokens.weight"
    output: Shapes = {} if tie else {_OUTPUT: (decoder_rows or words, width)}
    if decoder_rows is not None:
        tables: Shapes = {encoder: (words, width), decoder: (decoder_rows, width)}
        return tables, {decoder: (_OUTPUT,)} if tie else {}, output
    if tie:
        return table("shared", words, width), {"shared.weight": (encoder, decoder, _OUTPUT)}, output
    return {**table("shared", words, width), encoder: (words, width), decoder: (words, width)}, {}, output


def _attention(name: str, width: int) -> Shapes:
    made = norm(f"{name}_layer_norm", width)
    for part in ("q_proj", "k_proj", "v_proj", "out_proj"):
        made |= linear(f"{name}.{part}", width, width)
    return made


def _layer(width: int, wide: int, *, crossed: bool = False) -> Shapes:
    return {
        **_attention("self_attn", width),
        **(_attention("encoder_attn", width) if crossed else {}),
        **linear("fc1", wide, width),
        **linear("fc2", width, wide),
        **norm("final_layer_norm", width),
    }


def t5(values: Values) -> Layout:
    """T5 (Raffel et al., 2020), the gated kind too: no biases, distances between tokens in the first layer."""
    words, width = values["vocab_size"], values["d_model"]
    encoder, decoder = values["num_layers"], values["num_decoder_layers"]
    distances = (values["relative_attention_num_buckets"], values["num_heads"])
    body: Shapes = {"shared.weight": (words, width)}
    for stack, layers, parts in (("encoder", encoder, 2), ("decoder", decoder, 3)):
        body |= repeated(f"{stack}.block.", layers, _block(values, parts))
        body[f"{stack}.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] = distances
        body |= norm(f"{stack}.final_layer_norm", width, bias=False)
    return Layout(
        "",
        body,
        {"encoder.block.": encoder, "decoder.block.": decoder},
        {"translation": {}},
        same={"shared.weight": ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight", _OUTPUT)},
    )


def _block(values: Values, parts: int) -> Shapes:
    """A layer of two parts, attention and feed-forward; with three, attention to the encoder stands between."""
    width, wide, heads = values["d_model"], values["d_ff"], values["num_heads"] * values["d_kv"]
    gated = str(values.get("feed_forward_proj") or "relu").startswith("gated-")
    last = f"layer.{parts - 1}"
    made = linear(f"{last}.DenseReluDense.wo", width, wide, bias=False)
    for name in ("wi_0", "wi_1") if gated else ("wi",):
        made |= linear(f"{last}.DenseReluDense.{name}", wide, width, bias=False)
    for part, name in enumerate(("SelfAttention", "EncDecAttention")[: parts - 1]):
        for letter in "qkv":
            made |= linear(f"layer.{part}.{name}.{letter}", heads, width, bias=False)
        made |= linear(f"layer.{part}.{name}.o", width, heads, bias=False)
    for part in range(parts):
        made |= norm(f"layer.{part}.layer_norm", width, bias=False)
    return made
