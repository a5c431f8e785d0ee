"""One `secateur up` for the end-to-end tests, started as a user would start it."""

import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from service.processes import start, stop
from tests.models import tiny_dataset, tiny_model
from tests.servers import free_port


@dataclass(frozen=True)
class Workplace:
    """A user's folder: `secateur up` runs in it, a small model and a data set lie in it."""

    folder: Path

    @property
    def model(self) -> Path:
        """A bare BERT encoder, whose task head is still to be trained."""
        return self.folder / "encoder"

    @property
    def dataset(self) -> Path:
        """Splits as JSONL."""
        return self.folder / "data"

    @property
    def environment(self) -> dict[str, str]:
        """That of the user's shell: the virtual environment first."""
        return {"PATH": f"{Path(sys.executable).parent}:/usr/local/bin:/usr/bin:/bin", "LC_ALL": "C.UTF-8"}

    def secateur(self, *arguments: str) -> "subprocess.CompletedProcess[str]":
        """Run the command line in the folder."""
        command = [str(Path(sys.executable).parent / "secateur"), *arguments]
        return subprocess.run(command, cwd=self.folder, env=self.environment, capture_output=True, text=True)


@pytest.fixture(scope="session")
def workplace(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Workplace]:
    """A folder with a running service whose state is in `secateur-data`, the default."""
    place = Workplace(tmp_path_factory.mktemp("workplace"))
    tiny_model(place.model, head=False)
    tiny_dataset(place.dataset)
    command = [str(Path(sys.executable).parent / "secateur"), "up", "--port", str(free_port())]
    log = place.folder / "up.log"
    with log.open("wb") as output:
        process = start(command, cwd=place.folder, env=place.environment, stdout=output, stderr=subprocess.STDOUT)
    deadline = time.monotonic() + 90
    while "is ready" not in log.read_text():
        assert process.poll() is None and time.monotonic() < deadline, log.read_text()
        time.sleep(0.1)
    yield place
    stop(process, grace=30)
