"""JUnit XML and Markdown of jobs, read back by the parsers that others would use."""

import re
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from service.commands.verdict_files import junit, markdown, verdict

NASTY = 'a|b `c` <script>alert("x")</script> & ]]> *d* [e](http://f) \x1b[31m\nnext'
SIDE: dict[str, Any] = {
    "metrics": {"macro_f1": {"value": 0.9, "low": 0.88, "high": 0.92}},
    "parameters": 2000, "nonzero_parameters": 2000, "size": 8000, "flops": 100, "peak_memory": None,
    "latency": [{"runtime": "onnxruntime", "batch_size": 1, "sequence_length": 128, "p50": 0.02, "p95": 0.03}],
}  # fmt: skip
SMALLER = SIDE | {"parameters": 1000, "latency": [SIDE["latency"][0] | {"p50": 0.01}]}
MET = {"metric": "macro_f1", "goal": {"metric": "macro_f1", "max_drop": 0.0}, "measured": 0.0, "passed": True}
MISSED = {"metric": "latency", "goal": {"min_speedup": 3.0, "runtime": "torch"}, "measured": 2.0, "passed": False}
CHILDREN = {"testsuites": {"testsuite"}, "testsuite": {"properties", "testcase"}, "properties": {"property"},
            "testcase": {"failure", "error", "skipped", "system-out"}}  # fmt: skip
REQUIRED = {
    "testsuites": {"tests", "failures", "errors", "time"},
    "testsuite": {"name", "tests", "failures", "errors", "skipped", "time", "timestamp"},
    "testcase": {"name", "classname", "time"},
    "property": {"name", "value"},
    "failure": {"message", "type"},
    "error": {"message", "type"},
}


def job(status: str, *lines: dict[str, Any], **fields: Any) -> dict[str, Any]:
    """A job as the API shows it."""
    ended = status in ("succeeded", "rejected")
    result = {"verdict": list(lines), "before": SIDE, "after": SMALLER, "report_url": "http://s/report"}
    return {
        "id": "job_1", "name": "half", "status": status, "error": None, "warnings": [], "spec": {},
        "result": result if ended else None, "links": {"self": "http://s/v1/jobs/job_1"},
        "created_at": "2026-01-01T00:00:00Z", "started_at": "2026-01-01T00:00:10Z",
        "finished_at": "2026-01-01T00:01:10.500Z",
    } | fields  # fmt: skip


def parsed(*jobs: dict[str, Any]) -> ET.Element:
    """The report, when every element has its attributes and stands where the schema of JUnit reports has it."""
    root = ET.fromstring(junit(jobs))
    for element in root.iter():
        assert {child.tag for child in element} <= CHILDREN.get(element.tag, set()), element.tag
        assert REQUIRED.get(element.tag, set()) <= set(element.keys()), element.tag
    for element in (root, *root):
        cases = list(element.iter("testcase"))
        assert element.get("tests") == str(len(cases))
        for count, tag in (("failures", "failure"), ("errors", "error"), ("skipped", "skipped")):
            assert element.get(count) == str(len(list(element.iter(tag))))
    return root


def test_one_case_per_goal_and_a_missed_one_is_a_failure() -> None:
    suite = parsed(job("rejected", MET, MISSED))[0]
    met, missed = suite.findall("testcase")
    assert (suite.get("name"), suite.get("time")) == ("half", "60.500")
    assert met.get("name") == "macro_f1: max_drop 0.0"
    assert met.findtext("system-out") == "goal max_drop 0.0, measured 0"
    assert met.find("failure") is None
    failure = missed.find("failure")
    assert failure is not None
    assert failure.get("message") == "latency missed its goal: 2, wanted min_speedup 3.0, runtime torch"


