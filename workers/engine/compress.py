"""The whole job, top to bottom: load, baseline, prune and fine-tune in rounds, evaluate, export, verify, measure."""

from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from service.specs import DATA_CRITERIA, Gradual, JobSpec
from workers.engine.outcome import evaluate, export, measure, result
from workers.engine.recovery import TRAINING_COST, Course, train
from workers.engine.replica import replica
from workers.engine.reporter import STEPS_SHARE, Reporter
from workers.engine.reporting import Record, write_report
from workers.engine.surgery import Anatomy, apply_cut
from workers.engine.tasks import Task
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

    anatomy = Anatomy.of(network)
    cuts = prune(network, before, task, work, anatomy, reporter)
    round_weights(network, work.stored)

    reporter.phase("evaluating")
    sides = [evaluate(side, task, spec.seed, reporter) for side in (before, network)]
    before, after = (replica(side, dtype=work.stored) for side in (before, network))
    reporter.reach(STEPS_SHARE)
    reporter.phase("exporting")
    exported = export(after, work)
    reporter.reach(0.75)
    reporter.phase("verifying")
    verify(after, exported, scratch=work.scratch, threads=torch.get_num_threads(), seed=spec.seed)
    reporter.reach(0.85)
    reporter.phase("evaluating")
    sides = [side | costs for side, costs in zip(sides, measure(before, after, work), strict=True)]
    reporter.phase(None)
    directory = next(folder.name for name, folder in exported if name.startswith("huggingface"))
    outcome = result(after, sides, work, directory, reporter)
    configuration = spec.model_dump(mode="json")
    write_report(
        Record(configuration, outcome, reporter.curves, cuts, anatomy.kept_layers, reporter.warnings), work.out
    )
    return outcome


def prune(
    network: PreTrainedModel,
    before: PreTrainedModel,
    task: Task | None,
    work: Work,
    anatomy: Anatomy,
    reporter: Reporter,
) -> list[dict[str, Any]]:
    """Cuts and fine-tunes in rounds, in place; returns what every cut of every round removed."""
    spec, step, done = work.spec, 0, []
    generator = torch.Generator().manual_seed(spec.seed)
    shares = round_shares(spec)
    for number, (share, epochs) in enumerate(zip(shares, round_epochs(spec, len(shares)), strict=True), start=1):
        for cut in spec.pruning.cuts:
            reporter.phase("analyzing" if cut.criterion.kind in DATA_CRITERIA else "pruning")
            removed = apply_cut(network, cut, cut.share * share, anatomy, task, generator, reporter)
            done.append({"round": number} | removed)
        if epochs and spec.finetuning is not None and task is not None:
            reporter.phase("finetuning")
            course = Course(
                "finetuning",
                spec.finetuning,
                epochs,
                spec.seed + number,
                work.bfloat16,
                sparse=any(cut.structure == "weights" for cut in spec.pruning.cuts),
                distillation=spec.finetuning.distillation,
                first_step=step,
            )
            step = train(network, task, course, reporter, before)
    return done


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
    samples = [getattr(cut.criterion, "samples", 0) for cut in spec.pruning.cuts]
    return max(1, total + len(rounds) * sum(TRAINING_COST * task.sample_size(rows) for rows in samples))
