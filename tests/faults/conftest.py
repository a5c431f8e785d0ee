"""A live service with real PostgreSQL and Valkey that the tests damage, and what must hold afterwards."""

import hashlib
import io
import itertools
import tarfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pydantic import SecretStr
from sqlalchemy import select

from service.auth import issue_key
from service.config import Settings
from service.db import Database
from service.embedded import EmbeddedBroker
from service.states import FINAL
from service.storage import open_storage
from service.tables import Artifact, Attempt, Event, Model
from tests.faults.recovery import Recovery, table
from tests.live import WORKER, LiveService
from tests.models import tiny_dataset, tiny_model
from tests.servers import PostgreSQL, valkey
from tests.workers.conftest import FAKE_ENGINE

EPOCHS = 40


def engines_below(pid: int) -> list[psutil.Process]:
    """Engines among what a worker has started."""
    below = psutil.Process(pid).children(recursive=True)
    told = [(process, process.cmdline()) for process in below if process.name() != "bwrap"]
    return [process for process, words in told if "workers.engine" in words or FAKE_ENGINE[-1] in words]


class Site:
    """A live service with a tiny model and a small data set uploaded."""

    def __init__(self, live: LiveService, broker: EmbeddedBroker, folder: Path) -> None:
        self.live, self.broker, self.folder = live, broker, folder
        self._numbers = itertools.count()
        live.start_api()
        live.start_worker()
        self.model_id = self.push_model(tiny_model(folder / "model"))
        self.dataset_id = self.push_dataset(tiny_dataset(folder / "dataset", train=64, validation=16, test=32))

    def push_model(self, folder: Path) -> str:
        """Upload a model; its id."""
        archive = io.BytesIO()
        with tarfile.open(fileobj=archive, mode="w") as tar:
            tar.add(folder, arcname="model")
        return self._created("/v1/models?name=tiny", content=archive.getvalue(), kind="application/x-tar")

    def push_dataset(self, folder: Path) -> str:
        """Upload a data set; its id."""
        parts = {file.stem: (file.name, file.read_bytes()) for file in folder.iterdir()}
        return self._created("/v1/datasets?name=tiny&task=text-classification", files=parts)

    def _created(self, path: str, kind: str | None = None, **body: Any) -> str:
        answer = self.live.client.post(path, headers={"Content-Type": kind} if kind else {}, **body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def heal(self) -> None:
        """Start again what the last test has killed, and end what it has added."""
        self.live.leave_one()
        if self.broker.process is None or self.broker.process.poll() is not None:
            self.broker.start()
        if self.live.api is None or self.live.api.poll() is not None:
            self.live.start_api()
        if self.live.worker is None or self.live.worker.poll() is not None:
            self.live.start_worker()

    def submit(self, epochs: int = EPOCHS, **parts: Any) -> str:
        """Queue a job that fine-tunes long enough to be disturbed."""
        return self.order(
            dataset_id=self.dataset_id,
            pruning={"cuts": [{"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "magnitude"}}]},
            finetuning={"epochs": epochs, "learning_rate": 1e-3, "batch_size": 16},
            **parts,
        )

    def script(self, behaviour: str, *, timeout: int = 60, webhook_url: str | None = None, **metadata: str) -> str:
        """Queue a job whose engine does as `fake_engine.py` says, where the worker is `tests.scripted`."""
        number = next(self._numbers)
        told = {"started": str(self.folder / f"started-{number}"), "go": str(self.folder / f"go-{number}")}
        told |= {"behaviour": behaviour, **metadata}
        return self.order(metadata=told, timeout=timeout, webhook_url=webhook_url)

    def order(self, **parts: Any) -> str:
        """Queue a job that zeroes weights from file to file, or with `parts` does more; its id."""
        answer = self.live.client.post("/v1/jobs", json=self.spec(**parts))
        assert answer.status_code == 202, answer.text
        return str(answer.json()["id"])

    def spec(self, **parts: Any) -> dict[str, Any]:
        """Such a job's spec."""
        cut = {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "magnitude"}}
        spec = {"name": "fault", "model_id": self.model_id, "task": "text-classification", "benchmark": None}
        return spec | {"pruning": {"cuts": [cut]}} | parts

    def job(self, job_id: str) -> dict[str, Any]:
        """The job as the API tells it."""
        answer: dict[str, Any] = self.live.client.get(f"/v1/jobs/{job_id}").json()
        return answer

    def running(self, job_id: str) -> None:
        """Wait until the engine trains."""
        self.live.wait_for(lambda: self.job(job_id)["phase"] == "finetuning", "the job to train")

    def started(self, job_id: str) -> Path:
        """The file that a scripted engine writes when it begins."""
        return Path(self.job(job_id)["metadata"]["started"])

    def saved(self, job_id: str) -> int:
        """Step of the job's checkpoint; 0 without one."""
        checkpoint: dict[str, Any] | None = self.job(job_id)["checkpoint"]
        return 0 if checkpoint is None else int(checkpoint["step"])

    def resumed_at(self, job_id: str) -> list[int]:
        """Steps at which attempts went on from a checkpoint."""
        with self.live.database.session_scope(read_only=True) as session:
            rows = select(Event.data).where(Event.job_id == job_id, Event.type == "checkpoint.resumed")
            return [data["step"] for data in session.scalars(rows.order_by(Event.id))]

    def stored(self, job_id: str) -> list[str]:
        """Keys of all that the storage holds of a job."""
        storage = open_storage(self.live.settings.storage)
        return [key for kind in ("artifacts", "checkpoints") for key in storage.list(f"{kind}/{job_id}")]

    def ended(self, job_id: str) -> dict[str, Any]:
        """Wait until the job has ended."""
        self.live.wait_for(lambda: self.job(job_id)["status"] in FINAL, "the job to end", seconds=240)
        return self.job(job_id)

    def engine(self) -> psutil.Process:
        """The engine's process."""
        assert self.live.worker is not None
        (engine,) = engines_below(self.live.worker.pid)
        return engine

    def outcomes(self, job_id: str) -> list[str | None]:
        """How the job's attempts ended, in order."""
        with self.live.database.session_scope(read_only=True) as session:
            rows = select(Attempt.outcome).where(Attempt.job_id == job_id).order_by(Attempt.token)
            return list(session.scalars(rows))

    def assert_one_result(self, job_id: str, outcomes: list[str]) -> None:
        """The job succeeded once: these attempts, one model, one set of artifacts that can be fetched whole."""
        job = self.ended(job_id)
        assert job["status"] == "succeeded", (job["error"], self.live.log())
        assert self.outcomes(job_id) == outcomes
        with self.live.database.session_scope(read_only=True) as session:
            models = list(session.scalars(select(Model).where(Model.job_id == job_id)))
            artifacts = list(session.scalars(select(Artifact).where(Artifact.job_id == job_id)))
        assert [model.id for model in models] == [job["result"]["model_id"]]
        kept = sorted(open_storage(self.live.settings.storage).list(f"artifacts/{job_id}"))
        assert kept == sorted(artifact.key for artifact in artifacts) and kept
        assert {key.split("/")[2] for key in kept} == {str(len(outcomes))}
        archive = self.live.client.get(f"/v1/jobs/{job_id}/model")
        assert archive.headers["ETag"] == f'"{hashlib.sha256(archive.content).hexdigest()}"'


SHORT = {
    "lease_seconds": 3,
    "heartbeat_seconds": 0.2,
    "reconcile_seconds": 2,
    "kill_grace_seconds": 2,
}


def make_settings(folder: Path, database_url: str, broker_url: str, leases: str = "short", **changes: Any) -> Settings:
    """Settings with leases short enough for tests, or those of production with checkpoints often enough to see."""
    settings = Settings(
        data_dir=folder / "data",
        database_url=SecretStr(database_url),
        broker_url=SecretStr(broker_url),
        checkpoint_seconds=0.5,
        disk_reserve_bytes=1 << 20,
        job_memory_bytes=2 << 30,
    )
    return settings.model_copy(update=changes | (SHORT if leases == "short" else {}))


@pytest.fixture(scope="session")
def leases(pytestconfig: pytest.Config) -> str:
    """Whether leases are `short` or those of `production`."""
    return str(pytestconfig.getoption("leases"))


@pytest.fixture
def recovery(record_property: Callable[[str, object], None], leases: str) -> Recovery:
    """Takes times to recover."""
    return Recovery(record_property, leases)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Tell the times to recover that were measured."""
    reports = [*terminalreporter.getreports("passed"), *terminalreporter.getreports("failed")]
    if lines := table(report for report in reports if report.when == "call"):
        terminalreporter.section("times to recover")
        for line in lines:
            terminalreporter.write_line(line)


def open_site(
    folder: Path, settings: Settings, broker: EmbeddedBroker, worker: Sequence[str] = WORKER
) -> Iterator[Site]:
    """A site that is up, for a fixture to yield from."""
    database = Database(settings.database)
    with database.session_scope() as session:
        _, key = issue_key(session, tenant="default", name="faults", scopes=["admin"])
    database.dispose()
    with LiveService(settings, key, worker) as live:
        yield Site(live, broker, folder)


SCRIPTED = ("-m", "tests.scripted")

Ready = tuple[Path, Settings, EmbeddedBroker]


@pytest.fixture(scope="session")
def servers(
    postgresql_server: PostgreSQL, postgresql_template: str, tmp_path_factory: pytest.TempPathFactory, leases: str
) -> Callable[..., AbstractContextManager[Ready]]:
    """A broker, a database and a folder of its own for a site, by name, with what differs in its settings."""

    @contextmanager
    def opened(name: str, **differing: Any) -> Iterator[Ready]:
        folder = tmp_path_factory.mktemp(name)
        url = postgresql_server.url(postgresql_server.create(postgresql_template))
        with valkey() as broker:
            yield folder, make_settings(folder, url, broker.url, leases, **differing), broker

    return opened


@pytest.fixture(scope="session")
def damaged_site(servers: Callable[..., AbstractContextManager[Ready]]) -> Iterator[Site]:
    """One service for all tests on PostgreSQL, each of which breaks something."""
    with servers("faults") as ready:
        yield from open_site(*ready)


@pytest.fixture
def site(damaged_site: Site) -> Site:
    """The service, whole again."""
    damaged_site.heal()
    return damaged_site


@pytest.fixture(scope="session")
def damaged_scripted_site(servers: Callable[..., AbstractContextManager[Ready]]) -> Iterator[Site]:
    """The same for tests to which the inside of the engine does not matter."""
    with servers("scripted", sandbox="process", webhook_allow_private=True, webhook_seconds=0.2) as ready:
        yield from open_site(*ready, SCRIPTED)


@pytest.fixture
def scripted(damaged_scripted_site: Site) -> Site:
    """Its service, whole again."""
    damaged_scripted_site.heal()
    return damaged_scripted_site
