"""BART (Lewis et al., 2020) and Marian (Junczys-Dowmunt et al., 2018): an encoder, and a decoder that reads it."""

from workers.engine.families.family import Attention, Family, Stack


def _attention(name: str) -> Attention:
    return Attention(
        module=name,
        inputs=(f"{name}.q_proj", f"{name}.k_proj", f"{name}.v_proj"),
        output=f"{name}.out_proj",
        counts=("num_heads",),
    )


def _stack(name: str, *attentions: str) -> Stack:
    return Stack(
        name=name,
        layers=f"{name}.layers",
        attentions=tuple(_attention(attention) for attention in attentions),
        ffn_in=("fc1",),
        ffn_out="fc2",
        attention_parts=("self_attn",),
        ffn_parts=("fc1", "fc2"),
    )


STACKS = (_stack("encoder", "self_attn"), _stack("decoder", "self_attn", "encoder_attn"))

BART = Family("bart", STACKS)
MARIAN = Family("marian", STACKS, computes_positions=True)
