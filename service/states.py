"""The states of a job and which may follow which."""

from typing import Literal, TypeAlias

Status: TypeAlias = Literal[
    "queued", "running", "pausing", "paused", "cancelling", "succeeded", "rejected", "failed", "cancelled"
]
Kind: TypeAlias = Literal["compression", "inspection"]
"""What a job does: prune a model, or look at it before anything is pruned."""

Phase: TypeAlias = Literal["loading", "analyzing", "pruning", "finetuning", "evaluating", "exporting", "verifying"]

FOLLOWS: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "paused", "cancelled"}),
    "running": frozenset({"queued", "pausing", "cancelling", "succeeded", "rejected", "failed"}),
    "pausing": frozenset({"paused", "cancelling", "succeeded", "rejected", "failed"}),
    "paused": frozenset({"queued", "cancelled"}),
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "rejected": frozenset(),
    "failed": frozenset({"queued"}),
    "cancelled": frozenset({"queued"}),
}

FINAL = frozenset({"succeeded", "rejected", "failed", "cancelled"})
"""States that a job leaves no more by itself: the last two only when it is asked for again."""

HELD = ("running", "pausing", "cancelling")
"""States in which a worker has the job."""
