"""The door: every combination that cannot work is refused at its field, and defaults are filled in from the model."""

from typing import Any

import pytest

from service.errors import Invalid
from service.resolve import resolve
from service.specs import JobSpec
from service.tables import Dataset, Model
from tests.service.resolve.orders import BASELINE, HEADS, SPLIT, TAYLOR
from tests.service.samples import a_dataset, a_model, a_spec

LATENCY = {"metric": "latency", "min_speedup": 1.0, "runtime": "torch"}
CASES: list[tuple[str, str, dict[str, Any], Model, Dataset | None]] = [
    ("TASK_MISMATCH", "/dataset_id", {}, a_model(), a_dataset(task="translation")),
    ("TASK_MISMATCH", "/task", {}, a_model(task="translation"), None),
    ("BASELINE_REQUIRED", "/baseline", {}, a_model(task=None, facts={"has_head": False, "labels": None}), None),
    ("DATASET_REQUIRED", "/dataset_id", {"finetuning": {"epochs": 1}}, a_model(), None),
    ("DATASET_REQUIRED", "/dataset_id", {"pruning": {"cuts": [TAYLOR]}}, a_model(), None),
    ("DATASET_REQUIRED", "/dataset_id", {"acceptance": [{"metric": "accuracy", "min_value": 0.5}]}, a_model(), None),
    ("SPLIT_MISSING", "/dataset_id", {"baseline": BASELINE}, a_model(), a_dataset(splits={"test": SPLIT})),
    ("SPLIT_MISSING", "/dataset_id", {"pruning": {"cuts": [TAYLOR]}}, a_model(), a_dataset(splits={"test": SPLIT})),
    (
        "SPLIT_MISSING",
        "/dataset_id",
        {"acceptance": [{"metric": "accuracy", "min_value": 0.5}]},
        a_model(),
        a_dataset(splits={"calibration": SPLIT}),
    ),
    ("TOKENIZER_REQUIRED", "/model_id", {}, a_model(facts={"has_tokenizer": False}), a_dataset()),
    (
        "LABELS_MISMATCH",
        "/dataset_id",
        {},
        a_model(),
        a_dataset(labels={"names": ["good", "ugly"], "integers": None, "pairs": False}),
    ),
    (
        "LABELS_MISMATCH",
        "/dataset_id",
        {},
        a_model(),
        a_dataset(labels={"names": None, "integers": 2, "pairs": False}),
    ),
    (
        "CUT_REMOVES_NOTHING",
        "/pruning/cuts/0/ratio",
        {"pruning": {"cuts": [{**HEADS, "ratio": 0.1}]}, "exports": ["onnx"]},
        a_model(),
        None,
    ),
    (
        "CUT_REMOVES_NOTHING",
        "/pruning/cuts/0/ratio",
        {"pruning": {"cuts": [{"structure": "layers", "ratio": 0.9, "criterion": {"kind": "random"}}]}},
        a_model(structure={**a_model().structure, "layers": 1}),
        None,
    ),
    ("EXPORT_NOT_EXPRESSIBLE", "/exports/0", {"pruning": {"cuts": [HEADS]}}, a_model(), None),
    (
        "EXPORT_NOT_EXPRESSIBLE",
        "/exports/1",
        {"pruning": {"cuts": [{**TAYLOR, "scope": "global"}]}, "exports": ["onnx", "huggingface"]},
        a_model(),
        a_dataset(),
    ),
    ("EXPORT_NOT_EXPRESSIBLE", "/exports/0", {}, a_model(facts={"uniform": False}), None),
    ("TOO_LONG", "/max_length", {"max_length": 129}, a_model(), None),
    ("TOO_LONG", "/benchmark/sequence_length", {"benchmark": {"sequence_length": 129}}, a_model(), None),
    (
        "BENCHMARK_REQUIRED",
        "/acceptance/0",
        {"acceptance": [LATENCY]},
        a_model(),
        None,
    ),
    (
        "BATCH_SIZE_NOT_MEASURED",
        "/acceptance/0/batch_size",
        {"acceptance": [{**LATENCY, "batch_size": 2}]},
        a_model(),
        a_dataset(),
    ),
    (
        "RUNTIME_NOT_EXPORTED",
        "/acceptance/1/runtime",
        {
            "acceptance": [
                {"metric": "size", "max_ratio": 0.9},
                {"metric": "latency", "min_speedup": 1.0, "runtime": "onnxruntime_int8"},
            ],
            "exports": ["huggingface", "onnx"],
        },
        a_model(),
        a_dataset(),
    ),
]


