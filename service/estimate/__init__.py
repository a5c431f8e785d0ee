"""Estimates of a job before it is queued: time, memory, disk, what comes out, and whether the workers have room.

Arithmetic over the sizes of the model and the data set, corrected by what past jobs of this service took.
"""

from collections.abc import Iterator, Sequence

from pydantic import BaseModel, Field
from sqlalchemy.orm import Session

from service.estimate.anatomy import TOLERANCE, Anatomy, after, anatomy_of
from service.estimate.learned import learn, merged, past_jobs
from service.estimate.room import disk, memory, stored_bytes
from service.estimate.work import phases
from service.resolve.order import Order
from service.tables import Worker

__all__ = ["Estimate", "estimate"]

_FLOPS_LENGTH = 128


class Range(BaseModel):
    """Between which values the truth should lie."""

    low: float
    high: float


class Count(BaseModel):
    """The same, of what is counted."""

    low: int
    high: int


class Expected(BaseModel):
    """The network that the job will leave; null where it cannot be told before the job has run."""

    parameters: Count | None
    size: Count | None = Field(description="bytes of its weights")
    flops: Count | None = Field(description="of one sequence of the benchmark's length")


class Reason(BaseModel):
    """Why a job would not run now."""

    code: str
    message: str


class Estimate(BaseModel):
    """What a job would take and give."""

    seconds: Range = Field(description="from its start to its end; the wait in the queue is not in it")
    memory: int = Field(description="bytes on the device that it would run on")
    disk: int = Field(description="bytes that it needs free while it runs, its results among them")
    expected: Expected
    fits: bool = Field(description="whether a worker is alive that has room for it, and the storage has")
    reasons: list[Reason] = Field(description="why it does not fit")
    device: str = Field(description="the kind of device that it would run on")
    learned_from: int = Field(description="past jobs by which the figures were corrected; with none they are rough")


def estimate(session: Session, order: Order, workers: Sequence[Worker], free_bytes: int | None) -> Estimate:
    """The estimate of an order that the door has taken; `free_bytes` is the storage's room, None where unbounded."""
    device = _device(order, workers)
    whole, learned = anatomy_of(order.model), learn(past_jobs(session, device))
    seconds = learned.seconds(merged(phases(order, whole, device)))
    time = Range(low=round(seconds / learned.spread, 1), high=round(seconds * learned.spread, 1))
    needed, room = int(memory(order, whole, device) * learned.memory), int(disk(order, whole))
    reasons = list(_reasons(order, device, workers, needed, room, free_bytes, time))
    return Estimate(
        seconds=time,
        memory=needed,
        disk=room,
        expected=_expected(order, whole),
        fits=not reasons,
        reasons=reasons,
        device=device,
        learned_from=learned.jobs,
    )


def _device(order: Order, workers: Sequence[Worker]) -> str:
    gpu = any(device["kind"] == "cuda" for worker in workers for device in worker.devices)
    return "cuda" if order.spec.device == "cuda" or (order.spec.device == "auto" and gpu) else "cpu"


def _expected(order: Order, whole: Anatomy | None) -> Expected:
    if whole is None:
        same = all(cut.structure == "weights" for cut in order.spec.pruning.cuts)
        known = _count(order.model.parameters, order.model.parameters) if same else None
        return Expected(parameters=known, size=known and _count(*_scaled(known, order)), flops=None)
    least, most = after(order, whole)
    parameters = _around(order, least.parameters, most.parameters)
    length = order.benchmark["sequence_length"] if order.benchmark else min(_FLOPS_LENGTH, order.longest or 1)
    flops = _around(order, least.flops(length), most.flops(length))
    return Expected(parameters=parameters, size=_count(*_scaled(parameters, order)), flops=flops)


def _around(order: Order, least: float, most: float) -> Count:
    """With a tolerance; a target of FLOPs says little of parameters and the other way round, so it has a wider one."""
    if least == most and all(cut.structure == "weights" for cut in order.spec.pruning.cuts):
        tolerance = 0.0 if order.spec.pruning.target is None else 0.1
    else:
        tolerance = TOLERANCE
    return _count(least * (1 - tolerance), most * (1 + tolerance))


def _count(low: float, high: float) -> Count:
    return Count(low=round(low), high=round(high))


def _scaled(parameters: Count, order: Order) -> tuple[float, float]:
    per_weight = stored_bytes(order)
    return per_weight * parameters.low, per_weight * parameters.high


def _reasons(
    order: Order,
    device: str,
    workers: Sequence[Worker],
    needed: int,
    room: int,
    free_bytes: int | None,
    time: Range,
) -> Iterator[Reason]:
    devices = [found for worker in workers for found in worker.devices if found["kind"] == device]
    most = max((found["memory"] for found in devices), default=0)
    if not workers:
        yield Reason(code="NO_WORKER", message="No worker is alive; the job would wait for one.")
    elif not devices:
        yield Reason(code="DEVICE_NOT_AVAILABLE", message=f"No live worker has a device of the kind {device}.")
    elif needed > most:
        message = f"The job needs about {_gigabytes(needed)} of memory; the largest {device} has {_gigabytes(most)}."
        yield Reason(code="MEMORY_TOO_SMALL", message=f"{message} Lower batch_size or max_length.")
    if free_bytes is not None and room > free_bytes:
        message = f"The job needs about {_gigabytes(room)} of disk; {_gigabytes(max(0, free_bytes))} can be used."
        yield Reason(code="DISK_TOO_SMALL", message=message)
    if order.spec.timeout < time.low:
        message = f"The job takes at least about {time.low:.0f} s; its timeout is {order.spec.timeout} s."
        yield Reason(code="TIMEOUT_TOO_SHORT", message=message)


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"
