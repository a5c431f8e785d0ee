"""A job that ran out of memory is tried again with smaller batches, as long as there are any."""

from typing import Any

from service.specs import Training
from service.tables import Job

CODES = frozenset({"OUT_OF_MEMORY", "GPU_OUT_OF_MEMORY"})
OUTCOME = "out_of_memory"
WARNING = "BATCH_HALVED"

_DEFAULT: int = Training.model_fields["batch_size"].default


def halved(job: Job) -> dict[str, Any] | None:
    """Values of a job's row that make its next attempt work in halves of this one's batches; None from one row on."""
    divisor = job.batch_divisor * 2
    if divisor > _largest_batch(job.configuration):
        return None
    message = (
        f"Memory ran out: batches are worked through in {divisor} parts; lower batch_size to avoid the lost attempt."
    )
    others = [warning for warning in job.advice if warning["code"] != WARNING]
    return {"batch_divisor": divisor, "advice": [*others, {"code": WARNING, "message": message}]}


def _largest_batch(configuration: dict[str, Any]) -> int:
    """Rows of the largest batch that is trained on; where nothing is, of the default recipe's."""
    recipes = [configuration.get(name) for name in ("baseline", "finetuning")]
    return max((recipe["batch_size"] for recipe in recipes if recipe), default=_DEFAULT)
