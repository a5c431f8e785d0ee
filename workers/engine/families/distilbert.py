"""DistilBERT (Sanh et al., 2019)."""

from workers.engine.families.family import Attention, Family, Stack

DISTILBERT = Family(
    "distilbert",
    (
        Stack(
            name="encoder",
            layers="transformer.layer",
            attentions=(
                Attention(
                    module="attention",
                    inputs=("attention.q_lin", "attention.k_lin", "attention.v_lin"),
                    output="attention.out_lin",
                    counts=("n_heads",),
                ),
            ),
            ffn_in=("ffn.lin1",),
            ffn_out="ffn.lin2",
            attention_parts=("attention",),
            ffn_parts=("ffn",),
        ),
    ),
)
