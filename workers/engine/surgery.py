"""Surgery: one cut of a spec, from scores to a smaller network."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from service.specs import DATA_CRITERIA, N_OF_M, Cut
from service.specs.rounding import nearest
from workers.engine import allocation
from workers.engine.criteria import CRITERIA
from workers.engine.criteria.criterion import Criterion
from workers.engine.families import family_of
from workers.engine.layerwise import METHODS, method_of, prune_blocks
from workers.engine.recovery import TRAINING_COST, Course, train
from workers.engine.repair import IGNORED, repair
from workers.engine.replica import replica
from workers.engine.reporter import Reporter
from workers.engine.scoring import BATCH, finite, read_rows
from workers.engine.slicing import by_input, weight_of
from workers.engine.structures import STRUCTURES
from workers.engine.structures.structure import Group
from workers.engine.structures.weights import linears_of
from workers.engine.subject import Subject
from workers.engine.tasks import TASKS, Batch, Task
from workers.engine.tasks.task import inputs_in
from workers.engine.vocabulary import cut_tokenizer, cut_vocabulary, texts_of
from workers.engine.work import Work

CALIBRATION_ROWS = 512


@dataclass(frozen=True)
class Theatre:
    """What every operation of a job has at hand."""

    work: Work
    reporter: Reporter
    generator: torch.Generator


def apply_cut(subject: Subject, cut: Cut, share: float, theatre: Theatre) -> dict[str, Any]:
    """Scores, allocates and cuts, in place. `share` is the part of the original units gone after this round.

    Returns `{"structure", "criterion", "removed", "of"}`, counted in units.
    """
    theatre.reporter.phase("analyzing" if cut.kind in DATA_CRITERIA else "pruning")
    if cut.structure == "vocabulary":
        removed, of = cut_words(subject, theatre.work)
    elif cut.structure == "weights" and cut.kind in METHODS:
        removed, of = _cut_blocks(subject, cut, share, theatre)
    else:
        removed, of = _cut_units(subject, cut, share, theatre)
    return theatre.reporter.cut(cut.structure, cut.kind, removed, of)


def _cut_units(subject: Subject, cut: Cut, share: float, theatre: Theatre) -> tuple[int, int]:
    assert cut.criterion is not None  # only the vocabulary goes without
    network, structure = subject.network, STRUCTURES[cut.structure]
    groups = structure.groups(network)
    criterion = CRITERIA[cut.criterion.kind](cut.criterion, structure, theatre.generator)
    scores = score(subject, criterion, groups, theatre)
    theatre.reporter.phase("pruning")
    original = subject.anatomy.original_units(cut.structure, groups)
    chosen = [index for index, group in enumerate(groups) if cut.stack in (None, group.stack)]
    kept = allocate(
        cut,
        share,
        [groups[index] for index in chosen],
        [scores[index] for index in chosen],
        [original[index] for index in chosen],
        comparable=criterion.comparable,
    )
    by_index = dict(zip(chosen, kept, strict=True))
    keep = [by_index.get(index, torch.ones(group.units, dtype=torch.bool)) for index, group in enumerate(groups)]
    if cut.repair and subject.task is not None:
        repair(network, [(structure, keep)], calibration(subject.task, cut))
    subject.cut(cut.structure, keep)
    of = sum(original[index] for index in chosen)
    return of - sum(int(mask.sum()) for mask in kept), of


def operate_again(subject: Subject, operations: Sequence[tuple[str, list[Tensor]]], work: Work) -> None:
    """Makes an uncut network as small as `operations` made another one; what its weights are is not told by them."""
    for structure, keep in operations:
        if structure == "vocabulary":
            cut_words(subject, work)
        else:
            subject.cut(structure, keep)


def calibration(task: Task, cut: Cut) -> list[Batch]:
    """Rows for what is solved from them: as many as the criterion reads, or its usual number."""
    samples = getattr(cut.criterion, "samples", CALIBRATION_ROWS)
    return list(task.sample(task.sample_size(samples), BATCH))


def _cut_blocks(subject: Subject, cut: Cut, share: float, theatre: Theatre) -> tuple[int, int]:
    """Solves single weights one block after another, each from what the cut blocks before it hand on."""
    network, task, work = subject.network, subject.task, theatre.work
    assert task is not None  # the door refuses such a job without a data set
    batches = calibration(task, cut)
    rows = [inputs_in(batch, network) for batch in batches]
    stacks = [side for side in family_of(network).sides(network) if cut.stack in (None, side.stack.name)]
    tell = theatre.reporter.portion(TRAINING_COST * task.sample_size(getattr(cut.criterion, "samples", 0)))
    for number, side in enumerate(stacks):
        prune_blocks(
            network,
            side.modules,
            rows,
            method_of(cut, share),
            partial(_tell_part, tell, number, len(stacks)),
            counted=[_counted(batch, side.stack.name) for batch in batches],
            stored=work.stored,
            bfloat16=work.bfloat16,
        )
    weights = [weight_of(linear) for side in stacks for linear in linears_of(network, side.stack.name)]
    return sum(int((weight == 0).sum()) for weight in weights), sum(weight.numel() for weight in weights)


def _tell_part(tell: Callable[[float], None], part: int, parts: int, share: float) -> None:
    tell((part + share) / parts)


def _counted(batch: Batch, stack: str) -> Tensor | None:
    """Which tokens of a stack are no padding, (rows, tokens); the decoder's where it is given tokens of its own."""
    if stack == "decoder" and "decoder_input_ids" in batch:
        return batch["labels"] != IGNORED
    return batch.get("attention_mask")


