"""GPT-2 (Radford et al., 2019): query, key and value lie in one projection, stored with inputs first."""

from workers.engine.families.family import Attention, Family, Stack

GPT2 = Family(
    "gpt2",
    (
        Stack(
            name="decoder",
            layers="h",
            attentions=(
                Attention(
                    module="attn",
                    inputs=("attn.c_attn",),
                    output="attn.c_proj",
                    counts=("num_heads",),
                    widths=("split_size",),
                    fused=3,
                ),
            ),
            ffn_in=("mlp.c_fc",),
            ffn_out="mlp.c_proj",
            attention_parts=("ln_1", "attn"),
            ffn_parts=("ln_2", "mlp"),
        ),
    ),
)
