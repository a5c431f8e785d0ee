"""What the settings say of a job's confinement."""

import os
from pathlib import Path

from service.config import Settings
from workers.sandbox.bubblewrap import Bubblewrap, find

WITHOUT = "process"
"""What `/readyz` tells where jobs are processes with limits and nothing more."""


def sandbox_of(settings: Settings) -> Bubblewrap | None:
    """What jobs run in; None for a process alone. Raises `SandboxMissing`; ValueError for settings not yet settled."""
    if settings.sandbox == "auto":
        raise ValueError("settle the settings first: whether there is a sandbox must have been tried")
    return find(settings) if settings.sandbox == "bubblewrap" else None


def level_of(settings: Settings) -> str:
    """The level in words: `process`, or `bubblewrap` with what belongs to it. Raises as `sandbox_of`."""
    sandbox = sandbox_of(settings)
    return WITHOUT if sandbox is None else sandbox.level


def environment(folder: Path, settings: Settings) -> dict[str, str]:
    """All that an engine's environment holds: no secret of the worker's."""
    scratch = str(folder / "scratch")
    clean = {
        "PATH": os.defpath,
        "LANG": "C.UTF-8",
        "HOME": scratch,
        "TMPDIR": scratch,
        # Asked for by libraries that name their caches by it, and a sandbox has no list of users.
        "USER": "engine",
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "ORT_DISABLE_TELEMETRY": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Threads that wait by spinning make training several times slower where others use the cores too.
        "OMP_WAIT_POLICY": "PASSIVE",
        "PYTHONHASHSEED": "0",
    }
    if settings.cuda_visible_devices is not None:
        clean["CUDA_VISIBLE_DEVICES"] = settings.cuda_visible_devices
    return clean
