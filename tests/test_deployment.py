"""Dockerfile, docker-compose.yml and .env.example: what they declare exists, and works as local processes."""

import re
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
import yaml

from service.config import Settings
from service.embedded import valkey_binary
from service.processes import start, stop
from tests.servers import PostgreSQL, free_port
from tests.test_architecture import command_names

ROOT = Path(__file__).parents[1]
PASSWORD = "s3cretOfTheBroker"
SECATEUR = str(Path(sys.executable).parent / "secateur")


def compose() -> dict[str, Any]:
    """The parsed compose file."""
    parsed: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return parsed


def instructions() -> list[tuple[str, str]]:
    """`(instruction, rest)` of the Dockerfile, lines joined."""
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.strip() for line in text.splitlines() if line.strip() and not line.startswith("#")]
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in lines]


def stages() -> dict[str, list[tuple[str, str]]]:
    """The Dockerfile's instructions by target."""
    found: dict[str, list[tuple[str, str]]] = {}
    for name, rest in instructions():
        if name == "FROM":
            current = found.setdefault(rest.split()[-1], [])
        current.append((name, rest))
    return found


def runs() -> dict[str, str]:
    """By target: all commands that build it."""
    return {target: " ".join(rest for word, rest in lines if word == "RUN") for target, lines in stages().items()}


def locked(name: str) -> str:
    """How a lock file is installed."""
    assert (ROOT / "docs" / "locks" / f"{name}.txt").is_file()
    return f"${{LOCKED}} --requirement locks/{name}.txt"


def ours() -> dict[str, dict[str, Any]]:
    """The services of the compose file that run our images."""
    return {name: service for name, service in compose()["services"].items() if "build" in service}


# What is declared exists


def test_every_file_that_the_images_copy_exists_and_is_not_ignored() -> None:
    allowed = {line.removeprefix("!") for line in (ROOT / ".dockerignore").read_text().split() if line[0] == "!"}
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert copied and copied <= allowed
    for name in copied:
        assert (ROOT / name).exists()


def test_the_images_hold_all_the_packages_that_are_installed() -> None:
    copied = {name for word, rest in instructions() if word == "COPY" for name in rest.split()[:-1]}
    assert {"service", "workers", "migrations", "pyproject.toml", "README.md", "LICENSE"} <= copied


def test_the_api_image_has_no_torch_and_the_worker_image_has() -> None:
    run = runs()
    assert "torch" not in run["base"] + run["api"]
    assert "worker" not in run["base"] + run["api"]
    assert "torch==2.13.0" in run["worker"]
    assert "torch==2.13.0" in (ROOT / "Makefile").read_text()


def test_the_images_install_what_the_locks_name_and_nothing_else() -> None:
    installs = {target: re.findall(r"pip install (.*?) *(?=&&|;|$)", run) for target, run in runs().items()}
    ours, torch = "--no-deps --no-build-isolation .", "${TORCH_PIP_ARGS} torch==2.13.0"
    assert installs == {
        "base": [locked("build")],
        "api": [locked("api"), ours],
        "worker": [locked("worker"), torch, locked("torch"), ours],
    }
    assert all(runs()[target].endswith("pip check") for target in ("api", "worker"))
    variables = " ".join(rest for word, rest in instructions() if word == "ENV")
    assert 'LOCKED="--no-deps --no-build-isolation --require-hashes"' in variables
    assert ("COPY", "docs/locks locks") in stages()["base"]


@pytest.mark.parametrize("target", ["api", "worker"])
def test_images_run_as_a_user_that_is_not_root(target: str) -> None:
    users = [rest for word, rest in stages()[target] if word == "USER"]
    assert users == ["10001:10001"]


def test_images_carry_no_secret() -> None:
    text = (ROOT / "Dockerfile").read_text().lower()
    assert not re.search(r"(env|arg)\s+\S*(password|secret|key|token)", text)


