"""Can the result be written the way that was asked for?"""

from collections.abc import Iterator

from service.resolve.cuts import removed, units_of
from service.resolve.order import Fault, Faults, Order
from service.specs import Cut

_PER_LAYER = ("attention_heads", "ffn_neurons")
"""Structures whose sizes a stock config holds once for all layers of a stack."""


def check_exports(order: Order) -> Faults:
    """Every export can be made of this family, and a stock one of what the cuts leave."""
    spec, family = order.spec, order.family
    for index, export in enumerate(spec.exports):
        at = f"/exports/{index}"
        if export not in family.exports:
            detail = f"{family.model_type} exports to {', '.join(family.exports)}."
            yield Fault("EXPORT_NOT_SUPPORTED", at, detail)
        elif export == "huggingface" and (reason := next(_why_not_stock(order), None)):
            yield Fault("EXPORT_NOT_EXPRESSIBLE", at, f"{reason}; use huggingface_custom or onnx.")


def _why_not_stock(order: Order) -> Iterator[str]:
    if not order.model.facts["uniform"]:
        yield "The model's layers already differ in size, which a stock config cannot express"
    family = order.family
    for index, cut in enumerate(order.spec.pruning.cuts):
        at = f"/pruning/cuts/{index}"
        if cut.structure in family.structures and cut.structure not in family.stock_structures:
            yield f"{at} cuts {cut.structure}, which a stock config of this family cannot express"
        elif cut.structure in _PER_LAYER and cut.scope == "global":
            yield f"{at} has scope global, so widths will differ, which no stock config can express"
        elif cut.structure in _PER_LAYER and cut.threshold is not None:
            yield f"{at} has a threshold, so widths will differ, which no stock config can express"
    yield from _why_not_one_size(order)
    yield from _why_heads_do_not_divide(order)


def _why_not_one_size(order: Order) -> Iterator[str]:
    for structure in order.family.one_size:
        cuts = [cut for cut in order.spec.pruning.cuts if cut.structure == structure]
        left = {_left(order, cuts, structure, stack) for stack in order.family.stacks}
        if cuts and len(left) > 1:
            index = order.spec.pruning.cuts.index(cuts[-1])
            yield (
                f"/pruning/cuts/{index} leaves the stacks with different {structure}, for which a stock config of "
                f"{order.family.model_type} has one number; leave stack out"
            )


def _why_heads_do_not_divide(order: Order) -> Iterator[str]:
    cuts = [cut for cut in order.spec.pruning.cuts if cut.structure in ("attention_heads", "hidden_size")]
    if not cuts or not order.family.heads_divide_hidden:
        return
    structure = order.model.structure
    shared = structure["attention_heads"][0] // units_of(order.model, "attention_heads", "encoder")[0]
    heads = shared * _left(order, cuts, "attention_heads", "encoder")
    hidden = _left(order, cuts, "hidden_size", "encoder")
    if hidden % heads:
        index = order.spec.pruning.cuts.index(cuts[-1])
        yield (
            f"/pruning/cuts/{index} leaves {heads} heads and a hidden size of {hidden}, and a stock config of "
            f"{order.family.model_type} takes only heads that divide it"
        )


def _left(order: Order, cuts: list[Cut], structure: str, stack: str) -> int:
    """Units that stay in a layer of a stack whose layers are alike."""
    size = units_of(order.model, structure, stack)[0]
    shares = [cut.share for cut in cuts if cut.structure == structure and cut.stack in (None, stack)]
    return size - max((removed([size], share, "uniform") for share in shares), default=0)