def _spec(changes: dict[str, Any], dataset: Dataset | None) -> JobSpec:
    given = {"dataset_id": "ds_" + "0" * 26} if dataset is not None else {}
    return JobSpec.model_validate(a_spec(**changes, **given))


@pytest.mark.parametrize(
    ("code", "pointer", "changes", "model", "dataset"), CASES, ids=[f"{case[0]}-{n}" for n, case in enumerate(CASES)]
)
def test_what_cannot_work_is_refused_at_its_field(
    code: str, pointer: str, changes: dict[str, Any], model: Model, dataset: Dataset | None
) -> None:
    with pytest.raises(Invalid) as caught:
        resolve(_spec(changes, dataset), model, dataset)
    assert (caught.value.code, [error.pointer for error in caught.value.errors]) == (code, [pointer])
    assert caught.value.errors[0].detail == caught.value.detail


def test_all_faults_are_told_at_once() -> None:
    spec = _spec({"pruning": {"cuts": [TAYLOR, HEADS]}, "max_length": 1000}, None)
    with pytest.raises(Invalid) as caught:
        resolve(spec, a_model(), None)
    pointers = {error.pointer for error in caught.value.errors}
    assert pointers == {"/dataset_id", "/exports/0", "/max_length"}
    needing, naming = (error.detail for error in caught.value.errors if error.pointer != "/max_length")
    assert "/pruning/cuts/0/criterion" in needing
    assert "/pruning/cuts/1" in naming


def test_defaults_come_from_the_model() -> None:
    short = a_model(facts={"max_length": 64})
    configuration, _ = resolve(_spec({}, a_dataset()), short, a_dataset())
    assert configuration["max_length"] == 64
    assert configuration["benchmark"]["sequence_length"] == 64
    configuration, _ = resolve(_spec({}, a_dataset()), a_model(facts={"max_length": 512}), a_dataset())
    assert (configuration["max_length"], configuration["benchmark"]["sequence_length"]) == (128, 128)
    assert JobSpec.model_validate(configuration).model_dump(mode="json") == configuration


def test_a_job_without_data_measures_only_when_asked_to() -> None:
    assert resolve(_spec({}, None), a_model(), None)[0]["benchmark"] is None
    asked, _ = resolve(_spec({"benchmark": {"batch_sizes": [2]}}, None), a_model(), None)
    assert asked["benchmark"]["batch_sizes"] == [2]
    assert resolve(_spec({"benchmark": None}, a_dataset()), a_model(), a_dataset())[0]["benchmark"] is None


def test_a_baseline_brings_the_head_and_its_labels() -> None:
    encoder = a_model(task=None, facts={"has_head": False, "labels": None})
    new_labels = a_dataset(labels={"names": ["a", "b", "c"], "integers": None, "pairs": False})
    for model in (encoder, a_model()):
        configuration, _ = resolve(_spec({"baseline": BASELINE}, new_labels), model, new_labels)
        assert configuration["baseline"]["epochs"] == 1


def test_calibration_is_enough_to_score() -> None:
    dataset = a_dataset(splits={"calibration": SPLIT})
    _, warnings = resolve(_spec({"pruning": {"cuts": [TAYLOR]}}, dataset), a_model(), dataset)
    assert [warning["code"] for warning in warnings] == ["QUALITY_NOT_MEASURED"]


def test_a_global_cut_removes_something_where_a_uniform_one_rounds_to_none() -> None:
    cut = {**HEADS, "ratio": 0.1, "scope": "global"}
    configuration, _ = resolve(_spec({"pruning": {"cuts": [cut]}, "exports": ["onnx"]}, None), a_model(), None)
    assert configuration["pruning"]["cuts"][0]["scope"] == "global"


@pytest.mark.parametrize(("devices", "refused"), [(None, False), (["cpu"], True), (["cpu", "cuda"], False)])
def test_cuda_is_refused_only_where_workers_are_known_to_lack_it(devices: list[str] | None, refused: bool) -> None:
    spec = _spec({"device": "cuda"}, None)
    try:
        resolve(spec, a_model(), None, devices)
    except Invalid as error:
        assert refused
        assert (error.code, error.errors[0].pointer) == ("DEVICE_NOT_AVAILABLE", "/device")
    else:
        assert not refused
