"""Damage that nobody has met yet is found, counted and logged; what is whole or gone is passed over."""

import fcntl
import json
import logging
from pathlib import Path
from typing import Any

import pytest
from starlette.testclient import TestClient

from service import scrub
from service.config import Settings
from service.scrub import Scrubber
from tests.databases import on_databases
from tests.service.published import FILES, publish
from tests.service.routes.test_models import post
from tests.service.test_observe import scrape
from tests.uploads import bert_files, tar


def scrubber(client: TestClient, settings: Settings, **changes: Any) -> Scrubber:
    """As the application has it, but not at work yet."""
    state = client.app.state  # type: ignore[attr-defined]
    changed = settings.model_copy(update={"scrub_bytes_per_second": 1 << 40} | changes)
    return Scrubber(changed, state.database, lambda: state.telemetry.damaged("scrub"))


def found(caplog: pytest.LogCaptureFixture, stored: dict[str, Path]) -> dict[str, str]:
    """What was told of which of the stored files; rows of the samples have none."""
    lines = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    caplog.clear()
    told = {line.split()[3]: line.split(";")[0].split(maxsplit=4)[4] for line in lines}
    return {key: fault for key, fault in told.items() if key in stored}


@pytest.fixture
def stored(client: TestClient, settings: Settings, tmp_path: Path) -> dict[str, Path]:
    """Every stored file by its key: of a model, a data set and a job."""
    publish(client.app, tmp_path)  # type: ignore[arg-type]
    assert post(client, tar(bert_files())).status_code == 201
    rows = {"train": ("train.jsonl", b'{"text": "a", "label": 0}\n{"text": "b", "label": 1}\n')}
    assert client.post("/v1/datasets?name=d&task=text-classification", files=rows).status_code == 201
    root = Path(settings.storage.removeprefix("file://"))
    return {path.relative_to(root).as_posix(): path for path in root.rglob("*") if path.is_file()}


@on_databases
def test_what_is_lost_or_has_changed_is_told(
    client: TestClient, settings: Settings, stored: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    scrubber(client, settings).turn()
    assert found(caplog, stored) == {} and len(stored) > len(FILES) + 3
    (settings.scratch / "scrub.json").unlink()
    faults = {}
    for number, (key, path) in enumerate(sorted(stored.items())):
        if number % 2:
            path.unlink()
        else:
            data = path.read_bytes()
            path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
        faults[key] = "is lost" if number % 2 else "has changed"
    before = scrape(client)["secateur_damaged_files_total{by=scrub}"]
    scrubber(client, settings).turn()
    assert found(caplog, stored) == faults
    assert scrape(client)["secateur_damaged_files_total{by=scrub}"] >= before + len(faults)


def test_what_was_deleted_while_it_was_read_is_no_loss(
    client: TestClient, settings: Settings, stored: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    (model,) = [row for row in client.get("/v1/models").json()["data"] if f"models/{row['id']}/config.json" in stored]
    at_work = scrubber(client, settings)
    fault_of = at_work._fault_of

    def late(key: str, sha256: str) -> str | None:
        if "vocab.txt" in key:
            assert client.delete(f"/v1/models/{model['id']}").status_code == 204
        return fault_of(key, sha256)

    at_work._fault_of = late  # type: ignore[method-assign]
    at_work.turn()
    assert found(caplog, stored) == {}


def test_it_goes_on_where_it_was_stopped_and_rests_when_it_is_through(
    client: TestClient, settings: Settings, stored: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []

    def turn(last: str | None) -> None:
        at_work = scrubber(client, settings)
        fault_of = at_work._fault_of

        def seen(key: str, sha256: str) -> str | None:
            if key in stored:
                read.append(key)
            if last is not None and key.startswith(last):
                at_work._stop.set()
            return fault_of(key, sha256)

        at_work._fault_of = seen  # type: ignore[method-assign]
        at_work.turn()

    turn("datasets/ds_")
    assert {key.split("/")[0] for key in read} == {"models", "datasets"}
    turn(None)
    assert {*read} == {*stored} and len(read) == len(stored) + 1
    turn(None)
    assert len(read) == len(stored) + 1
    monkeypatch.setattr(scrub, "PAUSE_SECONDS", 0)
    turn(None)
    assert len(read) == 2 * len(stored) + 1


def test_one_process_reads_at_a_time(client: TestClient, settings: Settings, stored: dict[str, Path]) -> None:
    note = settings.scratch / "scrub.json"
    with note.open("w") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        scrubber(client, settings).turn()
        assert note.read_text() == ""
    scrubber(client, settings).turn()
    assert json.loads(note.read_text())[2] > 0


def test_it_reads_no_faster_than_it_may(client: TestClient, settings: Settings, stored: dict[str, Path]) -> None:
    at_work = scrubber(client, settings, scrub_bytes_per_second=1000)
    waited: list[float] = []

    def wait(timeout: float | None = None) -> bool:
        waited.append(timeout or 0.0)
        return False

    at_work._stop.wait = wait  # type: ignore[method-assign]
    at_work.turn()
    assert sum(waited) >= sum(path.stat().st_size for path in stored.values()) / 1000


@pytest.mark.parametrize(
    ("changes", "rate"),
    [
        ({}, 8 << 20),
        ({"storage_url": "s3://bucket"}, 0),
        ({"scrub_bytes_per_second": 5}, 5),
        ({"scrub_bytes_per_second": 0}, 0),
    ],
)
def test_object_stores_look_after_their_own(settings: Settings, changes: dict[str, Any], rate: int) -> None:
    assert settings.model_copy(update=changes).scrub_rate == rate
