"""`secateur up`: the whole service on one machine, as child processes that cannot outlive this one."""

import fcntl
import importlib.util
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

import httpx
from pydantic import SecretStr

from service.auth import DEFAULT_TENANT, authenticate, issue_key
from service.config import Settings, environment_of, get_settings
from service.db import Database
from service.embedded import EmbeddedBroker
from service.errors import Unauthorized, Unavailable
from service.migrate import upgrade
from service.processes import start, stop
from service.storage import UnusableStorage, open_storage

FAILED = 3
_START_SECONDS = 60.0
_WATCH_SECONDS = 0.2
_LONGEST_BACKOFF = 30.0
_HEALTHY_SECONDS = 60.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class CannotStart(Exception):
    """The service cannot be started here; the text says why and what to do."""


class _Interrupted(Exception):
    """The user wants to stop while the service is still starting."""


@dataclass
class _Child:
    """One process of the service, started again when it dies."""

    name: str
    start: Callable[[], subprocess.Popen[bytes]]
    grace: float
    process: subprocess.Popen[bytes] | None = None
    started: float = 0.0
    backoff: float = 0.0

    def launch(self) -> None:
        """Start it, noting when."""
        self.started = time.monotonic()
        self.process = self.start()

    def end(self) -> None:
        """Stop it, SIGKILL after its grace."""
        if self.process is not None:
            stop(self.process, self.grace)

    def dead(self) -> bool:
        """Whether it has to be started again."""
        return self.process is None or self.process.poll() is not None

    def next_try(self) -> float:
        """Seconds to wait before the next start: doubled with each death, none after a long life."""
        lived = time.monotonic() - self.started
        self.backoff = 0.0 if lived > _HEALTHY_SECONDS else min(max(1.0, 2 * self.backoff), _LONGEST_BACKOFF)
        return self.backoff


def run_up(data_dir: Path, port: int, host: str = "127.0.0.1") -> int:
    """Run broker, API and one worker until SIGINT or SIGTERM; returns the exit code of `secateur up`."""
    settings = get_settings().model_copy(update={"data_dir": data_dir.absolute(), "host": host, "port": port})
    try:
        _check_machine()
        settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        open_storage(settings.storage)
        with _only_one(settings), _interruptible() as interrupted, ExitStack() as running:
            _run(settings, interrupted, running)
    except (CannotStart, UnusableStorage, Unavailable) as error:
        sys.stderr.write(f"secateur: {error}\n")
        return FAILED
    except _Interrupted:
        pass
    return 0


def _say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def _check_machine() -> None:
    if sys.platform == "win32":
        raise CannotStart("Windows is not supported; use WSL or a container.")
    if importlib.util.find_spec("torch") is None:
        raise CannotStart('the worker needs torch, which is not installed: pip install "secateur[worker]"')


