"""The embedded broker."""

import importlib.util
import stat
from pathlib import Path

import pytest

from service.broker import Broker
from service.embedded import EmbeddedBroker, embedded_broker, valkey_binary
from service.errors import Unavailable
from tests.processes import gone


def test_what_is_queued_outlives_the_server(tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path / "broker")
    process = server.start()
    broker = Broker(server.url)
    broker.ring("job_A")
    process.terminate()
    process.wait()
    assert not broker.ping()
    server.start()
    assert broker.waiting() == {"job_A"}
    broker.close()
    server.stop()


def test_only_the_owner_can_reach_it_and_it_ends_with_its_block(tmp_path: Path) -> None:
    with embedded_broker(tmp_path / "broker") as url:
        socket = Path(url.removeprefix("redis+socket://").partition("?")[0])
        assert stat.S_IMODE(socket.parent.stat().st_mode) == 0o700
        assert stat.S_IMODE(socket.stat().st_mode) == 0o700
        broker = Broker(url)
        assert broker.ping()
        broker.close()
    assert not socket.exists()


def test_a_deep_data_directory_gets_a_short_socket_path(tmp_path: Path) -> None:
    deep = tmp_path / ("d" * 100)
    server = EmbeddedBroker(deep)
    process = server.start()
    assert len(str(server.socket)) < 100
    assert (deep / "appendonlydir").is_dir()
    server.stop()
    assert gone(process.pid) and not server.socket.parent.exists()


def test_a_server_that_cannot_start_is_told_with_its_log(tmp_path: Path) -> None:
    server = EmbeddedBroker(tmp_path)
    (tmp_path / "appendonlydir").write_text("in the way")
    with pytest.raises(Unavailable, match=r"valkey\.log"):
        server.start()


def test_a_platform_without_a_server_is_told_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    assert valkey_binary().name == "valkey-server"
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(Unavailable, match="SECATEUR_BROKER_URL"):
        valkey_binary()
