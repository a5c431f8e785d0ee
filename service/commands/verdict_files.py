"""How a job ended, for machines that build software: JUnit XML for their test reports, Markdown for their summaries.

Pure functions of jobs as the API shows them.
"""

import html
import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable, Sequence
from datetime import datetime

from service.commands.show import Json, comparison, goal_of, measured_of

_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")
_MARKDOWN = re.compile(r"([\\`*_{}\[\]#|~])")


def junit(jobs: Sequence[Json]) -> str:
    """JUnit XML: one test suite per job, one test case per acceptance goal.

    A goal that was missed is a failure; a job that did not come to its end is an error, and its goals were skipped. A
    job without goals is one test case: that it came to its end.
    """
    root = ET.Element("testsuites", name="secateur")
    for job in jobs:
        _suite(root, job)
    for count in ("tests", "failures", "errors", "skipped"):
        root.set(count, str(sum(int(suite.get(count, "0")) for suite in root)))
    root.set("time", f"{sum(_seconds(job) for job in jobs):.3f}")
    ET.indent(root)
    return f'<?xml version="1.0" encoding="UTF-8"?>\n{ET.tostring(root, encoding="unicode")}\n'


def _suite(root: ET.Element, job: Json) -> None:
    suite = ET.SubElement(root, "testsuite", name=_text(job["name"]), timestamp=job["created_at"])
    suite.set("time", f"{_seconds(job):.3f}")
    properties = ET.SubElement(suite, "properties")
    for name in ("id", "status"):
        ET.SubElement(properties, "property", name=f"job.{name}", value=_text(job[name]))
    cases = _judged(suite, job) if job["status"] in ("succeeded", "rejected") else _unfinished(suite, job)
    counted = {"failures": "failure", "errors": "error", "skipped": "skipped"}
    suite.set("tests", str(len(cases)))
    for count, tag in counted.items():
        suite.set(count, str(sum(case.find(tag) is not None for case in cases)))


def _case(suite: ET.Element, job: Json, name: str, seconds: float = 0.0) -> ET.Element:
    classname = f"secateur.{_text(job['name'])}"
    return ET.SubElement(suite, "testcase", classname=classname, name=_text(name), time=f"{seconds:.3f}")


def _judged(suite: ET.Element, job: Json) -> list[ET.Element]:
    verdict = job["result"]["verdict"] if job["result"] is not None else []  # an inspection has none
    if not verdict:
        return [_case(suite, job, "the job came to its end", _seconds(job))]
    return [_goal(suite, job, line) for line in verdict]


def _goal(suite: ET.Element, job: Json, line: Json) -> ET.Element:
    goal, measured = f"{line['metric']}: {goal_of(line['goal'])}", measured_of(line)
    case = _case(suite, job, goal)
    if not line["passed"]:
        missed = f"{line['metric']} missed its goal: {measured}, wanted {goal_of(line['goal'])}"
        ET.SubElement(case, "failure", type="GoalMissed", message=_text(missed)).text = _text(missed)
    ET.SubElement(case, "system-out").text = _text(f"goal {goal_of(line['goal'])}, measured {measured}")
    return case


def _unfinished(suite: ET.Element, job: Json) -> list[ET.Element]:
    """A job that failed, was cancelled, or goes on."""
    ended = _case(suite, job, "the job came to its end", _seconds(job))
    error = job["error"] or {"code": job["status"].upper(), "message": f"The job is {job['status']}."}
    ET.SubElement(ended, "error", type=_text(error["code"]), message=_text(error["message"])).text = _text(
        f"{error['message']} ({error['code']})"
    )
    cases = [ended]
    for goal in job["spec"].get("acceptance") or ():
        case = _case(suite, job, f"{goal['metric']}: {goal_of(goal)}")
        ET.SubElement(case, "skipped", message="not measured")
        cases.append(case)
    return cases


def _seconds(job: Json) -> float:
    """From the first start to the end; 0 while there is none of them."""
    if not job["started_at"] or not job["finished_at"]:
        return 0.0
    start, end = (datetime.fromisoformat(job[name]) for name in ("started_at", "finished_at"))
    return max(0.0, (end - start).total_seconds())


def _text(text: str) -> str:
    """What XML can carry of a text."""
    return _NOT_XML.sub("\ufffd", text)


def verdict(job: Json) -> str:
    """`accepted` where all goals were met, else the status."""
    judged = job["status"] == "succeeded" and job["result"] is not None and job["result"]["verdict"]
    return "accepted" if judged else str(job["status"])


def markdown(job: Json) -> str:
    """A summary of a job as GitHub and GitLab render it; can be appended to whatever is in a file already."""
    lines = ["", f"### Secateur: {_plain(job['name'])} {verdict(job)}", ""]
    if job["error"] is not None:
        lines += [f"**{_plain(job['error']['code'])}**: {_plain(job['error']['message'])}", ""]
    if job["result"] is not None:
        lines += _goals(job["result"]["verdict"])
        lines += _table(("", "before", "after", "change"), comparison(job["result"]))
    lines += [f"- {_plain(warning['message'])} ({_plain(warning['code'])})" for warning in job["warnings"]]
    return "\n".join([*lines, "", _links(job), ""])


def _goals(lines: Sequence[Json]) -> list[str]:
    rows = (
        (line["metric"], goal_of(line["goal"]), measured_of(line), "passed" if line["passed"] else "**missed**")
        for line in lines
    )
    return _table(("goal", "wanted", "measured", "verdict"), rows) if lines else []


def _table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    body = [f"| {' | '.join(_cell(cell) for cell in row)} |" for row in rows]
    return [f"| {' | '.join(columns)} |", f"|{' --- |' * len(columns)}", *body, ""]


def _cell(text: str) -> str:
    return text if text == "**missed**" else _plain(text)


def _plain(text: str) -> str:
    """A text on one line that Markdown shows as it is."""
    return html.escape(_MARKDOWN.sub(r"\\\1", " ".join(text.split())), quote=False)


def _links(job: Json) -> str:
    report = None if job["result"] is None else job["result"]["report_url"]
    named = {"report": report, "job": job["links"].get("self"), "model": job["links"].get("model")}
    shown = [f"[{name}](<{_address(url)}>)" for name, url in named.items() if url]
    return " · ".join([f"`{job['id']}`", *shown])


def _address(url: str) -> str:
    """An address that cannot leave its brackets."""
    return re.sub(r"[<>\s]", lambda match: f"%{ord(match[0]):02X}", url)
