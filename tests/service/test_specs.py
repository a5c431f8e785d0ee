"""The spec language: closed, strict, bounded; nothing in it can be code, a path or an address."""

import json
from typing import Any

import pytest
from pydantic import ValidationError

from service.problems import invalid_body
from service.specs import CRITERIA_OF, DATA_CRITERIA, Criterion, JobSpec
from tests.service.samples import a_spec

FULL: dict[str, Any] = a_spec(
    version=1,
    metadata={"team": "search"},
    dataset_id="ds_" + "0" * 26,
    baseline={"epochs": 2, "learning_rate": 1e-4, "batch_size": 32},
    pruning={
        "cuts": [
            {"structure": "attention_heads", "ratio": 0.5, "scope": "global", "criterion": {"kind": "taylor"}},
            {"structure": "ffn_neurons", "ratio": 0.5, "criterion": {"kind": "magnitude", "norm": 1}},
            {"structure": "layers", "ratio": 0.33, "criterion": {"kind": "similarity"}},
            {"structure": "weights", "ratio": 0.8, "pattern": "unstructured", "criterion": {"kind": "magnitude"}},
        ],
        "schedule": {"kind": "gradual", "rounds": 4, "curve": "cubic"},
    },
    finetuning={
        "epochs": 4,
        "optimizer": {"kind": "sgd", "momentum": 0.9, "nesterov": True},
        "distillation": {"temperature": 2.0, "weight": 0.5},
    },
    acceptance=[{"metric": "accuracy", "max_drop": 0.01}, {"metric": "latency", "min_speedup": 1.5}],
    exports=["huggingface_custom", "onnx", "onnx_int8"],
    benchmark={"batch_sizes": [1, 8], "sequence_length": 128, "threads": 1},
    max_length=128,
    device="auto",
    precision="auto",
    seed=0,
    priority=0,
    timeout=86400,
)


def test_a_spec_survives_json() -> None:
    spec = JobSpec.model_validate(FULL)
    again = JobSpec.model_validate(json.loads(spec.model_dump_json()))
    assert again == spec
    assert spec.needs_data


def test_defaults_are_the_documented_ones() -> None:
    spec = JobSpec.model_validate(a_spec())
    assert (spec.exports, spec.acceptance, spec.baseline, spec.finetuning) == (["huggingface"], [], None, None)
    assert spec.pruning.schedule.kind == "one_shot"
    assert spec.pruning.cuts[0].scope == "uniform"
    assert spec.benchmark is not None
    assert (spec.benchmark.batch_sizes, spec.benchmark.sequence_length, spec.benchmark.threads) == ([1, 8], 128, 1)
    assert not spec.needs_data


def _changed(path: str, value: Any) -> dict[str, Any]:
    spec: dict[str, Any] = json.loads(json.dumps(FULL))
    *parents, last = path.strip("/").split("/")
    here: Any = spec
    for part in parents:
        here = here[int(part) if isinstance(here, list) else part]
    here[int(last) if isinstance(here, list) else last] = value
    return spec


