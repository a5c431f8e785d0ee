"""What a client should know of an order that can work."""

from collections.abc import Iterator

from service.resolve.cuts import removed, stacks_of, units_of
from service.resolve.order import Order
from service.specs import TRAINING_CRITERIA, Cut, Gradual, JobSpec, QualityGoal
from service.specs.goals import PERCENT
from service.specs.rounding import nearest


def advice(order: Order) -> Iterator[tuple[str, str]]:
    """Codes and messages of warnings."""
    spec = order.spec
    yield from _of_schedule(spec)
    for cut in spec.pruning.cuts:
        yield from _of_cut(cut, spec)
        yield from _of_ratio(cut, order)
    yield from _of_goals(spec)
    if spec.beams != type(spec).model_fields["beams"].default and spec.task != "translation":
        yield "BEAMS_NOT_USED", "Only translation is judged by a beam search; beams changes nothing here."
    if order.dataset is not None and not order.splits & {"train", "validation", "test"}:
        yield "QUALITY_NOT_MEASURED", "The data set has no split to measure quality on."


def _of_goals(spec: JobSpec) -> Iterator[tuple[str, str]]:
    percent = PERCENT.get(spec.task, ())
    for goal in spec.acceptance:
        if isinstance(goal, QualityGoal) and goal.metric in percent and 0 < (goal.max_drop or goal.min_value or 0) < 1:
            yield "GOAL_OF_A_PERCENT", f"{goal.metric} goes from 0 to 100 here: the goal is less than one of those."


def _of_schedule(spec: JobSpec) -> Iterator[tuple[str, str]]:
    schedule = spec.pruning.schedule
    if not isinstance(schedule, Gradual):
        return
    if spec.finetuning is None:
        yield "FINETUNING_MISSING", "A gradual schedule without finetuning cuts in rounds but recovers in none."
    elif schedule.rounds > spec.finetuning.epochs:
        yield "ROUNDS_EXCEED_EPOCHS", "There are more rounds than epochs: the first rounds are not fine-tuned."


def _of_ratio(cut: Cut, order: Order) -> Iterator[tuple[str, str]]:
    """One unit of every layer stays, whatever the ratio."""
    for stack in stacks_of(cut, order.family):
        units = units_of(order.model, cut.structure, stack)
        asked = [sum(units)] if cut.scope == "global" else units
        wanted = sum(nearest(size * cut.share) for size in asked)
        if cut.threshold is None and removed(units, cut.share, cut.scope) < wanted:
            yield "RATIO_NOT_REACHED", f"One of the {cut.structure} always stays, so fewer go than the ratio says."
            return


def _of_cut(cut: Cut, spec: JobSpec) -> Iterator[tuple[str, str]]:
    if cut.kind == "random":
        yield "RANDOM_CONTROL", f"random picks {cut.structure} by chance: a control for other criteria, no method."
    if cut.kind == "magnitude" and cut.structure != "weights":
        yield "MAGNITUDE_WEAK", f"magnitude is a weak guide for {cut.structure}; taylor keeps more quality."
    if cut.kind in TRAINING_CRITERIA and spec.finetuning is None:
        yield "RECIPE_BY_DEFAULT", f"{cut.kind} trains with the defaults of finetuning, which was left out."
    if cut.structure == "weights":
        yield "SPARSITY_NOT_FASTER", "Single weights that are zero make the network neither smaller nor faster."
    if cut.structure == "hidden_size" and spec.finetuning is None:
        yield (
            "HIDDEN_SIZE_WEAK",
            "A cut hidden size touches every layer; without finetuning expect a large loss.",
        )
    if cut.structure == "vocabulary":
        yield "VOCABULARY_NARROW", "Words that the data set lacks will be read in smaller pieces, or as unknown."