@pytest.mark.parametrize("name", sorted(ours()))
def test_services_name_real_targets_commands_and_settings(name: str) -> None:
    service = ours()[name]
    assert service["build"]["target"] in stages()
    program, *words = service["command"]
    assert program == "secateur"
    assert words[0] in command_names()
    fields = {f"SECATEUR_{field.upper()}" for field in Settings.model_fields}
    assert set(service["environment"]) <= fields
    for volume in service.get("volumes", []):
        assert volume.split(":")[0] in compose()["volumes"]
        assert volume.split(":")[1] == service["environment"]["SECATEUR_DATA_DIR"]
    assert all(other in compose()["services"] for other in service["depends_on"])


def test_ports_agree() -> None:
    inside = str(Settings.model_fields["port"].default)
    exposed = [rest for word, rest in stages()["api"] if word == "EXPOSE"]
    published = ours()["api"]["ports"][0]
    health = " ".join(rest for word, rest in stages()["api"] if word == "HEALTHCHECK")
    assert exposed == [inside]
    assert published.endswith(f":{inside}") and published.startswith("127.0.0.1:")
    assert f":{inside}/healthz" in health


def test_one_worker_has_a_gpu_and_one_has_none() -> None:
    services = ours()
    assert services["worker"]["profiles"] == ["gpu"]
    assert services["worker-cpu"]["profiles"] == ["cpu"]
    devices = services["worker"]["deploy"]["resources"]["reservations"]["devices"]
    assert devices == [{"driver": "nvidia", "count": 1, "capabilities": ["gpu"]}]
    assert "deploy" not in services["worker-cpu"]


@pytest.mark.parametrize("name", sorted(ours()))
def test_our_containers_change_nothing_outside_their_volumes_and_have_no_privileges(name: str) -> None:
    service = ours()[name]
    assert service["read_only"] is True and service["tmpfs"] == ["/tmp"] and service["cap_drop"] == ["ALL"]
    assert not {"privileged", "cap_add", "devices", "network_mode", "pid", "ipc"} & set(service)


def test_nothing_gains_privileges_and_what_others_wait_for_tells_its_health() -> None:
    services = compose()["services"]
    assert all("no-new-privileges:true" in service["security_opt"] for service in services.values())
    assert {name for name, service in services.items() if "healthcheck" in service} == {"database", "broker"}
    assert any(word == "HEALTHCHECK" for word, _ in stages()["api"])


@pytest.mark.parametrize("name", ["worker", "worker-cpu"])
def test_a_workers_container_can_have_a_sandbox_for_its_jobs(name: str) -> None:
    installed = " ".join(rest for word, rest in stages()["worker"] if word == "RUN")
    service = ours()[name]
    assert "apt-get install --yes --no-install-recommends bubblewrap" in installed
    assert {"seccomp=unconfined", "apparmor=unconfined", "systempaths=unconfined"} < set(service["security_opt"])
    assert service["cap_drop"] == ["ALL"] and "no-new-privileges:true" in service["security_opt"]
    assert 4096 < service["pids_limit"] < 1 << 15
    assert ours()["api"]["security_opt"] == ["no-new-privileges:true"]


def test_every_variable_of_the_compose_file_is_explained_and_no_password_has_a_default() -> None:
    text = (ROOT / "docker-compose.yml").read_text()
    used = dict(re.findall(r"(?<!\$)\$\{(\w+)([^}]*)\}", text))
    example = dict(line.split("=", 1) for line in (ROOT / ".env.example").read_text().splitlines() if "=" in line)
    assert set(example) | {"TORCH_PIP_ARGS"} == set(used)
    for name in ("POSTGRES_PASSWORD", "REDIS_PASSWORD"):
        assert example[name] == ""
        assert used[name].startswith(":?"), "compose must stop where it is missing"


# The same commands with the same environment, as local processes


