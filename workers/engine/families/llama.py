"""Llama (Touvron et al., 2023) and the decoders that are laid out like it: gated FFN, grouped-query attention.

A unit of their attention is a key-value head with all the query heads that read it (Ainslie et al., 2023).
"""

from workers.engine.families.family import Attention, Family, Stack

STACK = Stack(
    name="decoder",
    layers="layers",
    attentions=(
        Attention(
            module="self_attn",
            inputs=("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
            output="self_attn.o_proj",
            counts=(),
        ),
    ),
    ffn_in=("mlp.gate_proj", "mlp.up_proj"),
    ffn_out="mlp.down_proj",
    attention_parts=("input_layernorm", "self_attn"),
    ffn_parts=("post_attention_layernorm", "mlp"),
)


LLAMA, MISTRAL, QWEN2, QWEN3 = (Family(name, (STACK,)) for name in ("llama", "mistral", "qwen2", "qwen3"))
