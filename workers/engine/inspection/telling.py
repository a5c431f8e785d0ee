"""What stands out, in words and as events. Layers and heads count from 1 in words, from 0 in data."""

from collections.abc import Iterator
from itertools import combinations

from service.specs.findings import Alike, GroupScores, NearZero, Scored, Square
from workers.engine.reporter import Reporter

TWINS = 0.9
"""Cosine of two layers' weights above which one nearly repeats the other: of trained layers it is close to 0."""
UNIT_NAMES = {
    "attention_heads": "head",
    "layers": "layer",
    "attention_layers": "layer",
    "ffn_layers": "layer",
    "hidden_size": "dimension",
}


def words(name: str) -> str:
    """A name of the API for a reader: `attention heads`, `FFN neurons`."""
    return name.replace("_", " ").replace("ffn", "FFN")


def title(name: str) -> str:
    """The same where a line begins."""
    return words(name)[:1].upper() + words(name)[1:]


def tell_near_zero(found: NearZero, reporter: Reporter) -> str:
    """The count of weights near zero."""
    text = "No weight matrix of a layer was found."
    if found.matrices:
        first = found.matrices[0]
        text = (
            f"{found.share:.1%} of the weights lie within {found.threshold:g} of their matrix's root mean square, "
            f"{found.zeros:.1%} are zero; {first.matrix} has most, {first.share:.1%}."
        )
    reporter.event("inspection.near_zero", text, share=found.share, zeros=found.zeros)
    return text


def tell_scored(one: Scored, loss: float | None, reporter: Reporter, *, comparable: bool) -> str:
    """One structure by one criterion: where it is most redundant, and what the first share costs; `loss` is whole."""
    place = _most_redundant(one, comparable=comparable)
    text = f"{title(one.structure)} by {words(one.criterion.kind)}: most redundant is {place}."
    trial = next((trial for trial in one.trials if trial.removed and trial.loss is not None), None)
    if trial is not None and loss is not None:
        text += f" Without {trial.removed:,} of {trial.of:,} the loss goes from {loss:.4g} to {trial.loss:.4g}."
    data = one.model_dump(mode="json", include={"structure", "criterion", "trials"})
    reporter.event("inspection.structure", text, **data)
    return text


def _most_redundant(one: Scored, *, comparable: bool) -> str:
    """The lowest unit where units are few, else the group with most that are idle."""
    if one.structure not in UNIT_NAMES:
        group = max(one.groups, key=lambda group: group.idle)
        return f"{_place(group)}, where {group.idle:.0%} of the units hold 5 % of the score"
    # Norms follow the scale of a layer's weights, so that they are compared with the others of their group.
    scales = [1.0 if comparable or group.mean <= 0 else group.mean for group in one.groups]
    lowest = [group.quantiles[0] / scale for group, scale in zip(one.groups, scales, strict=True)]
    group = one.groups[lowest.index(min(lowest))]
    assert group.scores is not None
    unit = group.scores.index(min(group.scores)) + 1
    return f"{UNIT_NAMES[one.structure]} {unit} of {_place(group)}"


def _place(group: GroupScores) -> str:
    stack = f"the {group.stack}" if group.stack else "the network"
    where = stack if group.layer is None else f"layer {group.layer + 1} of {stack}"
    return f"{where} ({group.place})" if group.place else where


def tell_alike(one: Alike, reporter: Reporter) -> Iterator[str]:
    """The layer of a stack that changes its input least, and layers whose weights are nearly the same."""
    if one.states is not None:
        layer, cosine = least_changed(one.states)
        text = f"Layer {layer + 1} of the {one.stack} changes its input least: their cosine is {cosine:.3f}."
        reporter.event("inspection.layer", text, stack=one.stack, layer=layer, cosine=cosine)
        yield text
    weights = one.weights or []
    for first, second in combinations(range(len(weights)), 2):
        if weights[first][second] > TWINS:
            text = f"Layers {first + 1} and {second + 1} of the {one.stack} have nearly the same weights."
            reporter.event("inspection.twins", text, stack=one.stack, layers=[first, second])
            yield text


def least_changed(states: Square) -> tuple[int, float]:
    """The layer, from 0, that hands on what is most like what it was given, and the cosine of the two."""
    cosines = [row[layer + 1] for layer, row in enumerate(states[:-1])]
    best = max(range(len(cosines)), key=cosines.__getitem__)
    return best, cosines[best]