class Deployment:
    """What docker-compose.yml runs, without containers: host names, ports and folders put in their place."""

    def __init__(self, folder: Path, database: str, broker: str) -> None:
        self.folder = folder
        self.port = free_port()
        self._database = database
        self._broker = broker
        self.url = f"http://127.0.0.1:{self.port}"

    def environment(self, name: str) -> dict[str, str]:
        """That of a service."""
        told = dict(ours()[name]["environment"])
        assert "@database:5432/secateur" in told["SECATEUR_DATABASE_URL"]
        assert told["SECATEUR_BROKER_URL"].endswith("@broker:6379/0")
        told |= {"SECATEUR_DATABASE_URL": self._database, "SECATEUR_BROKER_URL": self._broker}
        told |= {"SECATEUR_DATA_DIR": str(self.folder / "data")}
        if "SECATEUR_PUBLIC_URL" in told:
            told["SECATEUR_PUBLIC_URL"] = self.url
        return told | {"PATH": "/usr/bin:/bin"}

    def command(self, name: str) -> list[str]:
        """That of a service; the API on a free port."""
        words = [SECATEUR, *ours()[name]["command"][1:]]
        return [*words, "--port", str(self.port)] if name == "api" else words

    def run(self, name: str, *command: str) -> "subprocess.CompletedProcess[str]":
        """A service that ends, or another command in its place."""
        words = [SECATEUR, *command] if command else self.command(name)
        return subprocess.run(words, env=self.environment(name), cwd=self.folder, capture_output=True, text=True)

    def start(self, name: str) -> "subprocess.Popen[bytes]":
        """A service that stays."""
        with (self.folder / f"{name}.log").open("wb") as log:
            return start(self.command(name), env=self.environment(name), cwd=self.folder, stdout=log, stderr=log)

    def logs(self) -> str:
        """What the services wrote."""
        return "\n".join(file.read_text() for file in self.folder.glob("*.log"))


@pytest.fixture
def broker_with_password(tmp_path: Path) -> Iterator[str]:
    """The compose file's broker command, run with the embedded binary on a free port."""
    port = free_port()
    shell = compose()["services"]["broker"]["command"]
    assert shell[:2] == ["sh", "-c"]
    line = shell[2].replace("$$", "$").replace("valkey-server", shlex.quote(str(valkey_binary())))
    folder = tmp_path / "broker"
    folder.mkdir()
    words = ["sh", "-c", f"{line} --port {port} --bind 127.0.0.1"]
    process = start(words, env={"REDIS_PASSWORD": PASSWORD, "PATH": "/usr/bin:/bin"}, cwd=folder, stdout=-3)
    yield f"redis://:{quote(PASSWORD)}@127.0.0.1:{port}/0"
    stop(process, grace=5)


@pytest.fixture
def deployment(postgresql_server: PostgreSQL, broker_with_password: str, tmp_path: Path) -> Deployment:
    """An empty PostgreSQL database, a broker with a password, an empty data folder."""
    return Deployment(tmp_path, postgresql_server.url(postgresql_server.create()), broker_with_password)


def test_the_declared_commands_make_a_working_service(deployment: Deployment) -> None:
    keyless = deployment.run("api", "api", "--host", "0.0.0.0")
    assert keyless.returncode == 3, "no tables yet"
    assert "secateur migrate" in keyless.stderr
    for _ in range(2):
        assert deployment.run("migrate").returncode == 0
    refused = deployment.run("api")
    assert refused.returncode == 2, "no key yet, and not the loopback alone"
    assert "secateur keys create" in refused.stderr
    made = deployment.run("api", "keys", "create", "--tenant", "default", "--name", "admin", "--scope", "admin")
    assert made.returncode == 0, made.stderr
    key = made.stdout.strip()
    processes = [deployment.start("api"), deployment.start("worker-cpu")]
    try:
        client = httpx.Client(base_url=deployment.url, headers={"Authorization": f"Bearer {key}"}, trust_env=False)
        with client:
            assert _ready(client)["status"] == "ready", deployment.logs()
            workers = client.get("/v1/capabilities").json()["workers"]
            assert len(workers) == 1
            assert client.get("/v1/keys").json()["data"][0]["name"] == "admin"
    finally:
        codes = [stop(process, grace=20) for process in reversed(processes)]
    # uvicorn shuts down in order and then lets the signal end it.
    assert codes == [0, -signal.SIGTERM], deployment.logs()
    assert "Application shutdown complete" in deployment.logs()


def _ready(client: httpx.Client) -> dict[str, Any]:
    answer: dict[str, Any] = {}
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and answer.get("status") != "ready":
        try:
            answer = client.get("/readyz").json()
        except httpx.TransportError:
            answer = {}
        time.sleep(0.1)
    return answer
