"""The whole job, top to bottom: load, baseline, prune and fine-tune in rounds, evaluate, export, verify, measure."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch

from service.specs import Gradual, JobSpec, Target
from workers.engine.card import write_cards
from workers.engine.families import family_of
from workers.engine.journal import BASELINE, Journal, Terms, cuts_of, training_of
from workers.engine.outcome import evaluate, export, measure, pack, result
from workers.engine.penalties import regularizer
from workers.engine.recovery import TRAINING_COST, Course, train
from workers.engine.replica import replica
from workers.engine.reporter import STEPS_SHARE, Reporter
from workers.engine.reporting import Record, write_report
from workers.engine.subject import Anatomy, Subject
from workers.engine.surgery import Theatre, apply_cut
from workers.engine.targets import STRUCTURES_CUT, Bill, check_reach, prune_units
from workers.engine.tasks import TASKS, Task
from workers.engine.verification import verify
from workers.engine.work import Work, load, prepare, round_weights

USUAL = Terms()


def compress(
    folder: Path, spec: JobSpec, reporter: Reporter, max_threads: int | None, terms: Terms = USUAL
) -> dict[str, Any]:
    """Runs one job in `folder`; writes `out/` and returns the result, all of it JSON values.

    Goes on from `in/checkpoint` where there is one, see `Journal`.
    """
    reporter.phase("loading")
    work = prepare(folder, spec, max_threads, terms.batch_divisor)
    journal = Journal(work, reporter, terms)
    network, task = load(work, reporter)
    reporter.total_steps = forward_passes(spec, task)
    if task is not None:
        journal.follow(network)
    if spec.baseline is not None and task is not None and journal.enters(BASELINE):
        reporter.phase("finetuning")
        recipe = spec.baseline
        course = Course("baseline", recipe, recipe.epochs, spec.seed, work.bfloat16, work.batch_divisor)
        train(network, task, course, reporter, keeper=journal)
        journal.leaves(BASELINE)
    round_weights(network, work.stored)
    before = replica(network, work.device)
    if task is not None:
        task.teacher = before
    subject = Subject(network, before, task, work.model, Anatomy.of(network))
    cuts = prune(subject, work, reporter, journal)
    round_weights(network, work.stored)

    reporter.phase("evaluating")
    sides = [evaluate(*side, spec.seed, reporter) for side in ((before, task), (network, subject.task))]
    before, after = (replica(side, dtype=work.stored) for side in (before, network))
    reporter.reach(STEPS_SHARE)
    reporter.phase("exporting")
    exported = export(after, work, subject.source)
    reporter.reach(0.75)
    reporter.phase("verifying")
    kind = TASKS[spec.task]
    verify(after, exported, kind, scratch=work.scratch, threads=torch.get_num_threads(), seed=spec.seed)
    directory = next(folder for name, folder in exported if name.startswith("huggingface"))
    compressed = pack(directory, work)
    reporter.reach(0.85)
    reporter.phase("evaluating")
    sides = [side | costs for side, costs in zip(sides, measure(before, after, work), strict=True)]
    reporter.phase(None)
    outcome = result(after, [sides[0], sides[1] | compressed], work, directory.name, reporter)
    configuration = spec.model_dump(mode="json")
    kept_layers = subject.anatomy.kept_layers
    record = Record(configuration, outcome, reporter.curves, cuts, kept_layers, reporter.warnings)
    write_cards(record, work.out)
    write_report(record, work.out)
    return outcome


def prune(subject: Subject, work: Work, reporter: Reporter, journal: Journal) -> list[dict[str, Any]]:
    """Cuts and fine-tunes in rounds, in place; returns what every cut of every round removed."""
    spec, shares = work.spec, round_shares(work.spec)
    theatre = Theatre(work, reporter, torch.Generator().manual_seed(spec.seed))
    journal.follow_surgery(subject, theatre.generator)
    for number, (share, epochs) in enumerate(zip(shares, round_epochs(spec, len(shares)), strict=True), start=1):
        if journal.enters(cuts_of(number)):
            journal.cuts += [{"round": number} | done for done in cut_round(subject, share, theatre, first=number == 1)]
            journal.leaves(cuts_of(number))
        if epochs and spec.finetuning and subject.task is not None and journal.enters(training_of(number)):
            reporter.phase("finetuning")
            pull = spec.finetuning.regularization
            course = Course(
                "finetuning",
                spec.finetuning,
                epochs,
                spec.seed + number,
                work.bfloat16,
                work.batch_divisor,
                sparse=spec.pruning.zeroes_weights,
                distillation=spec.finetuning.distillation,
                penalty=None if pull is None else regularizer(subject.network, pull),
                first_step=journal.step,
            )
            journal.step = train(subject.network, subject.task, course, reporter, subject.teacher, journal)
            journal.leaves(training_of(number), cheap=number < len(shares))
    return journal.cuts


def cut_round(subject: Subject, share: float, theatre: Theatre, *, first: bool) -> Iterator[dict[str, Any]]:
    """All cuts of one round, up to `share` of what they are to remove; tells what each removed."""
    pruning = theatre.work.spec.pruning
    if pruning.target is not None:
        yield from reach_target(subject, pruning.target, share, theatre)
    for cut in pruning.cuts:
        if cut.structure != "vocabulary" or first:
            yield apply_cut(subject, cut, cut.share * share, theatre)


def reach_target(subject: Subject, target: Target, share: float, theatre: Theatre) -> list[dict[str, Any]]:
    """Chooses and cuts heads and neurons until so much of the way to the target is done; uniform for a stock export."""
    spec, network, task = theatre.work.spec, subject.network, subject.task
    assert task is not None  # the door refuses a target without a data set
    theatre.reporter.phase("analyzing")
    tokens = theatre.work.settings(network).max_length
    bill = Bill(target.metric, tokens)
    whole = bill.total(subject.teacher)
    uniform = "huggingface" in spec.exports
    if uniform:
        message = "The same number of heads and neurons goes in every layer, as the export huggingface needs."
        theatre.reporter.warning("UNIFORM_BUDGET", message + " huggingface_custom would keep the best of each layer.")
    kinds = STRUCTURES_CUT if not uniform or family_of(network).facts.head_width else ("ffn_neurons",)
    # Now, not in the last of many rounds.
    check_reach(network, bill, whole * target.ratio, kinds)
    left = whole * (1 - (1 - target.ratio) * share)
    removed = prune_units(
        network,
        task,
        target,
        left,
        tokens,
        uniform=uniform,
        structures=kinds,
        advance=theatre.reporter.advance,
        cut=subject.cut,
    )
    return [theatre.reporter.cut(name, "second_order", *counts) for name, counts in removed.items()]


def round_shares(spec: JobSpec) -> list[float]:
    """How much of each cut is done after every round: `1 - (1 - t)³` (Zhu and Gupta, 2017) or `t`."""
    schedule = spec.pruning.schedule
    if not isinstance(schedule, Gradual):
        return [1.0]
    times = [number / schedule.rounds for number in range(1, schedule.rounds + 1)]
    return times if schedule.curve == "linear" else [1 - (1 - time) ** 3 for time in times]


def round_epochs(spec: JobSpec, rounds: int) -> list[int]:
    """Epochs after each round; what does not divide goes to the last ones, where most recovery is needed."""
    total = spec.finetuning.epochs if spec.finetuning else 0
    return [total // rounds + (number >= rounds - total % rounds) for number in range(rounds)]


def forward_passes(spec: JobSpec, task: Task | None) -> int:
    """The work of scoring, training and evaluation, in forward passes of single rows."""
    if task is None:
        return 1
    train_rows, validation = task.rows("train"), task.rows("validation")
    total, rounds = 2 * task.rows("test"), round_epochs(spec, len(round_shares(spec)))
    if spec.baseline is not None:
        total += spec.baseline.epochs * (TRAINING_COST * train_rows + validation) + validation
    if spec.finetuning is not None:
        teacher = spec.finetuning.distillation is not None
        total += spec.finetuning.epochs * ((TRAINING_COST + teacher) * train_rows + validation)
        total += sum(epochs > 0 for epochs in rounds) * validation
    for cut in spec.pruning.cuts:
        if epochs := getattr(cut.criterion, "epochs", 0):
            total += len(rounds) * (epochs * (TRAINING_COST * train_rows + validation) + validation)
        total += len(rounds) * TRAINING_COST * task.sample_size(getattr(cut.criterion, "samples", 0))
    if spec.pruning.target is not None:  # scored, then repaired
        total += len(rounds) * (TRAINING_COST + 1) * task.sample_size(spec.pruning.target.samples)
    return max(1, total)
