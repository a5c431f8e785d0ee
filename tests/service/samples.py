"""Rows and specs that tests start from; every argument changes one thing."""

from typing import Any, TypeVar

from service import jobs
from service.catalog import family_of
from service.db import Database
from service.ids import new_id
from service.specs import JobSpec
from service.tables import Artifact, Base, Dataset, Job, Model, Worker

TENANT = "default"
Row = TypeVar("Row", bound=Base)


def a_model(**changes: Any) -> Model:
    """A bert classifier of two labels, 4 layers of 4 heads and 64 neurons, reading 128 tokens."""
    facts = {"labels": ["bad", "good"], "max_length": 128, "has_head": True, "has_tokenizer": True, "uniform": True}
    values: dict[str, Any] = {
        "id": new_id("mdl"),
        "tenant": TENANT,
        "name": "tiny",
        "state": "ready",
        "family": "bert",
        "architecture": "BertForSequenceClassification",
        "task": "text-classification",
        "parameters": 1000,
        "size": 4000,
        "dtype": "float32",
        "files": [{"path": "config.json", "size": 2, "sha256": "0" * 64}],
        "structure": {
            "layers": 4,
            "hidden_size": 32,
            "attention_heads": [4] * 4,
            "ffn_width": [64] * 4,
            "vocabulary": 100,
        },
        "facts": {**facts, **changes.pop("facts", {})},
        "prefix": "models/none",
        "archive_size": 4096,
        "archive_sha256": "0" * 64,
    }
    return Model(**{**values, **changes})


def a_model_of(family: str, **changes: Any) -> Model:
    """A model of any family with its first head: 4 layers of 4 heads, two of which share keys where heads do."""
    known = family_of(family)
    structure = dict(a_model().structure)
    if known.kv_heads:
        structure["key_value_heads"] = [2] * 4
    if known.stacks:
        structure |= {"decoder_layers": 2, "decoder_attention_heads": [4] * 2, "decoder_ffn_width": [64] * 2}
    heads = [(architecture, task) for architecture, task in known.architectures.items() if task in known.tasks[:1]]
    architecture, task = next(iter(heads), ("unknown", None))
    facts: dict[str, Any] = {} if task == "text-classification" else {"labels": None}
    if not known.known:
        facts["max_length"] = None
    values = {"family": family, "architecture": architecture, "task": task, "structure": structure}
    return a_model(**{**values, **changes, "facts": {**facts, **changes.get("facts", {})}})


def a_dataset(**changes: Any) -> Dataset:
    """Rows with the labels 0 and 1 in three splits."""
    split = {"rows": 8, "size": 100, "sha256": "0" * 64}
    values: dict[str, Any] = {
        "id": new_id("ds"),
        "tenant": TENANT,
        "name": "tiny",
        "task": "text-classification",
        "splits": {"train": split, "validation": split, "test": split},
        "labels": {"names": None, "integers": 1, "pairs": False, "multi_label": False},
        "prefix": "datasets/none",
    }
    return Dataset(**{**values, **changes})


def a_spec(model_id: str = "mdl_" + "0" * 26, **changes: Any) -> dict[str, Any]:
    """A job without data: a third of the neurons, by their norm."""
    cut = {"structure": "ffn_neurons", "ratio": 0.33, "criterion": {"kind": "magnitude"}}
    spec = {"name": "smaller", "model_id": model_id, "task": "text-classification", "pruning": {"cuts": [cut]}}
    return {**spec, **changes}


def a_job(model_id: str, tenant: str = TENANT, **changes: Any) -> Job:
    """A job row as `jobs.submit` takes it."""
    spec = a_spec(model_id)
    job = jobs.new_job(tenant, spec, JobSpec.model_validate(spec).model_dump(mode="json"))
    for name, value in changes.items():
        setattr(job, name, value)
    return job


def a_worker(name: str = "w1", *kinds: str, lives: float = 1e12) -> Worker:
    """A worker that is alive until `lives`, seconds since 1970."""
    devices = [{"kind": kind, "name": kind, "memory": 1} for kind in kinds or ("cpu",)]
    return Worker(name=name, devices=devices, sandbox="process", seen_until=lives)


def an_artifact(job: Job, path: str, content: bytes, sha256: str, key: str) -> Artifact:
    """A row for bytes that lie in storage under `key`."""
    return Artifact(
        id=new_id("art"),
        job_id=job.id,
        tenant=job.tenant,
        path=path,
        kind=path.partition("/")[0],
        media_type="application/octet-stream",
        size=len(content),
        sha256=sha256,
        key=key,
    )


def store(database: Database, *rows: Row) -> Row:
    """Commit rows in their order; returns the first."""
    with database.session_scope() as session:
        for row in rows:
            session.add(row)
            session.flush()
    return rows[0]


def submitted(database: Database, **changes: Any) -> Job:
    """A queued job with a model of its own."""
    tenant = changes.get("tenant", TENANT)
    model = store(database, a_model(tenant=tenant))
    with database.session_scope() as session:
        return jobs.submit(session, a_job(model.id, **changes))


MEASUREMENT: dict[str, Any] = {
    "metrics": {"accuracy": {"value": 0.9, "low": 0.8, "high": 1.0}},
    "parameters": 1000,
    "nonzero_parameters": 900,
    "size": 4000,
    "flops": 10,
    "peak_memory": None,
    "latency": [{"runtime": "torch", "batch_size": 1, "sequence_length": 8, "p50": 0.1, "p95": 0.2}],
    "structure": {
        "layers": 1,
        "hidden_size": 8,
        "attention_heads": [1],
        "ffn_width": [4],
        "vocabulary": 9,
    },
}
RESULT: dict[str, Any] = {
    "model_id": None,
    "verdict": [{"metric": "size", "goal": {"metric": "size", "max_ratio": 1.0}, "measured": 1.0, "passed": True}],
    "passed": True,
    "before": MEASUREMENT,
    "after": MEASUREMENT,
    "model": {"directory": "huggingface"},
    "archive": {"size": 0, "sha256": "0" * 64},
    "engine": {"device": "cpu", "peak_memory": 1, "seconds": {"loading": 0.1}, "versions": {"torch": "2"}},
}
FINDINGS: dict[str, Any] = {
    "loss": 0.5,
    "rows": 8,
    "split": "validation",
    "near_zero": {"threshold": 0.1, "weights": 9, "share": 0.1, "zeros": 0.0, "layers": [], "matrices": []},
    "scored": [
        {
            "structure": "layers",
            "criterion": {"kind": "magnitude", "norm": 1},
            "groups": [
                {
                    "stack": "encoder",
                    "layer": None,
                    "place": "",
                    "units": 1,
                    "mean": 1.0,
                    "idle": 0.0,
                    "quantiles": [1.0] * 7,
                    "scores": [1.0],
                }
            ],
            "trials": [{"ratio": 0.5, "removed": 0, "of": 1, "score": 0.0, "loss": 0.5, "agreement": 1.0}],
        }
    ],
    "alike": [{"stack": "encoder", "states": None, "weights": [[1.0]]}],
    "highlights": ["Nothing stands out."],
    "engine": {"device": "cpu", "peak_memory": 1, "seconds": {"loading": 0.1}, "versions": {"torch": "2"}},
}
