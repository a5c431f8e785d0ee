"""Report lines of the engine: read with suspicion, kept until they can be written to the database."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal, TypeAlias

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, StringConstraints, TypeAdapter
from sqlalchemy.dialects import postgresql, sqlite
from sqlalchemy.orm import Session

from service.events import emit
from service.intake import strict_json
from service.jobs import Claim
from service.states import Phase
from service.tables import MetricPoint, utc_now

LONGEST_LINE = 64 << 10
MAX_WARNINGS = 100
MAX_EVENTS = 2_000
MAX_POINTS = 1_000_000
LONGEST_MESSAGE = 2_000


def _clean(text: str) -> str:
    return "".join(c if c >= " " or c in "\n\t" else " " for c in text)[:LONGEST_MESSAGE]


def _not_ours(event: str) -> str:
    if event.startswith("job."):
        raise ValueError("only the service tells of the job itself")
    return event


Message: TypeAlias = Annotated[str, AfterValidator(_clean)]
Code: TypeAlias = Annotated[str, StringConstraints(pattern=r"^[A-Z][A-Z0-9_]{0,63}$")]
Count: TypeAlias = Annotated[int, Field(ge=0, lt=2**53)]


class _Line(BaseModel):
    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class PhaseLine(_Line):
    """A phase begins."""

    type: Literal["phase"]
    phase: Phase


class ProgressLine(_Line):
    """How far the engine is."""

    type: Literal["progress"]
    fraction: float = Field(ge=0, le=1)
    step: Count
    total_steps: Count | None
    seconds_remaining: float | None = Field(None, ge=0)


class MetricLine(_Line):
    """One point of a curve; None was not finite."""

    type: Literal["metric"]
    name: str = Field(pattern=r"^[a-z0-9_./-]{1,100}$")
    step: Count
    value: float | None


class EventLine(_Line):
    """Something worth telling."""

    type: Literal["event"]
    event: Annotated[str, StringConstraints(pattern=r"^[a-z0-9_.]{1,60}$"), AfterValidator(_not_ours)]
    level: Literal["info", "warning", "error"]
    message: Message
    data: dict[str, Any] = {}


class WarningLine(_Line):
    """Something that the client should know of the result."""

    type: Literal["warning"]
    code: Code
    message: Message


class CheckpointLine(_Line):
    """What has been saved: a folder below `checkpoints/` that is complete."""

    type: Literal["checkpoint"]
    name: str = Field(pattern=r"^[0-9]{1,12}$")
    step: Count


class ErrorLine(_Line):
    """Why the engine gives up."""

    type: Literal["error"]
    code: Code
    message: Message
    blame: Literal["user", "service", "transient"]
    retryable: bool


Line: TypeAlias = PhaseLine | ProgressLine | MetricLine | EventLine | WarningLine | CheckpointLine | ErrorLine
_LINE: TypeAdapter[Line] = TypeAdapter(Annotated[Line, Field(discriminator="type")])


def parse(raw: bytes) -> Line | None:
    """One report line, None when it is malformed or holds what a database cannot store."""
    try:
        return _LINE.validate_python(strict_json.loads(raw))
    except ValueError:  # so are JsonRefused and pydantic's ValidationError
        return None


class Lines:
    """Splits a stream of bytes into lines of at most `LONGEST_LINE`; what is longer is dropped and counted."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = take
        self._rest = b""
        self._dropping = False
        self.too_long = 0

    def feed(self, data: bytes) -> None:
        """Take the next bytes; each complete line goes to `take`."""
        *complete, self._rest = (self._rest + data).split(b"\n")
        for line in complete:
            if not self._dropping and len(line) <= LONGEST_LINE:
                self._take(line)
            elif not self._dropping:
                self.too_long += 1
            self._dropping = False
        if len(self._rest) > LONGEST_LINE:
            self.too_long += not self._dropping
            self._dropping, self._rest = True, b""


@dataclass
class Pending:
    """What has been reported and is not yet in the database."""

    visible: dict[str, Any] = field(default_factory=dict)
    events: list[EventLine] = field(default_factory=list)
    points: dict[tuple[str, int], float | None] = field(default_factory=dict)

    def store(self, session: Session, held: Claim) -> None:
        """Write events and points; a point that is there already takes its latest value."""
        for line in self.events:
            emit(session, held.job_id, line.event, line.message, level=line.level, data=line.data)
        if self.points:
            _upsert(session, held, self.points)


def _upsert(session: Session, held: Claim, points: dict[tuple[str, int], float | None]) -> None:
    dialect = postgresql if session.get_bind().dialect.name == "postgresql" else sqlite
    insert = dialect.insert(MetricPoint)
    upsert = insert.on_conflict_do_update(
        index_elements=["job_id", "token", "name", "step"], set_={"value": insert.excluded.value}
    )
    now = utc_now()
    rows = [
        {"job_id": held.job_id, "token": held.token, "name": name, "step": step, "value": value, "time": now}
        for (name, step), value in points.items()
    ]
    session.execute(upsert, rows)


class Relay:
    """Collects what the engine reports. One thread feeds it, another takes from it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._pending = Pending()
        self._warnings: list[dict[str, str]] = []
        self._events = self._points = 0
        self.malformed = 0
        self.checkpoint: CheckpointLine | None = None
        self.error: ErrorLine | None = None

    def feed(self, raw: bytes) -> None:
        """Take one line."""
        line = parse(raw)
        with self._lock:
            if line is None:
                self.malformed += 1
            else:
                self._take(line)

    def _take(self, line: Line) -> None:
        match line:
            case PhaseLine():
                self._pending.visible["phase"] = line.phase
            case ProgressLine():
                self._pending.visible["progress"] = line.model_dump(exclude={"type"})
            case WarningLine() if len(self._warnings) < MAX_WARNINGS:
                self._warnings.append({"code": line.code, "message": line.message})
                self._pending.visible["warnings"] = list(self._warnings)
            case EventLine() if self._events < MAX_EVENTS:
                self._events += 1
                self._pending.events.append(line)
            case MetricLine() if self._points < MAX_POINTS:
                self._points += 1
                self._pending.points[line.name, line.step] = line.value
            case CheckpointLine():
                self.checkpoint = line
            case ErrorLine():
                self.error = self.error or line

    def take(self) -> Pending:
        """Everything that is pending, which now is the caller's to store."""
        with self._lock:
            pending, self._pending = self._pending, Pending()
            return pending

    def put_back(self, old: Pending) -> None:
        """What could not be stored is pending again, behind what is newer."""
        with self._lock:
            new = self._pending
            self._pending = Pending(
                {**old.visible, **new.visible}, [*old.events, *new.events], {**old.points, **new.points}
            )
