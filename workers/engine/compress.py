"""The whole job, top to bottom: load, baseline, prune and fine-tune in rounds, evaluate, export, verify, measure."""

from pathlib import Path
from typing import Any

import torch

from service.specs import Gradual, JobSpec, Target
from workers.engine.families import family_of
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


def compress(folder: Path, spec: JobSpec, reporter: Reporter, max_threads: int | None) -> dict[str, Any]:
    """Runs one job in `folder`; writes `out/` and returns the result, all of it JSON values."""
    reporter.phase("loading")
    work = prepare(folder, spec, max_threads)
    network, task = load(work, reporter)
    reporter.total_steps = forward_passes(spec, task)
    if spec.baseline is not None and task is not None:
        reporter.phase("finetuning")
        train(
            network, task, Course("baseline", spec.baseline, spec.baseline.epochs, spec.seed, work.bfloat16), reporter
        )
    round_weights(network, work.stored)
    before = replica(network, work.device)
    if task is not None:
        task.teacher = before
    subject = Subject(network, before, task, work.model, Anatomy.of(network))
    cuts = prune(subject, work, reporter)
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
    write_report(Record(configuration, outcome, reporter.curves, cuts, kept_layers, reporter.warnings), work.out)
    return outcome


def prune(subject: Subject, work: Work, reporter: Reporter) -> list[dict[str, Any]]:
    """Cuts and fine-tunes in rounds, in place; returns what every cut of every round removed."""
    spec, step, done = work.spec, 0, []
    theatre = Theatre(work, reporter, torch.Generator().manual_seed(spec.seed))
    shares = round_shares(spec)
    for number, (share, epochs) in enumerate(zip(shares, round_epochs(spec, len(shares)), strict=True), start=1):
        if spec.pruning.target is not None:
            done += [{"round": number} | cut for cut in reach_target(subject, spec.pruning.target, share, theatre)]
        for cut in spec.pruning.cuts:
            if cut.structure != "vocabulary" or number == 1:
                done.append({"round": number} | apply_cut(subject, cut, cut.share * share, theatre))
        if epochs and spec.finetuning is not None and subject.task is not None:
            reporter.phase("finetuning")
            pull = spec.finetuning.regularization
            course = Course(
                "finetuning",
                spec.finetuning,
                epochs,
                spec.seed + number,
                work.bfloat16,
                sparse=spec.pruning.zeroes_weights,
                distillation=spec.finetuning.distillation,
                penalty=None if pull is None else regularizer(subject.network, pull),
                first_step=step,
            )
            step = train(subject.network, subject.task, course, reporter, subject.teacher)
    return done


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
    cut = prune_units(
        network, task, target, left, tokens, uniform=uniform, structures=kinds, advance=theatre.reporter.advance
    )
    return [theatre.reporter.cut(name, "second_order", *counts) for name, counts in cut.items()]


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
