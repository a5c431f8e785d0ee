"""HTTP bodies of jobs, their records, keys and operations. Models and data sets describe theirs beside their routes."""

from datetime import UTC, datetime
from typing import Annotated, Any, Generic, Literal, TypeAlias, TypeVar

from pydantic import AfterValidator, AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from service.auth import Scope
from service.specs import Name
from service.specs.findings import Findings
from service.states import Kind, Phase, Status

T = TypeVar("T")


def _time_from_text(value: Any) -> Any:
    try:
        return datetime.fromisoformat(value) if isinstance(value, str) else value
    except ValueError as error:
        raise PydanticCustomError("time", "give a time as RFC 3339 has it, with its zone") from error


def _to_utc(value: datetime) -> datetime:
    try:
        return value.astimezone(UTC)
    except OverflowError as error:
        raise PydanticCustomError("calendar", "the time lies outside the calendar") from error


UtcTime: TypeAlias = Annotated[AwareDatetime, BeforeValidator(_time_from_text), AfterValidator(_to_utc)]
"""A time with its zone (RFC 3339), brought to UTC."""


class Page(BaseModel, Generic[T]):
    """A page of a list, newest first."""

    data: list[T]
    next_cursor: str | None = Field(None, description="ask for the next page with it; null at the end")


class Progress(BaseModel):
    """How far a running job is."""

    fraction: float
    step: int
    total_steps: int | None
    seconds_remaining: float | None


class Queue(BaseModel):
    """Where a queued job stands."""

    position: int | None = Field(
        description="1 goes next; in a long queue as of a second ago. Null unless queued, and for a moment once it is"
    )


class AttemptView(BaseModel):
    """One start of a job by a worker."""

    number: int
    worker: str
    started_at: datetime
    finished_at: datetime | None
    outcome: str | None


class JobWarning(BaseModel):
    """Something to know about a job that does not stop it."""

    code: str
    message: str


class Interval(BaseModel):
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


class Latency(BaseModel):
    """Latency of one runtime at one shape, in seconds."""

    runtime: str
    batch_size: int
    sequence_length: int
    p50: float
    p95: float


def if_there(description: str) -> Any:
    """A field that is left out of an answer where there is nothing to say."""
    return Field(None, description=description, exclude_if=lambda value: value is None)


class StructureView(BaseModel):
    """Sizes of a network, layer by layer; of an encoder-decoder the encoder's, then the decoder's.

    Of a family that is not known here only what its config tells under the usual names.
    """

    layers: int | None
    hidden_size: int | None
    attention_heads: list[int]
    ffn_width: list[int]
    vocabulary: int | None
    key_value_heads: list[int] | None = if_there("where query heads share keys and values")
    decoder_layers: int | None = if_there("of an encoder-decoder, as the next two")
    decoder_attention_heads: list[int] | None = if_there("per layer")
    decoder_ffn_width: list[int] | None = if_there("per layer")


class Measurement(BaseModel):
    """What was measured of one side."""

    metrics: dict[str, Interval]
    parameters: int
    nonzero_parameters: int
    size: int
    flops: int | None = Field(description="of one sequence; null where the network was never built")
    peak_memory: int | None
    latency: list[Latency]
    compressed_size: int | None = if_there("bytes of `compressed/`, where weights were set to zero")
    structure: StructureView


class VerdictLine(BaseModel):
    """One acceptance goal and how it went."""

    metric: str
    goal: dict[str, Any]
    measured: float | None
    passed: bool


class EngineFacts(BaseModel):
    """What the job ran on and how long each phase took, in seconds."""

    device: str
    peak_memory: int | None
    seconds: dict[str, float]
    versions: dict[str, str]


class ResultView(BaseModel):
    """What a finished job found: both sides measured in one run."""

    model_id: str | None
    verdict: list[VerdictLine]
    before: Measurement
    after: Measurement
    report_url: str
    engine: EngineFacts


class InspectionView(Findings):
    """What a finished inspection found."""

    report_url: str
    engine: EngineFacts


class JobErrorView(BaseModel):
    """Why a job failed and what to do about it."""

    code: str
    message: str
    blame: Literal["user", "service", "transient"]
    retryable: bool
    advice: str | None = Field(None, description="what to do about it; null for a code without any")


class CheckpointView(BaseModel):
    """What is saved of a job that has not ended well (yet)."""

    step: int = Field(description="training step at which the next attempt goes on")


