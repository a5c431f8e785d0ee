"""Inspections: what is redundant in a network, and what cutting it would cost. Nothing of it is changed.

Weights near zero are counted in the files; units are scored by criteria, shares of them cut on trial from a copy.
Nothing here imports PyTorch before a network is built.
"""

from pathlib import Path
from typing import Any

from service.catalog import FAMILIES
from service.specs.findings import Findings
from service.specs.inspection import Inspection
from workers.engine.inspection.near_zero import near_zero
from workers.engine.inspection.report import Record, write_report
from workers.engine.inspection.telling import tell_near_zero
from workers.engine.reporter import Reporter
from workers.engine.results import engine_facts
from workers.engine.streamed import LIBRARIES

FILES_SHARE = 0.05
"""Share of a job's progress that is reached when the files are read; of a family that is not known here, all of it."""


def inspect(
    folder: Path,
    spec: Inspection,
    model: dict[str, Any],
    reporter: Reporter,
    max_threads: int | None,
    batch_divisor: int = 1,
) -> dict[str, Any]:
    """Runs one inspection in `folder`; writes `out/report/` and returns the result, all of it JSON values.

    `model` is what the service knows of the upload. Raises EngineError NOT_FINITE, MODEL_UNUSABLE and what loading a
    network and its rows may raise.
    """
    reporter.phase("loading")
    known = model["family"] in FAMILIES
    share = FILES_SHARE if known else 1.0
    sparse, matrices = near_zero(folder / "in" / "model", spec.near_zero, lambda done: reporter.reach(share * done))
    highlight = tell_near_zero(sparse, reporter)
    found = Findings(loss=None, rows=0, split=None, near_zero=sparse, scored=[], alike=[], highlights=[highlight])
    units: list[dict[str, Any]] = []
    if known:
        from workers.engine.inspection.network import inspect_network

        found, units, engine = inspect_network(folder, spec, found, reporter, max_threads, batch_divisor)
    else:
        reporter.phase(None)
        engine = engine_facts(reporter, *LIBRARIES)
    result = found.model_dump(mode="json") | {"engine": engine}
    told_matrices = [near.model_dump() for near in matrices]
    record = Record(spec.model_dump(mode="json"), model, result, told_matrices, units, reporter.warnings)
    write_report(record, folder / "out")
    return result
