"""The states of a job and which may follow which."""

from typing import Literal, TypeAlias

Status: TypeAlias = Literal["queued", "running", "cancelling", "succeeded", "rejected", "failed", "cancelled"]
Kind: TypeAlias = Literal["compression", "inspection"]
"""What a job does: prune a model, or look at it before anything is pruned."""

Phase: TypeAlias = Literal["loading", "analyzing", "pruning", "finetuning", "evaluating", "exporting", "verifying"]

FOLLOWS: dict[str, frozenset[str]] = {
    "queued": frozenset({"running", "cancelled", "failed"}),
    "running": frozenset({"queued", "cancelling", "succeeded", "rejected", "failed"}),
    "cancelling": frozenset({"cancelled"}),
    "succeeded": frozenset(),
    "rejected": frozenset(),
    "failed": frozenset(),
    "cancelled": frozenset(),
}

FINAL = frozenset(status for status, following in FOLLOWS.items() if not following)
