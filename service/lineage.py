"""Where a model comes from and what was made of it: its ancestors and its descendants, and the jobs between them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Any

from pydantic import BaseModel, Field
from sqlalchemy import ColumnElement, func, literal, select, union_all
from sqlalchemy.orm import Session, aliased, load_only

from service.tables import Job, Model

LARGEST = 1000
"""Nodes of one answer, the nearest ones; also the most generations that are followed in either direction."""

_CUT_WORDS = 12
"""Cuts that are told of one job; further ones are only counted."""


class LineageJob(BaseModel):
    """The job that made a model."""

    id: str
    name: str
    status: str
    cut: str = Field(description="what was cut, in short")
    passed: bool | None = Field(description="whether every goal was met; null without a verdict")


class LineageNode(BaseModel):
    """A model among its kin; of a deleted one only what ties it to the others is told."""

    id: str
    parent_model_id: str | None
    generation: int = Field(description="0 is the model that was asked about; ancestors count down, descendants up")
    state: str = Field(description="as a model's own; or deleted")
    name: str | None
    parameters: int | None
    size: int | None = Field(description="bytes")
    created_at: datetime
    job: LineageJob | None = Field(description="null of an uploaded model, and where the job was deleted")


class LineageEdge(BaseModel):
    """One step: a job made `child` from `parent`. Both are among the nodes."""

    parent: str
    child: str
    job_id: str | None


class Lineage(BaseModel):
    """A tree as flat lists: nodes in an order in which parents come before their children."""

    model_id: str
    root_id: str = Field(description="the oldest ancestor among the nodes")
    nodes: list[LineageNode]
    edges: list[LineageEdge]
    truncated: bool = Field(description=f"more than {LARGEST} models are kin: those farthest away are left out")


def lineage_of(session: Session, model: Model) -> Lineage:
    """The ancestors of a model up to the upload, and all of its descendants: one query."""
    rows = session.execute(_query(model)).all()
    nodes = [_node(*row) for row in rows[:LARGEST]]
    nodes.sort(key=lambda node: (node.generation, node.id))
    known = {node.id for node in nodes}
    edges = [
        LineageEdge(parent=node.parent_model_id, child=node.id, job_id=node.job.id if node.job else None)
        for node in nodes
        if node.parent_model_id in known
    ]
    return Lineage(model_id=model.id, root_id=nodes[0].id, nodes=nodes, edges=edges, truncated=len(rows) > LARGEST)


def _query(model: Model) -> Any:
    """Models with their jobs and generations, the nearest first; walked up and down from `model` in one statement."""
    start = select(Model.id, Model.parent_model_id, literal(0).label("generation")).where(Model.id == model.id)
    up = start.cte("ancestors", recursive=True)
    older = aliased(Model)
    up = up.union_all(
        select(older.id, older.parent_model_id, up.c.generation - 1)
        .join(up, older.id == up.c.parent_model_id)
        .where(older.tenant == model.tenant, up.c.generation > -LARGEST)
    )
    down = start.cte("descendants", recursive=True)
    younger = aliased(Model)
    down = down.union_all(
        select(younger.id, younger.parent_model_id, down.c.generation + 1)
        .join(down, younger.parent_model_id == down.c.id)
        .where(younger.tenant == model.tenant, down.c.generation < LARGEST)
    )
    kin = union_all(
        select(up.c.id, up.c.generation).where(up.c.generation < 0), select(down.c.id, down.c.generation)
    ).subquery("kin")
    distance: ColumnElement[int] = func.abs(kin.c.generation)
    # Lists of files and whole results can be large, and none of them is told.
    narrow = (
        load_only(Model.parent_model_id, Model.state, Model.name, Model.parameters, Model.size, Model.created_at),
        load_only(Model.deleted_at),
        load_only(Job.name, Job.status, Job.configuration),
    )
    return (
        select(Model, Job, Job.result["passed"].as_boolean(), kin.c.generation)
        .options(*narrow)
        .join(kin, kin.c.id == Model.id)
        .outerjoin(Job, Job.id == Model.job_id)
        .order_by(distance, Model.id)
        .limit(LARGEST + 1)
    )


def _node(model: Model, job: Job | None, passed: bool | None, generation: int) -> LineageNode:
    deleted = model.deleted_at is not None
    return LineageNode(
        id=model.id,
        parent_model_id=model.parent_model_id,
        generation=generation,
        state="deleted" if deleted else model.state,
        name=None if deleted else model.name,
        parameters=None if deleted else model.parameters,
        size=None if deleted else model.size,
        created_at=model.created_at,
        job=None if job is None else _job(job, passed),
    )


def _job(job: Job, passed: bool | None) -> LineageJob:
    verdict = passed if job.configuration.get("acceptance") else None
    return LineageJob(id=job.id, name=job.name, status=job.status, cut=cut_in_short(job.configuration), passed=verdict)


def cut_in_short(configuration: Mapping[str, Any]) -> str:
    """What a job cuts on one line: `attention_heads 50 % by taylor, ffn_neurons 25 % by magnitude`."""
    pruning = configuration.get("pruning") or {}
    told = [_cut(cut) for cut in pruning.get("cuts") or []]
    if target := pruning.get("target"):
        told.append(f"{target['metric']} to {target['ratio']:.0%}".replace("%", " %"))
    more = [f"{len(told) - _CUT_WORDS} more"] if len(told) > _CUT_WORDS else []
    return ", ".join([*told[:_CUT_WORDS], *more])


def _cut(cut: Mapping[str, Any]) -> str:
    pattern, ratio, criterion = cut.get("pattern"), cut.get("ratio"), cut.get("criterion")
    words = [cut["structure"]]
    if pattern not in (None, "unstructured"):
        words.append(pattern)
    if ratio is not None:
        words.append(f"{ratio * 100:g} %")
    if criterion:
        words.append(f"by {criterion['kind']}")
    return " ".join(words)
