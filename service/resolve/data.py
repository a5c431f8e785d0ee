"""Does the task fit the model, and does the data set fit both?"""

from service.resolve.order import (
    Fault,
    Faults,
    Order,
    quality_goals,
    reading_parts,
    scoring_parts,
    training_parts,
)
from service.specs import TaskName

HEADLESS: TaskName = "sentence-embedding"
"""The task that reads the encoder itself."""
_GENERAL = (None, "masked-lm", "causal-lm")
"""What a model is for that nobody has trained for a task yet."""


def check_task(order: Order) -> Faults:
    """The family can do the task, and the rows are for it."""
    spec, family = order.spec, order.family
    if spec.task not in family.tasks:
        detail = f"A {family.model_type} model can be used for {', '.join(family.tasks)}."
        yield Fault("TASK_MISMATCH", "/task", detail)
    if order.dataset is not None and order.dataset.task != spec.task:
        yield Fault("TASK_MISMATCH", "/dataset_id", f"The data set is for {order.dataset.task}, not {spec.task}.")


def check_head(order: Order) -> Faults:
    """The model has a trained head for the task, or `baseline` trains one."""
    spec, model = order.spec, order.model
    if spec.baseline is not None or spec.task == HEADLESS or spec.task not in order.family.tasks:
        return
    if model.task not in (*_GENERAL, spec.task):
        detail = f"The model's head is for {model.task}; change the task, or give `baseline` to train a new head."
        yield Fault("TASK_MISMATCH", "/task", detail)
    elif model.task != spec.task or not model.facts["has_head"]:
        detail = "The model has no trained head for this task; give `baseline` so that one is trained first."
        yield Fault("BASELINE_REQUIRED", "/baseline", detail)


def check_baseline(order: Order) -> Faults:
    """There is something to learn before the cut: of a text alone, only where the uncut model puts it."""
    spec, given = order.spec, (order.dataset.labels if order.dataset else None) or {}
    if spec.baseline is not None and spec.task == HEADLESS and given.get("pairs") is False:
        detail = "Texts without partners teach an uncut model nothing; leave baseline out, or give pairs."
        yield Fault("BASELINE_NOT_USED", "/baseline", detail)


def check_splits(order: Order) -> Faults:
    """There is a data set wherever one is read, with the splits that are."""
    spec, splits = order.spec, order.splits
    training, scoring, goals = training_parts(spec), scoring_parts(spec), quality_goals(spec)
    if order.dataset is None:
        if needing := ", ".join([*training, *scoring, *reading_parts(spec), *goals]):
            yield Fault("DATASET_REQUIRED", "/dataset_id", f"A data set is needed by {needing}.")
        return
    if training and "train" not in splits:
        yield Fault("SPLIT_MISSING", "/dataset_id", f"The data set has no train split, which {training[0]} needs.")
    elif scoring and not order.can_score:
        yield Fault("SPLIT_MISSING", "/dataset_id", f"No train or calibration split, which {scoring[0]} reads.")
    if goals and not splits & {"train", "validation", "test"}:
        yield Fault("SPLIT_MISSING", "/dataset_id", f"No test or validation split, which {goals[0]} is measured on.")


def check_tokenizer(order: Order) -> Faults:
    """Text can be read wherever it must be."""
    if order.uses_data and not order.model.facts["has_tokenizer"]:
        detail = "The model came without tokenizer files, so no text can be read; upload it with them."
        yield Fault("TOKENIZER_REQUIRED", "/model_id", detail)


def check_labels(order: Order) -> Faults:
    """With `baseline` labels that do not fit get a new head; without, the model's own head must know them."""
    facts, given = order.model.facts, (order.dataset.labels if order.dataset else None) or {}
    known = facts["labels"]
    if order.spec.baseline is not None or known is None or order.model.task != order.spec.task:
        return
    if set(given.get("names") or ()) - set(known):
        detail = "The data set has labels that the model's id2label does not name; give `baseline` to train a new head."
        yield Fault("LABELS_MISMATCH", "/dataset_id", detail)
    highest = given.get("integers")
    if highest is not None and highest >= len(known):
        detail = f"Labels go up to {highest}, but the model's head has {len(known)}; give `baseline` for a new head."
        yield Fault("LABELS_MISMATCH", "/dataset_id", detail)
    if given and given.get("multi_label", False) != facts.get("multi_label", False):
        said = "several labels" if given.get("multi_label") else "one label"
        detail = f"Rows have {said}, which is not what the model's head is for; give `baseline` for a new head."
        yield Fault("LABELS_MISMATCH", "/dataset_id", detail)