def allocate(
    cut: Cut, share: float, groups: list[Group], scores: list[Tensor], original: list[int], *, comparable: bool
) -> list[Tensor]:
    """What to keep of each group, as booleans of (units,)."""
    if cut.structure == "weights":
        return _allocate_weights(cut, share, groups, scores)
    if cut.threshold is not None:
        return [allocation.above(values, cut.threshold) for values in scores]
    return allocation.allocate(scores, original, share, ranked=cut.scope == "global", comparable=comparable)


def _allocate_weights(cut: Cut, share: float, groups: list[Group], scores: list[Tensor]) -> list[Tensor]:
    """Single weights are all of one size, so that their raw scores are ranked; zeros are cut already and stay so."""
    linears = [group.outputs[0] for group in groups]
    weights = [weight_of(linear).detach().cpu() for linear in linears]
    scores = [values.masked_fill(weight.flatten() == 0, -1.0) for values, weight in zip(scores, weights, strict=True)]
    if cut.threshold is not None:
        return [values > cut.threshold for values in scores]
    if cut.pattern in (None, "unstructured"):
        return allocation.exact(scores, share, ranked=cut.scope == "global")
    tables = [
        by_input(linear, values.view(weight.shape))
        for linear, values, weight in zip(linears, scores, weights, strict=True)
    ]
    if cut.pattern == "block":
        keep = allocation.blocks(tables, cut.block_size, share, ranked=cut.scope == "global")
    else:
        _, m = N_OF_M[cut.pattern]
        keep = [allocation.n_of_m(table, m - nearest(m * share), m) for table in tables]
    return [by_input(linear, mask).flatten() for linear, mask in zip(linears, keep, strict=True)]


def score(subject: Subject, criterion: Criterion, groups: list[Group], theatre: Theatre) -> list[Tensor]:
    """One tensor of (units,) per group; rows are read, or the network trained, where the criterion needs it.

    Raises EngineError NOT_FINITE where the network is broken and its units cannot be told apart.
    """
    network, task = subject.network, subject.task
    criterion.attach(network, groups)
    if criterion.needs != "nothing":
        assert task is not None  # the door refuses such a job without a data set
        if criterion.needs == "training":
            _learn(subject, criterion, theatre)
        else:
            read_rows(network, [criterion], task, getattr(criterion.spec, "samples", 0), theatre.reporter.advance)
    return finite(criterion.scores())


def _learn(subject: Subject, criterion: Criterion, theatre: Theatre) -> None:
    """Trains by the recipe of `finetuning`, or by its defaults, with the criterion watching and pulling."""
    spec = theatre.work.spec
    assert subject.task is not None
    theatre.reporter.phase("finetuning")
    course = Course(
        criterion.spec.kind,
        spec.recipe,
        getattr(criterion.spec, "epochs", 1),
        spec.seed,
        theatre.work.bfloat16,
        parts=theatre.work.batch_divisor,
        sparse=spec.pruning.zeroes_weights,
        penalty=criterion.extra_loss,
        observe=criterion.advance,
        keep_last=True,
    )
    train(subject.network, subject.task, course, theatre.reporter)


def cut_words(subject: Subject, work: Work) -> tuple[int, int]:
    """Cuts tokenizer and embeddings of the network and of its teacher, and reads the data with the new tokenizer."""
    folder = work.scratch / "vocabulary"
    kept = cut_tokenizer(subject.source, folder, texts_of(work.dataset, work.spec.task))
    before = int(subject.network.config.vocab_size)
    # The tokenizer may know tokens that the network has no row for.
    left = int((kept < before).sum())
    if left < before:
        subject.teacher = replica(subject.teacher, subject.teacher.device)
        for network in (subject.network, subject.teacher):
            cut_vocabulary(network, kept)
        subject.source = folder
        subject.task = TASKS[work.spec.task](work.dataset, folder, subject.network, work.settings(subject.network))
        subject.task.teacher = subject.teacher
        subject.operations.append(("vocabulary", []))
    return before - left, before