class JobView(BaseModel):
    """A compression job or an inspection."""

    id: str
    object: Literal["job"] = "job"
    kind: Kind
    name: str
    metadata: dict[str, str]
    status: Status
    phase: Phase | None
    spec: dict[str, Any] = Field(description="the order as it was submitted")
    configuration: dict[str, Any] = Field(description="the order with every default filled in")
    progress: Progress
    queue: Queue
    attempts: list[AttemptView]
    warnings: list[JobWarning]
    result: ResultView | None = Field(description="what a compression found; null of an inspection")
    inspection: InspectionView | None = Field(description="what an inspection found; null in lists, to keep them short")
    error: JobErrorView | None
    checkpoint: CheckpointView | None = Field(None, description="null: the next attempt begins at the start")
    cloned_from: str | None = Field(None, description="id of the job that this one was cloned from")
    fingerprint: str | None = Field(None, description="equal for jobs of the same order about the same bytes")
    request_id: str | None = Field(None, description="of the request that made the job")
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None
    expires_at: datetime | None = Field(None, description="from then on its files are kept no more")
    expired_at: datetime | None = Field(None, description="when its files were removed: asking for them is 410")
    links: dict[str, str]


class Validated(BaseModel):
    """The answer to `validate_only`."""

    configuration: dict[str, Any]
    warnings: list[JobWarning]


class EventView(BaseModel):
    """Something that happened in a job."""

    id: str
    time: datetime
    level: Literal["info", "warning", "error"]
    type: str
    message: str
    data: dict[str, Any]


class PointView(BaseModel):
    """One point of a series; null is a value that was not finite."""

    step: int
    time: datetime
    value: float | None


class Series(BaseModel):
    """A training curve."""

    name: str
    points: list[PointView]


class ArtifactView(BaseModel):
    """A file that a job made."""

    id: str
    object: Literal["artifact"] = "artifact"
    job_id: str
    path: str
    kind: str
    media_type: str
    size: int
    sha256: str
    content_url: str
    created_at: datetime
    expires_at: datetime | None = Field(None, description="of its job")
    expired_at: datetime | None = Field(None, description="when its bytes were removed")


MOST_SECONDS = 100 * 366 * 24 * 3600
"""A hundred years: what lies beyond is a mistake, or leaves the calendar."""


class NewKey(BaseModel):
    """An order for an API key of the caller's tenant."""

    model_config = ConfigDict(extra="forbid", strict=True)

    name: Name
    scopes: list[Scope] = Field(min_length=1, max_length=3)
    expires_at: UtcTime | None = None
    expires_in: int | None = Field(None, ge=1, le=MOST_SECONDS, description="seconds; instead of expires_at")


class KeyView(BaseModel):
    """An API key without its secret."""

    id: str
    object: Literal["key"] = "key"
    name: str
    scopes: list[Scope]
    created_at: datetime
    expires_at: datetime | None
    last_used_at: datetime | None
    revoked_at: datetime | None


class CreatedKey(KeyView):
    """An API key as it is made."""

    key: str = Field(description="shown in this answer only")


class AuditEntryView(BaseModel):
    """Something that a key changed."""

    id: str
    object: Literal["audit_entry"] = "audit_entry"
    created_at: datetime
    key_id: str = Field(description="`command-line`: changed in the database itself")
    action: str
    target: str | None = Field(description="id of what was changed; for limits the name of the tenant")
    request_id: str
    data: dict[str, Any] = Field(description="other ids in the address, or the new limits")


class WorkerView(BaseModel):
    """A live worker."""

    name: str
    devices: list[dict[str, Any]]
    sandbox: str
    started_at: datetime


class FamilyView(BaseModel):
    """A network family and what the service can do with it."""

    name: str
    architectures: list[str]
    tasks: list[str]
    structures: list[str]
    stock_structures: list[str] = Field(
        description="cut uniformly, the export huggingface can express the result; others need another export"
    )
    stacks: list[str] = Field(description="names that a cut may give as its stack; none where there is one stack")
    reasons: dict[str, str] = Field(description="why a structure cannot be cut")
    exports: list[str]


class Supported(BaseModel):
    """What a job can do with a model."""

    tasks: list[str]
    structures: list[str]
    criteria: list[str]
    exports: list[str]


class StructureSupport(BaseModel):
    """A structure, what can score its units, and in which patterns they are cut."""

    name: str
    criteria: list[str]
    patterns: list[str]


class Limits(BaseModel):
    """Sizes that the service holds requests to; bytes."""

    json_body: int
    upload: int | None
    page: int
    wait_seconds: int
    attempts: int


class Capabilities(BaseModel):
    """All that this service can do."""

    families: list[FamilyView]
    other_families: Supported = Field(description="what can be done with a model of a family that is not listed")
    tasks: list[str]
    structures: list[StructureSupport]
    exports: list[str]
    metrics: dict[str, list[str]]
    limits: Limits
    workers: list[WorkerView]


class Alive(BaseModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(BaseModel):
    """What the service leans on."""

    status: Literal["ready"] = "ready"
    checks: dict[str, bool]
    sandbox: list[str] = Field(description="of the live workers: process, or bubblewrap with what belongs to it")
    warnings: list[str]
