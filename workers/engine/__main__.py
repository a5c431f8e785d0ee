"""`python -m workers.engine WORK_DIR --report-fd N`: one job, from `order.json` to `result.json`."""

import argparse
import errno
import json
import logging
import os
import re
import resource
import sys
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from service.specs import JobSpec
from service.specs.inspection import Inspection
from workers.engine.failures import EngineError
from workers.engine.inspection import inspect
from workers.engine.interruption import Interruption
from workers.engine.reporter import Reporter
from workers.engine.streamed import compress_files, is_streamed

log = logging.getLogger("secateur.engine")


def main() -> int:
    """Exit code 0 when `result.json` is complete, 1 after an error line, 75 where SIGTERM ended it."""
    interruption = Interruption()
    interruption.install()
    parser = argparse.ArgumentParser(prog="workers.engine", description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--report-fd", type=int, required=True)
    arguments = parser.parse_args()
    logging.basicConfig(stream=sys.stderr, level=logging.INFO)
    with os.fdopen(arguments.report_fd, "w", encoding="utf-8") as lines:
        reporter = Reporter(lines)
        try:
            _run(arguments.folder, reporter, interruption)
        except BaseException as error:  # what native code panics with is no Exception
            log.exception("the job failed")
            failure = classify(error)
            reporter.error(failure.code, failure.message, failure.blame, failure.retryable)
            return 1
    return 0


def _run(folder: Path, reporter: Reporter, interruption: Interruption) -> None:
    order = json.loads((folder / "order.json").read_text())
    result = _carry_out(order, folder, reporter, interruption)
    unfinished = folder / "result.json.tmp"
    unfinished.write_text(json.dumps(result, allow_nan=False))
    unfinished.replace(folder / "result.json")


def _carry_out(order: dict[str, Any], folder: Path, reporter: Reporter, interruption: Interruption) -> dict[str, Any]:
    threads, divisor = order["max_threads"], order.get("batch_divisor", 1)
    if order["configuration"].get("kind") == "inspection":
        inspection = Inspection.model_validate(order["configuration"])
        return inspect(folder, inspection, order["model"], reporter, threads, divisor)
    spec = JobSpec.model_validate(order["configuration"])
    if is_streamed(spec, order["model"]):
        return compress_files(folder, spec, order["model"], reporter)
    # PyTorch alone takes more memory and time than a streamed job needs in all.
    from workers.engine.blockwise import compress_blocks, is_blockwise

    if is_blockwise(spec):
        return compress_blocks(folder, spec, order["model"], reporter, threads, divisor)
    from workers.engine.compress import compress
    from workers.engine.journal import CHECKPOINT_SECONDS, Terms

    terms = Terms(order.get("checkpoint_seconds", CHECKPOINT_SECONDS), divisor, interruption)
    return compress(folder, spec, reporter, threads, terms)


def classify(error: BaseException) -> EngineError:
    """What to tell of an exception: our own as it is, exhaustion by name, anything else without its words."""
    if isinstance(error, EngineError):
        return error
    # Told by name, for a job without PyTorch is not to import it here.
    if type(error).__name__ == "OutOfMemoryError":
        return EngineError("GPU_OUT_OF_MEMORY", "GPU memory ran out; lower batch_size or max_length", blame="user")
    if isinstance(error, MemoryError) or "can't allocate memory" in str(error):
        return EngineError("OUT_OF_MEMORY", f"memory ran out{_of_memory()}", blame="user")
    # Of Rust libraries, by name as no module has it; those of weights read files that the door has checked.
    if type(error).__name__ == "PanicException":
        message = "the model's tokenizer gave up on a text; upload the model with one whose patterns are simple"
        return EngineError("TOKENIZER_UNUSABLE", message, blame="user")
    if (fault := _errno(error)) in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return EngineError("NO_SPACE", "the worker's disk is full", retryable=True, blame="transient")
    if fault == errno.EIO:
        return EngineError("STORAGE_ERROR", "the worker's disk failed", retryable=True, blame="transient")
    return EngineError("ENGINE_ERROR", "the engine met an error that it does not know; see the worker's log")


def _errno(error: BaseException) -> int | None:
    """The system's number of an error; safetensors has it in its words alone."""
    if isinstance(error, SafetensorError):
        told = re.search(r"\(os error (\d+)\)", str(error))
        return int(told[1]) if told else None
    return error.errno if isinstance(error, OSError) else None


def _of_memory() -> str:
    """How much was taken of how much, where there is a limit, and what to do."""
    taken, limit = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10, resource.getrlimit(resource.RLIMIT_DATA)[0]
    bound = "" if limit == resource.RLIM_INFINITY else f" of {limit >> 20} MiB"
    return f", {taken} MiB{bound} were in use; lower batch_size or max_length"


if __name__ == "__main__":
    sys.exit(main())
