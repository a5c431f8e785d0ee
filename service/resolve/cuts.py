"""Can the model lose what the cuts ask for, and what is left afterwards?"""

from collections import defaultdict

from service.catalog import Family
from service.resolve.data import HEADLESS
from service.resolve.order import Fault, Faults, Order
from service.specs import Cut
from service.specs.rounding import nearest
from service.tables import Model

_WHOLE = ("hidden_size", "vocabulary")
"""Structures that both stacks of an encoder-decoder have in common."""
_UNITS = {
    ("attention_heads", "encoder"): "attention_heads",
    ("attention_heads", "decoder"): "decoder_attention_heads",
    ("ffn_neurons", "encoder"): "ffn_width",
    ("ffn_neurons", "decoder"): "decoder_ffn_width",
    ("layers", "encoder"): "layers",
    ("layers", "decoder"): "decoder_layers",
    ("attention_layers", "encoder"): "attention_heads",
    ("attention_layers", "decoder"): "decoder_attention_heads",
    ("ffn_layers", "encoder"): "ffn_width",
    ("ffn_layers", "decoder"): "decoder_ffn_width",
    ("hidden_size", "encoder"): "hidden_size",
}
"""Where the units of a structure are counted in a model's `structure`; a single stack counts as the encoder's."""
_SUBLAYERS = ("attention_layers", "ffn_layers")
"""Structures whose units are the layers that have any of what is counted."""


def check_cuts(order: Order) -> Faults:
    """The family has what is cut, the criterion can score it, and every cut takes something."""
    family = order.family
    taken: dict[tuple[str, ...], float] = defaultdict(float)
    for index, cut in enumerate(order.spec.pruning.cuts):
        at = f"/pruning/cuts/{index}"
        if cut.structure not in family.structures:
            yield Fault("STRUCTURE_NOT_SUPPORTED", f"{at}/structure", _why_not(family, cut.structure))
        elif family.criteria is not None and cut.kind not in family.criteria:
            detail = f"Use {' or '.join(sorted(family.criteria))}: {family.reasons[cut.structure]}."
            yield Fault("CRITERION_NOT_SUPPORTED", f"{at}/criterion", detail)
        elif cut.stack is not None and (not family.stacks or cut.structure in _WHOLE):
            yield Fault("STACK_NOT_SUPPORTED", f"{at}/stack", _why_no_stack(family, cut.structure))
        elif cut.threshold is None:
            yield from _check_takes(cut, order, taken, at)


def check_embeddings(order: Order) -> Faults:
    """Texts are embedded by the whole stream, which a narrower one is no match for."""
    if order.spec.task != HEADLESS or order.dataset is None:
        return
    for index, cut in enumerate(order.spec.pruning.cuts):
        if cut.structure == "hidden_size":
            detail = (
                "Embeddings are compared with the original's, which narrower ones cannot be: choose other structures "
                "to cut, or leave the data set out and measure the result yourself."
            )
            yield Fault("STRUCTURE_NOT_SUPPORTED", f"/pruning/cuts/{index}/structure", detail)


def check_target(order: Order) -> Faults:
    """A target chooses heads and neurons, so the family must be able to lose both."""
    family = order.family
    if order.spec.pruning.target is not None and not {"attention_heads", "ffn_neurons"} <= set(family.structures):
        detail = f"A target chooses attention heads and neurons; {family.model_type} cannot lose them."
        yield Fault("TARGET_NOT_SUPPORTED", "/pruning/target", detail)


def _why_not(family: Family, structure: str) -> str:
    reason = f": {family.reasons[structure]}" if structure in family.reasons else ""
    return f"{family.model_type} cannot lose {structure}{reason}; it can lose {', '.join(family.structures)}."


def _why_no_stack(family: Family, structure: str) -> str:
    if family.stacks:
        return f"Both stacks have {structure} in common; leave stack out."
    return f"{family.model_type} has one stack of layers; leave stack out."


def _check_takes(cut: Cut, order: Order, taken: dict[tuple[str, ...], float], at: str) -> Faults:
    """Whether a cut takes units that no cut before it took, whose numbers are in `taken` and are kept up to date."""
    amounts = _amounts(cut, order)
    if all(amount <= taken[key] for key, amount in amounts.items()):
        detail = f"So small a share of the {cut.structure} of this model rounds to none; raise the ratio."
        if any(taken[key] for key in amounts):
            detail = (
                f"An earlier cut takes as many already: ratios are shares of the {cut.structure} that the model came "
                "with; raise this ratio or leave the cut out."
            )
        yield Fault("CUT_REMOVES_NOTHING", at if cut.ratio is None else f"{at}/ratio", detail)
    for key, amount in amounts.items():
        taken[key] = max(amount, taken[key])


def _amounts(cut: Cut, order: Order) -> dict[tuple[str, ...], float]:
    """How many units go, stack by stack, or of both that are ranked together; the share where they are not counted."""
    stacks = stacks_of(cut, order.family)
    units = {stack: units_of(order.model, cut.structure, stack) for stack in stacks}
    if cut.scope == "global" and len(stacks) > 1 and all(units.values()):
        units = {"": [size for sizes in units.values() for size in sizes]}
    return {
        (cut.structure, stack, cut.pattern or ""): removed(sizes, cut.share, cut.scope) if sizes else cut.share
        for stack, sizes in units.items()
    }


def stacks_of(cut: Cut, family: Family) -> tuple[str, ...]:
    """Which stacks a cut takes from: one without a stack takes from all; a single one counts as the encoder."""
    stacks = (cut.stack,) if cut.stack else () if cut.structure in _WHOLE else family.stacks
    return stacks or ("encoder",)


def units_of(model: Model, structure: str, stack: str) -> list[int]:
    """Units of a structure, layer by layer where there are any; none where they are not counted.

    Heads that share keys count as one.
    """
    structure_key = _UNITS.get((structure, stack), "")
    counted = model.structure.get(structure_key) or []
    if structure_key == "attention_heads":
        counted = model.structure.get("key_value_heads") or counted
    sizes = [size for size in (counted if isinstance(counted, list) else [counted]) if size]
    return [len(sizes)] if structure in _SUBLAYERS and sizes else sizes


def removed(units: list[int], share: float, scope: str) -> int:
    """How many units go: a share, rounded to the nearest, in every layer or of all; one stays in each."""
    if scope == "global":
        return min(nearest(sum(units) * share), sum(units) - len(units))
    return sum(min(nearest(size * share), size - 1) for size in units)
