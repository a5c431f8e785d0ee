"""BERT (Devlin et al., 2019) and the encoders that are laid out like it."""

from workers.engine.families.family import Attention, Family, Stack

STACK = Stack(
    name="encoder",
    layers="encoder.layer",
    attentions=(
        Attention(
            module="attention.self",
            inputs=("attention.self.query", "attention.self.key", "attention.self.value"),
            output="attention.output.dense",
            counts=("num_attention_heads",),
            widths=("all_head_size",),
        ),
    ),
    ffn_in=("intermediate.dense",),
    ffn_out="output.dense",
    attention_parts=("attention.self", "attention.output.dense"),
    ffn_parts=("intermediate", "output.dense"),
)

BERT = Family("bert", (STACK,))
ROBERTA = Family("roberta", (STACK,))
XLM_ROBERTA = Family("xlm-roberta", (STACK,))
ELECTRA = Family("electra", (STACK,))
