"""What will be done: drawn from the seed alone, before anything runs.

What a step meets is a matter of time, so a step names no job: it has a number from 0 to 1 that picks one among those
that are there.
"""

import hashlib
import random
from collections.abc import Iterator, Sequence
from dataclasses import astuple, dataclass
from itertools import islice

CLIENTS = ("red/0", "red/1", "red/2", "blue/0", "blue/1", "blue/2")
"""Two tenants, of each three clients."""

STEPS = {
    "submit": 26,
    "repeat": 4,
    "clone": 3,
    "read": 18,
    "wait": 3,
    "list": 7,
    "events": 4,
    "artifacts": 5,
    "download": 9,
    "cancel": 2,
    "pause": 3,
    "resume": 8,
    "retry": 6,
    "delete_job": 1,
    "push_model": 3,
    "push_dataset": 2,
    "delete_model": 2,
    "delete_dataset": 1,
    "deliveries": 2,
    "stranger": 4,
}
"""What clients do, and how often."""

FAULTS = {
    "kill worker": 4,
    "kill engine": 4,
    "freeze worker": 4,
    "stop worker": 2,
    "kill api": 2,
    "stop api": 1,
    "kill broker": 2,
    "stop broker": 1,
    "flush broker": 2,
    "crash database": 3,
    "cut connections": 3,
}
"""What is broken, and how often."""


@dataclass(frozen=True)
class Step:
    """What a client does next: `pick` chooses what it does it to, `way` how."""

    kind: str
    pick: float
    way: float
    pause: float
    """Seconds before it."""


@dataclass(frozen=True)
class Fault:
    """What is broken next; `down` is how long, from 0 to 1 of what the kind allows."""

    kind: str
    target: int
    down: float
    pause: float
    """Seconds before it."""


def steps(seed: int, client: str) -> Iterator[Step]:
    """A client's steps, without end."""
    chance = random.Random(f"{seed} {client}")
    while True:
        (kind,) = chance.choices(list(STEPS), list(STEPS.values()))
        yield Step(kind, chance.random(), chance.random(), chance.uniform(0.02, 0.4))


def faults(seed: int, pauses: tuple[float, float]) -> Iterator[Fault]:
    """What is broken, without end; `pauses` bound those in between, in seconds."""
    chance = random.Random(f"{seed} nemesis")
    while True:
        (kind,) = chance.choices(list(FAULTS), list(FAULTS.values()))
        yield Fault(kind, chance.randrange(2), chance.random(), chance.uniform(*pauses))


def digest(seed: int, pauses: tuple[float, float], clients: Sequence[str] = CLIENTS) -> str:
    """Some digits that tell plans apart."""
    drawn = [astuple(fault) for fault in islice(faults(seed, pauses), 200)]
    drawn += [astuple(step) for client in clients for step in islice(steps(seed, client), 200)]
    return hashlib.sha256(repr(drawn).encode()).hexdigest()[:12]
