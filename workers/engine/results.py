"""What every kind of job puts into its result, with or without PyTorch."""

import platform
import resource
from importlib.metadata import version
from typing import Any

from service.specs import JobSpec
from workers.engine.reporter import Reporter
from workers.engine.verdict import verdict


def result_of(
    spec: JobSpec, model: dict[str, Any], before: dict[str, Any], after: dict[str, Any], engine: dict[str, Any]
) -> dict[str, Any]:
    """The whole result: `model` is what the service is to know of what was made, `engine` what made it."""
    goals = verdict(spec.acceptance, before, after)
    return {
        "verdict": goals,
        "passed": all(goal["passed"] for goal in goals),
        "before": before,
        "after": after,
        "model": model,
        "engine": engine,
    }


def engine_facts(reporter: Reporter, *libraries: str) -> dict[str, Any]:
    """What a job ran on, where that was the CPU, how long its phases took, and versions of these packages."""
    return {
        "device": "cpu",
        "peak_memory": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        "seconds": dict(reporter.seconds),
        "versions": {"python": platform.python_version(), **{name: version(name) for name in libraries}},
    }
