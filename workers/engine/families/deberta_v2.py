"""DeBERTa versions 2 and 3 (He et al., 2021): heads also own their rows of the projections of relative positions."""

from dataclasses import replace

from workers.engine.families import bert
from workers.engine.families.family import Family

ATTENTION = replace(
    bert.STACK.attentions[0],
    inputs=tuple(f"attention.self.{name}_proj" for name in ("query", "key", "value", "pos_key", "pos_query")),
)

DEBERTA_V2 = Family("deberta-v2", (replace(bert.STACK, attentions=(ATTENTION,)),))