@pytest.mark.parametrize(
    ("status", "error"),
    [("failed", {"code": "OUT_OF_MEMORY", "message": NASTY}), ("cancelled", None), ("running", None)],
)
def test_a_job_without_an_end_is_an_error_and_its_goals_are_skipped(status: str, error: Any) -> None:
    spec = {"acceptance": [{"metric": "accuracy", "max_drop": 0.01}]}
    ended, goal = parsed(job(status, error=error, spec=spec)).iter("testcase")
    told = ended.find("error")
    assert told is not None
    assert told.get("type") == ("OUT_OF_MEMORY" if error else status.upper())
    assert goal.find("skipped") is not None
    assert goal.get("name") == "accuracy: max_drop 0.01"


@pytest.mark.parametrize("fields", [{}, {"result": None, "inspection": {}}], ids=["no goals", "inspection"])
def test_a_job_without_goals_is_one_case(fields: dict[str, Any]) -> None:
    (case,) = parsed(job("succeeded", **fields)).iter("testcase")
    assert [child.tag for child in case] == []
    assert case.get("time") == "60.500"


def test_every_job_is_a_suite_and_the_root_counts_them() -> None:
    root = parsed(job("succeeded", MET), job("rejected", MISSED, name=NASTY), job("failed"))
    assert [suite.get("failures") for suite in root] == ["0", "1", "0"]
    assert (root.get("tests"), root.get("failures"), root.get("errors")) == ("3", "1", "1")
    assert root.get("time") == "181.500"


def test_what_xml_cannot_carry_is_replaced_and_the_rest_escaped() -> None:
    name = parsed(job("succeeded", name=NASTY))[0].get("name")
    assert name is not None
    assert name.startswith('a|b `c` <script>alert("x")</script> & ]]>')
    assert "\x1b" not in name


def tables(text: str) -> list[list[list[str]]]:
    """The cells of every table, split as a reader of GitHub's Markdown does: an escaped bar is none."""
    blocks = re.findall(r"(?:^\|.*\|$\n?)+", text, flags=re.MULTILINE)
    return [[re.split(r"(?<!\\)\|", line)[1:-1] for line in block.splitlines()] for block in blocks]


def test_markdown_has_the_verdict_the_goals_and_what_changed() -> None:
    text = markdown(job("rejected", MET, MISSED))
    assert "### Secateur: half rejected" in text
    goals, changes = tables(text)
    assert [row[-1].strip() for row in goals] == ["verdict", "---", "passed", "**missed**"]
    assert [cell.strip() for cell in changes[3]] == ["parameters", "2,000", "1,000", "2.00 x smaller"]
    assert [cell.strip() for cell in changes[-1]][-1] == "2.00 x faster"
    assert "[report](<http://s/report>)" in text
    assert "[job](<http://s/v1/jobs/job_1>)" in text


def test_markdown_can_be_appended_to_anything() -> None:
    text = "no line break at the end" + markdown(job("succeeded", MET)) + markdown(job("failed"))
    assert [line for line in text.splitlines() if line.startswith("###")] == [
        "### Secateur: half accepted", "### Secateur: half failed",
    ]  # fmt: skip
    assert len(tables(text)) == 2


def test_nothing_in_markdown_breaks_out() -> None:
    hostile = {"self": "http://s/>)<img src=x>"}
    error = {"code": NASTY, "message": NASTY}
    warnings = [{"code": "W", "message": NASTY}]
    text = markdown(job("failed", name=NASTY, error=error, warnings=warnings, links=hostile))
    assert "<script" not in text and "<img" not in text
    assert not re.search(r"(?<!\\)\[e", text), "no link but our own"
    assert not re.search(r"(?<!\\)`c", text)
    line = MET | {"metric": NASTY}
    rows = tables(markdown(job("succeeded", line)))[0]
    assert {len(row) for row in rows} == {4}


def test_accepted_says_that_there_were_goals() -> None:
    assert [verdict(job("succeeded", MET)), verdict(job("succeeded")), verdict(job("rejected", MISSED))] == [
        "accepted", "succeeded", "rejected",
    ]  # fmt: skip
