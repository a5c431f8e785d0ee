"""What a job must not be able to do, tried from inside: `python -I probe.py TOLD FOLDER --report-fd N`.

TOLD is JSON: {"canary": path of a file outside, "secret": what another process has in its environment, "port": where
somebody listens on this machine's loopback, "filtered": whether system calls are, "gpu": whether one is to be seen}.
What could be done is reported as a JSON list. Uses the standard library alone, so that it starts fast.
"""

import json
import os
import socket
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any


def succeeds(attempt: Callable[[], Any]) -> bool:
    """Whether the system let it happen."""
    try:
        return bool(attempt())
    except OSError:
        return False


def connects(port: int) -> bool:
    """Whether the machine's loopback can be reached."""
    with socket.create_connection(("127.0.0.1", port), timeout=2):
        return True


def sees(secret: str) -> bool:
    """Whether any process shows an environment with the secret in it."""
    shown = Path("/proc").glob("[0-9]*/environ")
    return any(succeeds(partial(_holds, path, secret.encode())) for path in shown)


def _holds(path: Path, secret: bytes) -> bool:
    return secret in path.read_bytes()


def changes(path: Path) -> bool:
    """Whether a file that exists can be written; nothing is."""
    with path.open("r+b"):
        return True


def makes(path: Path) -> bool:
    """Whether a file can be made; it is removed again."""
    with path.open("xb"):
        path.unlink()
    return True


def becomes_root() -> bool:
    """Whether the user can be changed to root, where this is not root already."""
    os.setuid(0)
    return True


def opens_a_socket() -> bool:
    """Whether there are sockets for the internet at all."""
    with socket.socket(socket.AF_INET):
        return True


def sees_a_gpu() -> bool:
    """Whether PyTorch finds one."""
    import torch

    return torch.cuda.is_available()


def escapes(told: dict[str, Any], folder: Path) -> list[str]:
    """What succeeds of all that must not, in words that end the sentence 'It lets a job …'."""
    canary = Path(told["canary"])
    beyond = (canary, Path("/proc/sys/kernel/core_pattern"))
    closed = (Path(sys.prefix), Path("/"), Path("/usr"), Path("/dev"), folder / "in")
    attempts: dict[str, Callable[[], Any]] = {
        "reach the network": lambda: connects(told["port"]),
        "read files that are not its own": canary.read_bytes,
        "change files that are not its own": lambda: any(succeeds(partial(changes, file)) for file in beyond),
        "make files where it must not": lambda: any(succeeds(partial(makes, path / "made")) for path in closed),
        "read the environment of other processes": lambda: sees(told["secret"]),
        "change its inputs": lambda: changes(folder / "in" / "input"),
        "become root": becomes_root,
    }
    if told["filtered"]:
        attempts["open sockets"] = opens_a_socket
    found = [name for name, attempt in attempts.items() if succeeds(attempt)]
    if told["gpu"] and not sees_a_gpu():
        found.append("see no GPU")
    return found


def main() -> None:
    """Tries its own folder, which a job must be able to use, and then everything else."""
    told, folder, report = json.loads(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[4])
    for name in ("out", "scratch", "checkpoints"):
        (folder / name / "made").write_text("made")
    (folder / "result.json.tmp").write_text("{}")
    (folder / "result.json.tmp").replace(folder / "result.json")
    os.write(report, json.dumps(escapes(told, folder)).encode())


if __name__ == "__main__":
    main()
