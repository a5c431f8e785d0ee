"""Rows and bytes: whatever a row names lies in the storage as the row says, and nothing lies there without a row."""

from collections.abc import Iterator

from service.checkpoints import newest_first
from tests.nemesis.evidence import Evidence, Row, Rule

Wanted = tuple[str, str, int | None, str | None]
"""Who names it, key, size, digest."""


def _wanted(evidence: Evidence) -> Iterator[Wanted]:
    state = evidence.state
    for artifact in state["artifacts"]:
        yield artifact["id"], artifact["key"], artifact["size"], artifact["sha256"]
    for model in state["models"]:
        if model["state"] == "ready" and (model["deleted_at"] is None):
            for file in model["files"]:
                yield model["id"], f"{model['prefix']}/{file['path']}", file["size"], file["sha256"]
    for dataset in state["datasets"]:
        if dataset["deleted_at"] is None:
            for name, split in dataset["splits"].items():
                yield dataset["id"], f"{dataset['prefix']}/{name}.jsonl", split["size"], split["sha256"]
    for job in state["jobs"]:
        for checkpoint in newest_first(job["checkpoint"]):
            for file in checkpoint["files"]:
                yield job["id"], f"{checkpoint['key']}/{file['path']}", file["size"], file["sha256"]


def rows_without_bytes(evidence: Evidence) -> Iterator[str]:
    """Every artifact, model, data set and checkpoint is whole."""
    stored: dict[str, Row] = evidence.state["stored"]
    for owner, key, size, sha256 in _wanted(evidence):
        there = stored.get(key)
        if there is None:
            yield f"{owner}: {key} is missing"
        elif (there["size"], there["sha256"]) != (size, sha256):
            yield f"{owner}: {key} has other bytes than its row says"


def bytes_without_rows(evidence: Evidence) -> Iterator[str]:
    """When what nobody owns was swept, nothing is left that no row names."""
    named = {key for _, key, _, _ in _wanted(evidence)}
    for key in sorted(set(evidence.state["stored"]) - named):
        yield f"{key} belongs to nothing"


RULES: tuple[Rule, ...] = (rows_without_bytes, bytes_without_rows)
