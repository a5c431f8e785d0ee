"""`secateur up` for real, on the loopback."""

import os
import signal
import stat
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from service.processes import start
from service.up import run_up
from tests.live import kill_tree
from tests.processes import gone, wait_for
from tests.servers import free_port


class Up:
    """A running `secateur up` and what it has printed."""

    def __init__(self, folder: Path, *, settings: dict[str, str] | None = None) -> None:
        self.data = folder / "data"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.output = folder / "output"
        self.environment = {"PATH": os.defpath, **(settings or {})}
        self.process = self.launch(self.port)

    def launch(self, port: int, data: Path | None = None) -> subprocess.Popen[bytes]:
        """Run `secateur up`; its output goes to one file."""
        command = [sys.executable, "-m", "service.cli", "up", "--data-dir", data or self.data, "--port", str(port)]
        with self.output.open("ab") as out:
            return start([str(word) for word in command], env=self.environment, stdout=out, stderr=out)

    def said(self, text: str) -> bool:
        """Whether it has printed a text."""
        assert self.process.poll() is None, self.output.read_text()
        return text in self.output.read_text()

    def children(self) -> dict[str, psutil.Process]:
        """Its child processes by what they are."""
        found = {}
        for child in psutil.Process(self.process.pid).children():
            try:
                line = " ".join(child.cmdline())
            except psutil.NoSuchProcess:  # a zombie that is about to be reaped counts as gone
                continue
            for name in ("valkey", "api", "celery"):
                if f"{name}-server" in line or f"cli {name}" in line or f"-m {name}" in line:
                    found[name] = child
        return found

    def ready(self) -> bool:
        """Whether everything works together."""
        try:
            return httpx.get(f"{self.url}/readyz", timeout=5, trust_env=False).status_code == 200
        except httpx.TransportError:
            return False


@pytest.fixture(scope="module")
def up(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Up]:
    """The service, started once for this module."""
    up = Up(tmp_path_factory.mktemp("up"))
    try:
        wait_for(lambda: up.said("ready at") and up.ready(), seconds=90)
        yield up
    finally:
        kill_tree(up.process)


def test_it_says_where_it_is_and_leaves_a_key_that_works(up: Up) -> None:
    text = up.output.read_text()
    assert f"Secateur is ready at {up.url}" in text
    file = up.data / "api-key"
    assert f'curl -H "Authorization: Bearer $(cat {file})" {up.url}/v1/capabilities' in text
    assert file.read_text() not in text
    assert (up.data / "url").read_text() == up.url
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert stat.S_IMODE(up.data.stat().st_mode) == 0o700
    headers = {"Authorization": f"Bearer {file.read_text()}"}
    answer = httpx.get(f"{up.url}/v1/capabilities", headers=headers, trust_env=False)
    assert answer.status_code == 200 and len(answer.json()["workers"]) == 1


def test_a_second_one_on_the_same_data_says_who_is_first(up: Up) -> None:
    second = up.launch(free_port())
    assert second.wait(60) == 3
    assert f"already running on {up.data} as process {up.process.pid} at {up.url}" in up.output.read_text()
    assert up.ready()


def test_a_port_in_use_is_told(up: Up, tmp_path: Path) -> None:
    second = up.launch(up.port, tmp_path / "other")
    assert second.wait(60) == 3
    assert f"port {up.port} on 127.0.0.1 cannot be used" in up.output.read_text()


@pytest.mark.parametrize("name", ["api", "celery", "valkey"])
def test_what_dies_is_started_again(up: Up, name: str) -> None:
    wait_for(lambda: name in up.children())
    before = up.children()[name]
    before.kill()
    wait_for(lambda: (again := up.children().get(name)) is not None and again.pid != before.pid, seconds=60)
    wait_for(up.ready, seconds=60)


def test_the_main_process_of_the_worker_never_loads_torch(up: Up) -> None:
    wait_for(lambda: "celery" in up.children())
    maps = up.children()["celery"].memory_maps()
    assert maps and not [mapped.path for mapped in maps if "torch" in mapped.path]


def test_stopping_it_stops_everything_and_the_next_one_keeps_the_key(up: Up) -> None:
    wait_for(lambda: len(up.children()) == 3)
    key, children = (up.data / "api-key").read_text(), list(up.children().values())
    assert len(children) == 3
    up.process.send_signal(signal.SIGINT)
    assert up.process.wait(60) == 0
    assert all(gone(child.pid) for child in children)
    up.process = up.launch(up.port)
    wait_for(up.ready, seconds=90)
    assert (up.data / "api-key").read_text() == key


def test_killing_it_leaves_nothing_running(up: Up) -> None:
    family = psutil.Process(up.process.pid).children(recursive=True)
    assert len(family) >= 3
    up.process.kill()
    up.process.wait()
    wait_for(lambda: all(gone(process.pid) for process in family), seconds=5)


def test_without_torch_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert run_up(tmp_path / "data", free_port()) == 3
    assert 'pip install "secateur[worker]"' in capsys.readouterr().err
    assert not (tmp_path / "data").exists()


def test_an_address_of_another_machine_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run_up(tmp_path / "data", free_port(), host="192.0.2.1") == 3
    assert "cannot be used" in capsys.readouterr().err
