"""Tensors of encoders."""

from service.intake.layouts.shapes import Layout, Shapes, Values, labels_of, linear, norm, repeated, table, tied

_WORDS = "embeddings.word_embeddings.weight"


def _embeddings(values: Values, width: int, *, positions: bool = True) -> Shapes:
    return {
        **table("embeddings.word_embeddings", values["vocab_size"], width),
        **table("embeddings.position_embeddings", values["max_position_embeddings"] * positions, width),
        **table("embeddings.token_type_embeddings", values.get("type_vocab_size", 0), width),
    }


def _bert_layer(values: Values, suffix: str = "") -> Shapes:
    hidden, wide = values["hidden_size"], values["intermediate_size"]
    return {
        **linear(f"attention.self.query{suffix}", hidden, hidden),
        **linear(f"attention.self.key{suffix}", hidden, hidden),
        **linear(f"attention.self.value{suffix}", hidden, hidden),
        **linear("attention.output.dense", hidden, hidden),
        **norm("attention.output.LayerNorm", hidden),
        **linear("intermediate.dense", wide, hidden),
        **linear("output.dense", hidden, wide),
        **norm("output.LayerNorm", hidden),
    }


def _bert_body(values: Values) -> Shapes:
    hidden = values["hidden_size"]
    return {
        **_embeddings(values, hidden),
        **norm("embeddings.LayerNorm", hidden),
        **repeated("encoder.layer.", values["num_hidden_layers"], _bert_layer(values)),
    }


def _token_heads(values: Values, hidden: int) -> dict[str, Shapes]:
    return {
        "token-classification": linear("classifier", labels_of(values), hidden),
        "question-answering": linear("qa_outputs", 2, hidden),
    }


def _words_head(values: Values, width: int, dense: str, norm_: str, bias: str, decoder: str) -> Shapes:
    """A head that guesses hidden words; its last weight is the embedding table unless the config says otherwise."""
    hidden, words = values["hidden_size"], values["vocab_size"]
    head = {**linear(dense, width, hidden), **norm(norm_, width), bias: (words,)}
    return head if tied(values, "", "") else {**head, **linear(decoder, words, width)}


def _same(values: Values, head: str) -> dict[str, tuple[str, ...]]:
    """The last layer of a head for hidden words that is tied to the table, its bias to the head's own."""
    weight = tied(values, f"{head}.decoder.weight", _WORDS)
    return {f"{head}.bias": (f"{head}.decoder.bias",), **weight} if weight else {}


