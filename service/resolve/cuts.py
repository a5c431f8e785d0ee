"""Can the model lose what the cuts ask for, and what is left afterwards?"""

from collections import defaultdict
from collections.abc import Iterator

from service.catalog import Family
from service.resolve.order import Fault, Faults, Order
from service.specs import Cut
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
    ("hidden_size", "encoder"): "hidden_size",
}
"""Where the units of a structure are counted in a model's `structure`; a single stack counts as the encoder's."""


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
    amounts = {key: _amount(cut, order.model, key) for key in _keys(cut, order.family)}
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


def _amount(cut: Cut, model: Model, key: tuple[str, ...]) -> float:
    """How many units go; the share where they are not counted."""
    units = units_of(model, key[0], key[1])
    return removed(units, cut.share, cut.scope) if units else cut.share


def _keys(cut: Cut, family: Family) -> Iterator[tuple[str, ...]]:
    """What is cut, stack by stack: a cut of both takes from each."""
    stacks = (cut.stack,) if cut.stack else () if cut.structure in _WHOLE else family.stacks
    for stack in stacks or ("encoder",):
        yield cut.structure, stack, cut.pattern or ""


def units_of(model: Model, structure: str, stack: str) -> list[int]:
    """Units of a structure, layer by layer; none where they are not counted. Heads that share keys count as one."""
    structure_key = _UNITS.get((structure, stack), "")
    counted = model.structure.get(structure_key) or []
    if structure_key == "attention_heads":
        counted = model.structure.get("key_value_heads") or counted
    return counted if isinstance(counted, list) else [counted]


def removed(units: list[int], share: float, scope: str) -> int:
    """How many units go: a share, rounded to the nearest, in every layer or of all; one stays in each."""
    if scope == "global":
        return min(int(sum(units) * share + 0.5), sum(units) - len(units))
    return sum(min(int(size * share + 0.5), size - 1) for size in units)
