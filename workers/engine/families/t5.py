"""T5 (Raffel et al., 2020): a table of relative positions has a column for each head, the same in all layers."""

from workers.engine.families.family import Attention, Family, Stack


def _attention(path: str) -> Attention:
    return Attention(
        module=path,
        inputs=(f"{path}.q", f"{path}.k", f"{path}.v"),
        output=f"{path}.o",
        counts=("n_heads",),
        widths=("inner_dim",),
        beside=("position_bias", "attention_weights"),
    )


def _stack(name: str, feed_forward: str, *attentions: str) -> Stack:
    dense = f"{feed_forward}.DenseReluDense"
    return Stack(
        name=name,
        layers=f"{name}.block",
        attentions=tuple(_attention(attention) for attention in attentions),
        ffn_in=(f"{dense}.wi", f"{dense}.wi_0", f"{dense}.wi_1"),
        ffn_out=f"{dense}.wo",
        attention_parts=("layer.0.layer_norm", "layer.0.SelfAttention"),
        ffn_parts=(f"{feed_forward}.layer_norm", dense),
        position_bias="layer.0.SelfAttention.relative_attention_bias",
    )


T5 = Family(
    "t5",
    (
        _stack("encoder", "layer.1", "layer.0.SelfAttention"),
        _stack("decoder", "layer.2", "layer.0.SelfAttention", "layer.1.EncDecAttention"),
    ),
)
