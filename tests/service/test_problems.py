"""Problem documents: their shape, their pointers, and what they never repeat."""

from typing import Any

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from service.errors import FieldError, Invalid
from service.problems import document, invalid_body, pointer
from service.specs import JobSpec
from tests.service.samples import a_spec

CANARY = "canary-7f3a"


def _errors(body: Any) -> list[tuple[str, str]]:
    with pytest.raises(ValidationError) as caught:
        JobSpec.model_validate(body)
    return [(error.pointer, error.detail) for error in invalid_body(caught.value, body).errors]


def test_a_document_has_the_members_of_rfc_9457_and_ours() -> None:
    error = Invalid("Cannot.", code="SOME_CODE", errors=(FieldError("/a", "b"),), extra={"job_status": "failed"})
    assert document(error, "req_1") == {
        "type": "urn:secateur:error:some-code",
        "title": "Cannot work as asked",
        "status": 422,
        "detail": "Cannot.",
        "code": "SOME_CODE",
        "request_id": "req_1",
        "errors": [{"pointer": "/a", "detail": "b"}],
        "job_status": "failed",
    }


def test_pointers_are_escaped() -> None:
    assert pointer(["a/b", "c~d", 0]) == "/a~1b/c~0d/0"
    assert pointer([]) == ""


def test_pointers_leave_out_the_tags_of_unions() -> None:
    cut = {"structure": "layers", "ratio": 0.5, "criterion": {"kind": "taylor", "samples": 0}}
    schedule = {"kind": "gradual", "rounds": 1}
    goals = [{"metric": "latency", "min_speedup": -1}, {"metric": "accuracy"}, {"metric": "size"}, {"metric": "x"}, {}]
    body = a_spec(pruning={"cuts": [cut], "schedule": schedule}, acceptance=goals)
    assert [where for where, _ in _errors(body)] == [
        "/pruning/cuts/0/criterion/samples",
        "/pruning/schedule/rounds",
        "/acceptance/0/min_speedup",
        "/acceptance/1",
        "/acceptance/2/max_ratio",
        "/acceptance/3",
        "/acceptance/4",
    ]


def test_missing_and_unknown_fields_are_pointed_at() -> None:
    body = a_spec(epoch=3)
    del body["name"]
    assert {where for where, _ in _errors(body)} == {"/name", "/epoch"}
    assert _errors([])[0][0] == ""


@pytest.mark.parametrize(
    "changes",
    [
        {"name": CANARY * 50},
        {"task": CANARY},
        {"model_id": CANARY},
        {"metadata": {CANARY: 1}},
        {"metadata": {"a": CANARY * 50}},
        {"exports": [CANARY]},
        {"acceptance": [{"metric": CANARY}]},
        {"pruning": {"cuts": [{"structure": "layers", "ratio": 0.5, "criterion": {"kind": CANARY}}]}},
        {"seed": CANARY},
        {CANARY: CANARY},
        {"webhook_url": CANARY},
    ],
)
def test_no_submitted_value_is_repeated(changes: dict[str, Any]) -> None:
    told = _errors(a_spec(**changes))
    assert told
    assert CANARY not in str(told)


def test_a_flood_of_faults_is_cut() -> None:
    class Closed(BaseModel):
        model_config = ConfigDict(extra="forbid")

    body = {f"field{index}": 1 for index in range(1000)}
    with pytest.raises(ValidationError) as caught:
        Closed.model_validate(body)
    assert len(invalid_body(caught.value, body).errors) == 50
