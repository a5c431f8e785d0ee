"""ALBERT (Lan et al., 2020): all layers are one set of weights, so that heads and neurons are cut in all at once."""

from workers.engine.families.family import Attention, Family, Stack

ALBERT = Family(
    "albert",
    (
        Stack(
            name="encoder",
            layers="encoder.albert_layer_groups.0.albert_layers",
            attentions=(
                Attention(
                    module="attention",
                    inputs=("attention.query", "attention.key", "attention.value"),
                    output="attention.dense",
                    counts=("num_attention_heads",),
                    widths=("all_head_size",),
                ),
            ),
            ffn_in=("ffn",),
            ffn_out="ffn_output",
        ),
    ),
    shares_layers=True,
)