def bert(values: Values) -> Layout:
    """BERT (Devlin et al., 2019)."""
    hidden = values["hidden_size"]
    words = _words_head(
        values,
        hidden,
        "cls.predictions.transform.dense",
        "cls.predictions.transform.LayerNorm",
        "cls.predictions.bias",
        "cls.predictions.decoder",
    )
    pooler = linear("bert.pooler.dense", hidden, hidden)
    return Layout(
        "bert.",
        _bert_body(values),
        {"encoder.layer.": values["num_hidden_layers"]},
        {
            "text-classification": {**pooler, **linear("classifier", labels_of(values), hidden)},
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        {**linear("pooler.dense", hidden, hidden), **linear("cls.seq_relationship", 2, hidden)},
        same=_same(values, "cls.predictions"),
    )


def roberta(values: Values) -> Layout:
    """RoBERTa (Liu et al., 2019) and XLM-RoBERTa (Conneau et al., 2020)."""
    hidden = values["hidden_size"]
    words = _words_head(values, hidden, "lm_head.dense", "lm_head.layer_norm", "lm_head.bias", "lm_head.decoder")
    return Layout(
        "roberta.",
        _bert_body(values),
        {"encoder.layer.": values["num_hidden_layers"]},
        {
            "text-classification": _two_layers(values, hidden),
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        linear("pooler.dense", hidden, hidden),
        same=_same(values, "lm_head"),
    )


def _two_layers(values: Values, hidden: int) -> Shapes:
    return {
        **linear("classifier.dense", hidden, hidden),
        **linear("classifier.out_proj", labels_of(values), hidden),
    }


def distilbert(values: Values) -> Layout:
    """DistilBERT (Sanh et al., 2019)."""
    hidden, wide, layers = values["dim"], values["hidden_dim"], values["n_layers"]
    layer = {
        **linear("attention.q_lin", hidden, hidden),
        **linear("attention.k_lin", hidden, hidden),
        **linear("attention.v_lin", hidden, hidden),
        **linear("attention.out_lin", hidden, hidden),
        **norm("sa_layer_norm", hidden),
        **linear("ffn.lin1", wide, hidden),
        **linear("ffn.lin2", hidden, wide),
        **norm("output_layer_norm", hidden),
    }
    words = _words_head(
        {**values, "hidden_size": hidden},
        hidden,
        "vocab_transform",
        "vocab_layer_norm",
        "vocab_projector.bias",
        "vocab_projector",
    )
    classifier = linear("classifier", labels_of(values), hidden)
    return Layout(
        "distilbert.",
        {
            **_embeddings(values, hidden),
            **norm("embeddings.LayerNorm", hidden),
            **repeated("transformer.layer.", layers, layer),
        },
        {"transformer.layer.": layers},
        {
            "text-classification": {**linear("pre_classifier", hidden, hidden), **classifier},
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        same=tied(values, "vocab_projector.weight", _WORDS),
    )


def electra(values: Values) -> Layout:
    """ELECTRA (Clark et al., 2020): its embeddings may be narrower than its layers."""
    hidden, width = values["hidden_size"], values["embedding_size"]
    words = _words_head(
        values,
        width,
        "generator_predictions.dense",
        "generator_predictions.LayerNorm",
        "generator_lm_head.bias",
        "generator_lm_head",
    )
    layers = values["num_hidden_layers"]
    return Layout(
        "electra.",
        {
            **_embeddings(values, width),
            **norm("embeddings.LayerNorm", width),
            **(linear("embeddings_project", hidden, width) if width != hidden else {}),
            **repeated("encoder.layer.", layers, _bert_layer(values)),
        },
        {"encoder.layer.": layers},
        {
            "text-classification": _two_layers(values, hidden),
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        {
            **linear("discriminator_predictions.dense", hidden, hidden),
            **linear("discriminator_predictions.dense_prediction", 1, hidden),
        },
        same=tied(values, "generator_lm_head.weight", _WORDS),
    )


def albert(values: Values) -> Layout:
    """ALBERT (Lan et al., 2020): layers that share their weights, and narrow embeddings."""
    hidden, wide, width = values["hidden_size"], values["intermediate_size"], values["embedding_size"]
    layer = {
        **linear("attention.query", hidden, hidden),
        **linear("attention.key", hidden, hidden),
        **linear("attention.value", hidden, hidden),
        **linear("attention.dense", hidden, hidden),
        **norm("attention.LayerNorm", hidden),
        **linear("ffn", wide, hidden),
        **linear("ffn_output", hidden, wide),
        **norm("full_layer_layer_norm", hidden),
    }
    group = repeated("albert_layers.", values["inner_group_num"], layer)
    pooler = linear("albert.pooler", hidden, hidden)
    words = _words_head(
        values, width, "predictions.dense", "predictions.LayerNorm", "predictions.bias", "predictions.decoder"
    )
    return Layout(
        "albert.",
        {
            **_embeddings(values, width),
            **norm("embeddings.LayerNorm", width),
            **linear("encoder.embedding_hidden_mapping_in", hidden, width),
            **repeated("encoder.albert_layer_groups.", 1, group),
        },
        {"encoder.albert_layer_groups.": 1},
        {
            "text-classification": {**pooler, **linear("classifier", labels_of(values), hidden)},
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        {**linear("pooler", hidden, hidden), **linear("sop_classifier.classifier", 2, hidden)},
        same=_same(values, "predictions"),
    )


def deberta_v2(values: Values) -> Layout:
    """DeBERTa, versions 2 and 3 (He et al., 2021): positions relative to each other, projected in several ways."""
    hidden = values["hidden_size"]
    layers = values["num_hidden_layers"]
    predictions = "cls.predictions" if values.get("legacy") in (None, True) else "lm_predictions.lm_head"
    transform = f"{predictions}.transform" if predictions == "cls.predictions" else predictions
    words = {
        **linear(f"{transform}.dense", hidden, hidden),
        **norm(f"{transform}.LayerNorm", hidden),
        f"{predictions}.bias": (values["vocab_size"],),
    }
    return Layout(
        "deberta.",
        {
            **_embeddings(values, hidden, positions=values.get("position_biased_input") in (None, True)),
            **norm("embeddings.LayerNorm", hidden),
            **_relative_positions(values),
            **_convolution(values),
            **repeated("encoder.layer.", layers, _bert_layer(values, "_proj") | _position_projections(values)),
        },
        {"encoder.layer.": layers},
        {
            "text-classification": {
                **linear("pooler.dense", hidden, hidden),
                **linear("classifier", labels_of(values), hidden),
            },
            "masked-lm": words,
            **_token_heads(values, hidden),
        },
        same=_same(values, predictions),
    )


def _relative_positions(values: Values) -> Shapes:
    hidden = values["hidden_size"]
    normed = norm("encoder.LayerNorm", hidden) if values.get("norm_rel_ebd") == "layer_norm" else {}
    if not values.get("relative_attention"):
        return normed
    farthest, buckets = values.get("max_relative_positions") or -1, values.get("position_buckets") or -1
    if farthest < 1:
        farthest = values["max_position_embeddings"]
    rows = 2 * (buckets if buckets > 0 else farthest)
    return {**table("encoder.rel_embeddings", rows, hidden), **normed}


def _position_projections(values: Values) -> Shapes:
    if not values.get("relative_attention") or values.get("share_att_key"):
        return {}
    kinds, hidden = values.get("pos_att_type") or (), values["hidden_size"]
    names = {"c2p": "attention.self.pos_key_proj", "p2c": "attention.self.pos_query_proj"}
    made: Shapes = {}
    for kind, name in names.items():
        made |= linear(name, hidden, hidden) if kind in kinds else {}
    return made


def _convolution(values: Values) -> Shapes:
    kernel, hidden = values["conv_kernel_size"], values["hidden_size"]
    if not kernel:
        return {}
    shape = (hidden, hidden // values["conv_groups"], kernel)
    return {
        "encoder.conv.conv.weight": shape,
        "encoder.conv.conv.bias": (hidden,),
        **norm("encoder.conv.LayerNorm", hidden),
    }
