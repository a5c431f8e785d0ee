"""What past jobs teach: what phases and memory took here, against what arithmetic says of the same jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

from pydantic import ValidationError
from sqlalchemy import select
from sqlalchemy.orm import Session

from service.estimate.anatomy import anatomy_of
from service.estimate.room import memory
from service.estimate.work import Phases, phases
from service.resolve.order import Order
from service.specs import JobSpec
from service.tables import Dataset, Job, Model

LOOKED_AT = 12
"""The latest finished jobs on the same kind of device."""

_SPREADS = {0: 4.0, 1: 2.5, 2: 2.0}
_LEAST_SPREAD = 1.4
_RECENT = 3
"""Jobs that tell how busy the machine is."""
_GROUP = {"analyzing": "pruning"}
"""Phases between which a criterion's work moves; they are learned together."""


@dataclass(frozen=True)
class Past:
    """A finished job: what arithmetic says of it and what it took; seconds by phase, bytes."""

    expected: Phases
    taken: Phases
    expected_memory: float
    taken_memory: float


@dataclass(frozen=True)
class Learned:
    """Factors on what arithmetic says."""

    phases: Phases = field(default_factory=dict)
    """Of a phase; those without one take the factor of all together."""
    overall: float = 1.0
    spread: float = _SPREADS[0]
    """By which factor the truth may lie on either side."""
    memory: float = 1.0
    jobs: int = 0

    def seconds(self, expected: Phases) -> float:
        """Of a whole job."""
        return sum(seconds * self.phases.get(phase, self.overall) for phase, seconds in expected.items())


def learn(past: Sequence[Past]) -> Learned:
    """From jobs, the latest first: medians, so that one on a busy machine does not count for many.

    How fast phases are against each other is learned from all, how fast the machine is now from the latest.
    """
    if not past:
        return Learned()
    names = {phase for job in past for phase in job.taken}
    factors = {
        phase: median(ratios)
        for phase in names
        if (ratios := [job.taken[phase] / job.expected[phase] for job in past if _told(job, phase)])
    }
    overall = median(sum(job.taken.values()) / sum(job.expected.values()) for job in past)
    fitted = Learned(factors, overall)
    misses = [sum(job.taken.values()) / fitted.seconds(job.expected) for job in past]
    now = median(misses[:_RECENT])
    off = sorted(max(miss / now, now / miss) for miss in misses[: _RECENT * 2])
    return Learned(
        {phase: factor * now for phase, factor in factors.items()},
        overall * now,
        max(_LEAST_SPREAD * off[int(0.9 * (len(off) - 1))], _SPREADS.get(len(past), 0.0)),
        _upper_quartile([job.taken_memory / job.expected_memory for job in past]),
        len(past),
    )


def _upper_quartile(values: Sequence[float]) -> float:
    """Of memory: too little ends a job, too much is only a pity."""
    return sorted(values)[int(0.75 * (len(values) - 1) + 0.5)]


def _told(job: Past, phase: str) -> bool:
    """Whether a job says how fast a phase goes: one of which it had next to nothing tells of other things."""
    return job.taken.get(phase, 0.0) > 0 and job.expected.get(phase, 0.0) >= 1.0


def past_jobs(session: Session, device: str) -> list[Past]:
    """The latest jobs that ran through at their first attempt, of all tenants: speeds tell nothing of their data."""
    engine = Job.result[("engine",)].label("engine")
    on_device = Job.result[("engine", "device")].as_string()
    query = (
        select(Job.spec, Job.started_at, Job.finished_at, engine, Model, Dataset)
        .join(Model, Model.id == Job.model_id)
        .outerjoin(Dataset, Dataset.id == Job.dataset_id)
        .where(Job.status.in_(("succeeded", "rejected")), Job.kind == "compression", Job.token == 1)
        .where(on_device == "cpu" if device == "cpu" else on_device != "cpu")
        .order_by(Job.id.desc())
        .limit(LOOKED_AT)
    )
    found = []
    for spec, started, finished, facts, model, dataset in session.execute(query):
        try:
            order = Order(JobSpec.model_validate(spec), model, dataset, None)
        except ValidationError:  # of an earlier release
            continue
        found.append(_past(order, facts, (finished - started).total_seconds(), device))
    return found


def _past(order: Order, engine: dict[str, object], seconds: float, device: str) -> Past:
    whole = anatomy_of(order.model)
    told = engine["seconds"]
    assert isinstance(told, dict)
    taken = merged({**told, "starting": max(0.1, seconds - sum(told.values()))})
    expected = merged(phases(order, whole, device))
    needed = memory(order, whole, device)
    peak = engine.get("peak_memory")
    return Past(expected, taken, needed, float(peak) if isinstance(peak, int) else needed)


def merged(by_phase: Phases) -> Phases:
    """Phases that are learned together, added up."""
    groups: Phases = {}
    for phase, seconds in by_phase.items():
        name = _GROUP.get(phase, phase)
        groups[name] = groups.get(name, 0.0) + seconds
    return groups
