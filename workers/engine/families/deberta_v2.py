"""DeBERTa versions 2 and 3 (He et al., 2021): heads also own their rows of the projections of relative positions."""

from workers.engine.families.family import Attention, Family, Stack

DEBERTA_V2 = Family(
    "deberta-v2",
    (
        Stack(
            name="encoder",
            layers="encoder.layer",
            attentions=(
                Attention(
                    module="attention.self",
                    inputs=tuple(
                        f"attention.self.{name}_proj" for name in ("query", "key", "value", "pos_key", "pos_query")
                    ),
                    output="attention.output.dense",
                    counts=("num_attention_heads",),
                    widths=("all_head_size",),
                ),
            ),
            ffn_in=("intermediate.dense",),
            ffn_out="output.dense",
            layers_key="num_hidden_layers",
            ffn_key="intermediate_size",
            heads_key="num_attention_heads",
        ),
    ),
)