BAD: list[tuple[str, Any]] = [
    ("/unknown", 1),
    ("/name", ""),
    ("/name", "a\x00b"),
    ("/name", "\ud800"),
    ("/name", "x" * 201),
    ("/metadata", {str(index): "" for index in range(17)}),
    ("/model_id", "../../etc/passwd"),
    ("/model_id", "x'); --"),
    ("/model_id", "$(id)"),
    ("/dataset_id", "__import__('os')"),
    ("/task", "cooking"),
    ("/version", 2),
    ("/pruning/cuts", []),
    ("/pruning/cuts/0/ratio", 0),
    ("/pruning/cuts/0/ratio", 1.0),
    ("/pruning/cuts/0/ratio", "0.5"),
    ("/pruning/cuts/0/ratio", True),
    ("/pruning/cuts/0/ratio", None),
    ("/pruning/cuts/0/structure", "hidden"),
    ("/pruning/cuts/0/pattern", "2:4"),
    ("/pruning/cuts/0/stack", "both"),
    ("/pruning/cuts/0/criterion", None),
    ("/pruning/cuts/2", {"structure": "vocabulary", "ratio": 0.5}),
    ("/pruning/cuts/2", {"structure": "vocabulary", "criterion": {"kind": "magnitude"}}),
    ("/pruning/cuts/2/repair", True),
    (
        "/pruning/cuts/1",
        {"structure": "weights", "ratio": 0.5, "criterion": {"kind": "regularization", "threshold": 0.1}},
    ),
    ("/pruning/target", {"metric": "flops", "ratio": 0.5}),
    ("/pruning/cuts/0/criterion/kind", "similarity"),
    ("/pruning/cuts/0/criterion/kind", "eval"),
    ("/pruning/cuts/1/criterion/norm", 3),
    ("/pruning/cuts/3/pattern", "3:4"),
    ("/pruning/schedule/rounds", 1),
    ("/finetuning/epochs", 2**70),
    ("/finetuning/epochs", 1.5),
    ("/finetuning/learning_rate", 0),
    ("/finetuning/optimizer/momentum", 1.0),
    ("/finetuning/distillation/weight", 1.1),
    ("/acceptance/0/min_value", 0.5),
    ("/acceptance/1/min_speedup", 0),
    ("/exports", ["onnx", "onnx"]),
    ("/benchmark/batch_sizes", []),
    ("/benchmark/threads", 0),
    ("/stride", 0),
    ("/beams", 0),
    ("/beams", 33),
    ("/seed", -1),
    ("/priority", 10),
    ("/timeout", 0),
    ("/device", "cuda:0"),
    ("/webhook_url", "ftp://example.org"),
]


@pytest.mark.parametrize(("path", "value"), BAD, ids=[f"{path}-{index}" for index, (path, _) in enumerate(BAD)])
def test_what_cannot_work_is_refused_at_its_field(path: str, value: Any) -> None:
    body = _changed(path, value)
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    problem = invalid_body(caught.value, body, "INVALID_SPEC")
    pointers = [error.pointer for error in problem.errors]
    assert any(path.startswith(pointer) or pointer.startswith(path) for pointer in pointers), pointers
    assert all(pointer.count("/") >= 1 for pointer in pointers)
    assert problem.code == "INVALID_SPEC"


def test_a_fault_between_two_fields_is_told_at_one_of_them() -> None:
    body = _changed("/finetuning/optimizer/momentum", 0.0)
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    assert [error.pointer for error in invalid_body(caught.value, body).errors] == ["/finetuning/optimizer/nesterov"]


def test_a_target_stands_in_for_cuts() -> None:
    spec = JobSpec.model_validate(a_spec(pruning={"target": {"metric": "flops", "ratio": 0.5}}))
    assert spec.needs_data
    with pytest.raises(ValidationError, match="not available"):
        JobSpec.model_validate(a_spec(pruning={"target": {"metric": "latency", "ratio": 0.5}}))


def test_the_vocabulary_is_cut_by_use() -> None:
    spec = JobSpec.model_validate(a_spec(pruning={"cuts": [{"structure": "vocabulary"}]}))
    assert (spec.pruning.cuts[0].kind, spec.needs_data) == ("use", True)


def test_numbers_that_are_not_finite_are_refused() -> None:
    for value in (float("nan"), float("inf")):
        with pytest.raises(ValidationError):
            JobSpec.model_validate(_changed("/finetuning/learning_rate", value))


def test_every_criterion_scores_something() -> None:
    kinds = {member.model_fields["kind"].annotation.__args__[0] for member in Criterion.__args__[0].__args__}
    assert kinds == set().union(*CRITERIA_OF.values())
    assert kinds >= DATA_CRITERIA


def test_a_spec_is_frozen() -> None:
    spec = JobSpec.model_validate(a_spec())
    with pytest.raises(ValidationError):
        spec.seed = 3  # type: ignore[misc]