def _check_port(settings: Settings) -> None:
    with socket.socket(socket.AF_INET6 if ":" in settings.host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((settings.host, settings.port))
        except OSError as error:
            where = f"port {settings.port} on {settings.host}"
            raise CannotStart(f"{where} cannot be used ({error.strerror}); choose another with --port.") from error


def _url(settings: Settings) -> str:
    host = {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(settings.host, settings.host)  # noqa: S104 - asked for by the user
    return f"http://[{host}]:{settings.port}" if ":" in host else f"http://{host}:{settings.port}"


@contextmanager
def _only_one(settings: Settings) -> Iterator[None]:
    """Hold the data directory for this process alone. Raises `CannotStart` when another has it."""
    with (settings.data_dir / "up.lock").open("a+") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            lock.seek(0)
            raise CannotStart(_already(settings.data_dir, lock.read())) from None
        lock.truncate(0)
        lock.write(json.dumps({"pid": os.getpid(), "url": _url(settings)}))
        lock.flush()
        yield


def _already(data_dir: Path, text: str) -> str:
    try:
        other = json.loads(text)
        who = f" as process {other['pid']} at {other['url']}"
    except (ValueError, KeyError, TypeError):
        who = ""
    return f"a service is already running on {data_dir}{who}; stop it first, or choose another --data-dir."


@contextmanager
def _interruptible() -> Iterator[Callable[[], bool]]:
    """Turn the stop signals into a flag while the block runs; a second one is left to its default: the end."""
    seen: list[int] = []

    def note(number: int, _frame: FrameType | None) -> None:
        seen.append(number)
        signal.signal(number, signal.SIG_DFL)

    before = {number: signal.signal(number, note) for number in _SIGNALS}
    try:
        yield lambda: bool(seen)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(settings: Settings, interrupted: Callable[[], bool], running: ExitStack) -> None:
    _check_port(settings)
    settings, broker = _with_broker(settings, running)
    upgrade(settings.database)
    key_file = _ensure_key(settings)
    children = [*broker, _service_child("api", settings, 10.0), _service_child("worker", settings, 60.0)]
    for child in children[len(broker) :]:
        running.callback(child.end)
        child.launch()
    _await_api(children[-2], settings, interrupted)
    (settings.data_dir / "url").write_text(_url(settings))
    _greet(settings, key_file)
    _watch(children, interrupted)
    _say("Stopping; a running job goes back into the queue.")


def _with_broker(settings: Settings, running: ExitStack) -> tuple[Settings, list[_Child]]:
    """Settings with the broker's URL: the one that the environment names, else an embedded one."""
    if "broker_url" in settings.model_fields_set:
        return settings, []
    embedded = EmbeddedBroker(settings.data_dir / "broker")
    child = _Child("broker", embedded.start, grace=5.0)
    running.callback(embedded.stop)
    child.launch()
    return settings.model_copy(update={"broker_url": SecretStr(embedded.url)}), [child]


def _service_child(name: str, settings: Settings, grace: float) -> _Child:
    command = [sys.executable, "-m", "service.cli", name]
    if name == "api":
        command += ["--host", settings.host, "--port", str(settings.port)]

    def launch() -> subprocess.Popen[bytes]:
        with _log_file(settings, name).open("ab") as log:
            # A session of its own: Ctrl-C reaches this process alone, which then stops the others in order.
            return start(command, env=environment_of(settings), stdout=log, stderr=log, new_session=True)

    return _Child(name, launch, grace)


def _log_file(settings: Settings, name: str) -> Path:
    return settings.data_dir / f"{name}.log"


def _ensure_key(settings: Settings) -> Path:
    """The file with a key that works; a new admin key is made when there is none."""
    file = settings.data_dir / "api-key"
    database = Database(settings.database)
    try:
        with database.session_scope() as session:
            try:
                authenticate(session, f"Bearer {file.read_text().strip() if file.exists() else ''}")
            except Unauthorized:
                _, plaintext = issue_key(session, tenant=DEFAULT_TENANT, name="secateur up", scopes=["admin"])
                file.unlink(missing_ok=True)
                with os.fdopen(os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as out:
                    out.write(plaintext)
    finally:
        database.dispose()
    return file


def _await_api(api: _Child, settings: Settings, interrupted: Callable[[], bool]) -> None:
    deadline = time.monotonic() + _START_SECONDS
    while not _answers(settings):
        if interrupted():
            raise _Interrupted
        if api.dead() or time.monotonic() > deadline:
            log = _log_file(settings, "api")
            tail = "\n".join(log.read_text(errors="replace").splitlines()[-15:])
            raise CannotStart(f"the API did not start; the end of {log}:\n{tail}")
        time.sleep(_WATCH_SECONDS)


def _answers(settings: Settings) -> bool:
    try:
        return httpx.get(f"{_url(settings)}/healthz", timeout=2, trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _greet(settings: Settings, key_file: Path) -> None:
    url = _url(settings)
    _say(
        f"Secateur is ready at {url}\n"
        f"  key   {key_file}\n"
        f"  logs  {_log_file(settings, 'api')} and {_log_file(settings, 'worker').name}\n"
        f'  try   curl -H "Authorization: Bearer $(cat {key_file})" {url}/v1/capabilities\n'
        f"  stop  Ctrl-C"
    )


def _watch(children: list[_Child], interrupted: Callable[[], bool]) -> None:
    """Start again whatever dies, until a stop signal comes."""
    due: dict[str, float] = {}
    while not interrupted():
        for child in children:
            if not child.dead():
                continue
            if child.name not in due:
                wait = child.next_try()
                due[child.name] = time.monotonic() + wait
                _say(f"The {child.name} has died; starting it again{f' in {wait:g} s' if wait else ''}.")
            elif time.monotonic() >= due[child.name]:
                del due[child.name]
                _relaunch(child)
        time.sleep(_WATCH_SECONDS)


def _relaunch(child: _Child) -> None:
    try:
        child.launch()
    except (OSError, Unavailable) as error:
        child.process = None
        _say(f"The {child.name} did not start: {error}")
