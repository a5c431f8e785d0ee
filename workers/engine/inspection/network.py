"""What takes a live network: scores of its units, trials of cutting them, and how much alike its layers are."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from service.specs import Cut
from service.specs.findings import Findings, Scored
from service.specs.inspection import Inspection, Scoring
from workers.engine.criteria import CRITERIA
from workers.engine.inspection.layers import alike
from workers.engine.inspection.telling import tell_alike, tell_scored
from workers.engine.inspection.trials import Gauge, trials
from workers.engine.inspection.units import score, summaries
from workers.engine.outcome import facts_of_engine
from workers.engine.recovery import TRAINING_COST, Course, train
from workers.engine.reporter import Reporter
from workers.engine.rounding import brief
from workers.engine.structures import STRUCTURES
from workers.engine.tasks import Task
from workers.engine.work import Work, load, prepare

STEPS_SHARE = 0.97
"""Share of an inspection's progress that reading rows takes."""

Units = list[dict[str, Any]]
"""Scores of all units but single weights: `structure`, `criterion`, `stack`, `layer`, `place` and `scores`."""


def inspect_network(
    folder: Path, spec: Inspection, found: Findings, reporter: Reporter, max_threads: int | None, batch_divisor: int = 1
) -> tuple[Findings, Units, dict[str, Any]]:
    """Adds to what the files told; also returns the scores of all units, and what the job ran on."""
    work = prepare(folder, spec.as_job(spec.cuts[0]), max_threads, batch_divisor)
    network, task = load(work, reporter)
    reporter.total_steps, reporter.steps_share = forward_passes(spec, task), STEPS_SHARE
    _train_head(network, task, work, reporter)
    reporter.phase("evaluating")
    gauge = None if task is None else Gauge(network, task, spec.rows, spec.seed)
    likeness = alike(network, [] if gauge is None else gauge.batches)
    reporter.advance(0 if gauge is None else 2 * gauge.rows)
    highlights = [*found.highlights, *(line for one in likeness for line in tell_alike(one, reporter))]
    scored: list[Scored] = []
    units: Units = []
    generator = torch.Generator().manual_seed(spec.seed)
    for name in spec.structures:
        cuts = [cut for cut in spec.cuts if cut.structure == name]
        for one, own, comparable in _structure(network, task, gauge, spec, cuts, generator, reporter):
            scored.append(one)
            units += own
            highlights.append(tell_scored(one, None if gauge is None else gauge.loss, reporter, comparable=comparable))
    reporter.phase(None)
    measured = {} if gauge is None else {"loss": gauge.loss, "rows": gauge.rows, "split": gauge.split}
    found = found.model_copy(update=measured | {"scored": scored, "alike": likeness, "highlights": highlights})
    return found, units, facts_of_engine(work.device, reporter)


def forward_passes(spec: Inspection, task: Task | None) -> int:
    """The work of scoring and trials, in forward passes of single rows."""
    if task is None:
        return 1
    baseline = spec.baseline
    measured = min(spec.rows, task.rows("validation") or task.rows("test") or spec.rows)
    total = 2 * measured
    if baseline is not None:
        total += baseline.epochs * (TRAINING_COST * task.rows("train") + task.rows("validation"))
    readings = {
        (cut.structure, CRITERIA[cut.kind](cut.criterion, STRUCTURES[cut.structure], torch.Generator()).needs, samples)
        for cut in spec.cuts
        if (samples := getattr(cut.criterion, "samples", 0))
    }
    total += sum(TRAINING_COST * task.sample_size(samples) for _, _, samples in readings)
    return total + len(spec.cuts) * len(spec.ratios) * measured


def _train_head(network: PreTrainedModel, task: Task | None, work: Work, reporter: Reporter) -> None:
    recipe = work.spec.baseline
    if recipe is not None and task is not None:
        reporter.phase("finetuning")
        course = Course("baseline", recipe, recipe.epochs, work.spec.seed, work.bfloat16, work.batch_divisor)
        train(network, task, course, reporter)


def _structure(
    network: PreTrainedModel,
    task: Task | None,
    gauge: Gauge | None,
    spec: Inspection,
    cuts: list[Cut],
    generator: torch.Generator,
    reporter: Reporter,
) -> Iterator[tuple[Scored, Units, bool]]:
    """One structure by all criteria that can score it, and whether scores of different groups are in one unit.

    Its scores are dropped before the next structure's are there.
    """
    if not cuts:
        return
    structure = STRUCTURES[cuts[0].structure]
    groups = structure.groups(network)
    reporter.phase("analyzing")
    criteria: list[Scoring] = [c for c in spec.criteria if c.kind in {cut.kind for cut in cuts}]
    found = score(network, structure, criteria, task, generator, reporter.advance)
    reporter.phase("evaluating")
    for cut, wanted, (criterion, scores) in zip(cuts, criteria, found, strict=True):
        tried = list(
            trials(
                network,
                structure,
                cut,
                scores,
                spec.ratios,
                gauge,
                comparable=criterion.comparable,
                advance=reporter.advance,
            )
        )
        for trial in tried:
            if trial.loss is not None:
                reporter.metric(f"{structure.name}/{cut.kind}/loss", round(100 * trial.ratio), trial.loss)
        groups_told = summaries(network, structure, groups, scores)
        one = Scored(structure=cut.structure, criterion=wanted, groups=groups_told, trials=tried)
        yield one, _units(one, scores), criterion.comparable


def _units(one: Scored, scores: list[Tensor]) -> Units:
    """All scores, for the artifact; there are too many single weights."""
    if one.structure == "weights":
        return []
    return [
        {
            "structure": one.structure,
            "criterion": one.criterion.kind,
            **group.model_dump(include={"stack", "layer", "place"}),
            "scores": [brief(value) for value in values.tolist()],
        }
        for group, values in zip(one.groups, scores, strict=True)
    ]
