"""A model arrives whole through a network that breaks, and what was here before a break is not fetched again."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from service.client import Client
from service.config import Settings
from tests.cutting import CuttingProxy, big_model
from tests.live import LiveService

CUTS = 10
MEGABYTES = 40


@pytest.fixture
def live(settings: Settings, api_key: str) -> Iterator[LiveService]:
    """An API process of its own, without a worker."""
    with LiveService(settings, api_key) as service:
        service.start_api()
        yield service


def test_a_download_goes_on_after_every_cut(live: LiveService, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("service.client_downloads.PAUSE", 0.01)
    folder, size = big_model(tmp_path / "model", MEGABYTES, 4), MEGABYTES * 10**6
    with Client(live.url, live.api_key) as client:
        model = client.push_model(folder, archive=True)
    seen: list[int] = []
    with CuttingProxy(live.port, CUTS, size, downloads=True) as proxy, Client(proxy.url, live.api_key) as client:
        files = client.pull_model(model["id"], tmp_path / "pulled", progress=lambda done, total: seen.append(done))
    assert proxy.made == CUTS
    assert seen == sorted(seen)
    # What lay in the buffers of a connection that was reset is lost; begun anew each time it would be five times that.
    assert proxy.sent < 2 * size
    found = {path.name: sha256(path.read_bytes()).hexdigest() for path in files}
    assert found == {file["path"]: file["sha256"] for file in model["files"]}
    assert not list((tmp_path / "pulled").glob(".*"))
