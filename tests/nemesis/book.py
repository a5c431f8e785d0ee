"""What a tenant's clients know: the ids that they were given, and what they last saw of them."""

import threading
from dataclasses import dataclass, field
from typing import Any, TypeVar

from service.states import FINAL

T = TypeVar("T")
RECENT = 12
"""A client mostly busies itself with what is new."""


@dataclass
class Made:
    """Something that was ordered under an idempotency key; without an id until that was answered."""

    key: str
    path: str
    content: dict[str, Any]
    """What goes to httpx: the body and its kind."""
    id: str | None = None
    status: str = "queued"


@dataclass
class Book:
    """One tenant's; shared by its clients. `finished` models stay, as jobs are always about one of them."""

    tenant: str
    model_id: str
    dataset_id: str
    orders: list[Made] = field(default_factory=list)
    models: list[str] = field(default_factory=list)
    datasets: list[str] = field(default_factory=list)
    artifacts: list[str] = field(default_factory=list)
    endpoints: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def jobs(self, *statuses: str) -> list[Made]:
        """Jobs whose id is known, the newest last; those last seen in one of these states, if any is named."""
        with self.lock:
            known = [made for made in self.orders if made.id is not None and made.status != "deleted"]
        return [made for made in known if not statuses or made.status in statuses]

    def unfinished(self) -> int:
        """How many jobs are queued or running, as far as is known."""
        with self.lock:
            return sum(made.status not in FINAL and made.status not in ("paused", "deleted") for made in self.orders)

    def ordered(self, made: Made) -> Made:
        """Note an order before it is sent."""
        with self.lock:
            self.orders.append(made)
        return made

    def saw(self, views: list[dict[str, Any]]) -> None:
        """Note what an answer told of jobs."""
        told = {view["id"]: view for view in views}
        with self.lock:
            for made in self.orders:
                if made.id in told and made.status != "deleted":
                    made.status = told[made.id]["status"]
            made_models = [view["result"]["model_id"] for view in views if view["result"]]
            self.models += [model for model in made_models if model is not None and model not in self.models]


def chosen(things: list[T], pick: float) -> T | None:
    """One of the newest; None when there are none."""
    recent = things[-RECENT:]
    return recent[int(pick * len(recent))] if recent else None
