"""What a job in the sandbox sees and can change."""

import json
import os
import socket
import sys
from pathlib import Path

import pytest

from service.config import Settings
from tests.workers.sandbox.conftest import StartEngine, finish
from workers.sandbox import SandboxMissing, level_of
from workers.sandbox.bubblewrap import WRITABLE, asks_for_gpu, find, paths_of_python
from workers.sandbox.system_calls import system_call_filter

TRY = """
def attempt(what):
    try:
        what()
    except OSError as error:
        return error.errno
    return 'done'
"""


def test_no_connection_leaves_the_sandbox(bubblewrap: str, start_engine: StartEngine, tmp_path: Path) -> None:
    named = tmp_path / "socket"
    with socket.create_server(("127.0.0.1", 0)) as listener, socket.socket(socket.AF_UNIX) as local:
        local.bind(str(named))
        local.listen()
        port = listener.getsockname()[1]
        code = f"""{TRY}
for address in ('127.0.0.1', 'localhost', '0.0.0.0', '169.254.169.254', '10.0.2.2'):
    assert attempt(lambda: socket.create_connection((address, {port}), timeout=1)) != 'done', address
assert attempt(lambda: socket.socket(socket.AF_UNIX).connect({str(named)!r})) != 'done'
print('tried')
"""
        running = start_engine(code, bubblewrap)
        assert finish(running) == 0 and running.log() == "tried\n", running.log()
        for server in (listener, local):
            server.settimeout(0.05)
            with pytest.raises(TimeoutError):
                server.accept()


def test_nothing_of_the_machine_is_seen(bubblewrap: str, start_engine: StartEngine, tmp_path: Path) -> None:
    (tmp_path / "secateur.db").write_text("secret")
    (tmp_path / "jobs" / "another").mkdir(parents=True)
    code = f"""import json
pids = [name for name in os.listdir('/proc') if name.isdigit()]
environs = [open(f'/proc/{{pid}}/environ').read() for pid in pids]
names = (os.listdir('/home') if os.path.exists('/home') else [], os.listdir('/etc'), os.listdir({str(tmp_path)!r}))
print(json.dumps([len(pids), 'SECRET' in ''.join(environs), *names, os.listdir({str(tmp_path / "jobs")!r})]))
"""
    running = start_engine(code, bubblewrap)
    assert finish(running) == 0, running.log()
    pids, secret, home, etc, data, jobs = json.loads(running.log())
    assert pids <= 2 and not secret
    assert (home, set(etc) - {"ld.so.cache"}, data, jobs) == ([], set(), ["jobs"], ["work"])


def test_only_its_own_folder_can_be_written(bubblewrap: str, start_engine: StartEngine, folder: Path) -> None:
    (folder / "order.json").write_text("{}")
    places = ["/made", "/usr/made", "/etc/made", "/dev/made", f"{sys.prefix}/made", f"{Path(__file__).parents[3]}/made"]
    files = [str(folder / "in/input"), str(folder / "order.json"), "/proc/self/oom_score_adj"]
    kernel = [f"/proc/sys/{name}" for name in ("kernel/core_pattern", "kernel/panic", "vm/drop_caches")]
    code = f"""{TRY}
for path in {[*places, str(folder / "in/made")]}:
    assert attempt(lambda: open(path, 'x')) != 'done', path
for path in {[*files, *kernel]}:
    assert attempt(lambda: open(path, 'r+b')) != 'done', path
for name in {WRITABLE}:
    open(name + '/made', 'x').write('made')
open('result.json', 'x').write('{{}}')
"""
    running = start_engine(code, bubblewrap)
    assert finish(running) == 0, running.log()
    assert {str(path.relative_to(folder)) for path in folder.rglob("made")} == {f"{name}/made" for name in WRITABLE}
    assert (folder / "in" / "input").read_text() == "input" and (folder / "result.json").read_text() == "{}"


def test_no_link_can_be_put_in_the_place_of_what_is_read_from_outside(
    bubblewrap: str, start_engine: StartEngine, folder: Path
) -> None:
    code = f"""{TRY}
for name in {(*WRITABLE, "in")}:
    assert attempt(lambda: os.rename(name, name + '2')) != 'done', name
    assert attempt(lambda: os.rmdir(name)) != 'done', name
"""
    running = start_engine(code, bubblewrap)
    assert finish(running) == 0, running.log()
    assert all((folder / name).is_dir() and not (folder / name).is_symlink() for name in (*WRITABLE, "in"))


def test_nobody_becomes_anybody(bubblewrap: str, start_engine: StartEngine) -> None:
    code = f"""{TRY}
assert (os.getuid(), os.getgid()) == (65534, 65534)
assert attempt(lambda: os.setuid(0)) != 'done'
told = dict(line.split(':', 1) for line in open('/proc/self/status'))
print(int(told['CapEff'], 16), int(told['CapBnd'], 16), told['NoNewPrivs'].strip())
"""
    running = start_engine(code, bubblewrap)
    assert finish(running) == 0, running.log()
    assert running.log() == "0 0 1\n"


# What is bound


def test_python_and_the_project_are_shown_and_neither_a_home_nor_the_root() -> None:
    shown = paths_of_python()
    assert any(Path(sys.prefix).is_relative_to(path) for path in (*shown, Path("/usr")))
    assert not {Path("/"), Path("/root"), Path("/home"), Path.home(), Path("/tmp")} & set(shown)
    assert not [path for path in shown for other in shown if path != other and path.is_relative_to(other)]


def test_data_among_what_python_needs_is_no_sandbox(bubblewrap: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("workers.sandbox.bubblewrap.paths_of_python", lambda: (Path("/opt/project"),))
    with pytest.raises(SandboxMissing, match="/opt/project"):
        find(Settings(data_dir=Path("/opt/project/data")))
    with pytest.raises(SandboxMissing, match="/opt/project"):
        find(Settings(data_dir=Path("/var/lib/data"), scratch_dir=Path("/opt/project/scratch")))
    assert find(Settings(data_dir=Path("/opt/data")))


@pytest.mark.parametrize(("visible", "asked"), [("", False), ("-1", False), ("0", True), (None, False)])
def test_gpus_are_there_where_they_were_asked_for(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, visible: str | None, asked: bool
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert asks_for_gpu(Settings(CUDA_VISIBLE_DEVICES=visible)) is asked
    (tmp_path / "nvidia-smi").write_text("")
    (tmp_path / "nvidia-smi").chmod(0o755)
    assert asks_for_gpu(Settings(CUDA_VISIBLE_DEVICES=None))


def test_the_level_tells_what_belongs_to_it(bubblewrap: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    settings = Settings(sandbox="bubblewrap", data_dir=tmp_path)
    filtered = "bubblewrap+seccomp" if system_call_filter() is not None else "bubblewrap"
    devices = [Path("/dev/nvidia0"), Path("/dev/nvidiactl")]
    assert level_of(Settings(sandbox="process")) == "process"
    assert level_of(settings) == filtered
    monkeypatch.setattr(Path, "glob", lambda self, pattern: iter(devices))
    monkeypatch.setattr("workers.sandbox.bubblewrap.asks_for_gpu", lambda settings: True)
    assert level_of(settings) == f"{filtered}+gpu"
    monkeypatch.setattr("workers.sandbox.bubblewrap.system_call_filter", lambda: None)
    sandbox = find(settings)
    assert sandbox.level == "bubblewrap+gpu"
    reader, writer = os.pipe()
    with sandbox.entered(["true"], tmp_path, writer) as (words, passed):
        assert passed == [writer] and "--seccomp" not in words
        assert words[words.index("--dev-bind") :][:3] == ["--dev-bind", "/dev/nvidia0", "/dev/nvidia0"]
    for descriptor in (reader, writer):
        os.close(descriptor)
