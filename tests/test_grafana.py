"""The dashboard and the alerts ask for figures that the service has."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from prometheus_client.parser import text_string_to_metric_families
from starlette.testclient import TestClient

from service.db import Database
from tests.service.samples import submitted
from tests.service.test_observe import run

FOLDER = Path(__file__).parents[1] / "docs" / "grafana"
_SELECTOR = re.compile(r"(secateur_\w+)(?:\{([^}]*)\})?")


@pytest.fixture
def shown(client: TestClient, database: Database) -> dict[str, set[str]]:
    """Names of samples with their labels, after one job of each kind."""
    for end in ("succeeded", "failed"):
        run(database, submitted(database), end)
    client.post("/v1/jobs", content=b"{}", headers={"Content-Type": "application/json"})
    client.get("/v1/jobs")
    samples: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(client.get("/metrics").text):
        for sample in family.samples:
            samples.setdefault(sample.name, {"job", "instance"}).update(sample.labels)
    return samples


def panels() -> list[dict[str, Any]]:
    """Panels of the dashboard that draw something."""
    found: list[dict[str, Any]] = json.loads((FOLDER / "secateur.json").read_text())["panels"]
    return [panel for panel in found if panel["type"] != "row"]


def rules() -> list[dict[str, Any]]:
    """Rules of the alerts."""
    found: list[dict[str, Any]] = yaml.safe_load((FOLDER / "alerts.yml").read_text())["groups"][0]["rules"]
    return found


def expressions() -> Iterator[str]:
    """All of PromQL."""
    yield from (target["expr"] for panel in panels() for target in panel["targets"])
    yield from (rule["expr"] for rule in rules())


def test_every_expression_names_figures_and_labels_that_exist(shown: dict[str, set[str]]) -> None:
    asked = [match for expression in expressions() for match in _SELECTOR.findall(expression)]
    assert len(asked) > 20
    for name, selector in asked:
        assert name in shown, name
        assert set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)", selector)) <= shown[name], (name, selector)
    for expression in expressions():
        grouped = re.findall(r"by \(([^)]*)\)", expression)
        labels = set().union(*(shown[name] for name, _ in _SELECTOR.findall(expression)))
        assert {label.strip() for group in grouped for label in group.split(",")} <= labels, expression
        assert expression.count("(") == expression.count(")")


def test_the_dashboard_is_one_that_grafana_takes() -> None:
    dashboard = json.loads((FOLDER / "secateur.json").read_text())
    assert dashboard["uid"] and dashboard["title"] and 36 <= dashboard["schemaVersion"] <= 41
    variables = {variable["name"]: variable["type"] for variable in dashboard["templating"]["list"]}
    assert variables == {"datasource": "datasource", "job": "query"}
    every = dashboard["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    for panel in panels():
        assert panel["title"] and panel["fieldConfig"]["defaults"]["unit"]
        assert {target["datasource"]["uid"] for target in panel["targets"]} == {"${datasource}"}
    assert len({panel["title"] for panel in panels()}) == len(panels())


def test_no_two_panels_share_a_place() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in json.loads((FOLDER / "secateur.json").read_text())["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert place["x"] + place["w"] <= 24
        assert not cells & taken, panel["title"]
        taken |= cells


def test_every_alert_says_what_to_do() -> None:
    assert len({rule["alert"] for rule in rules()}) == len(rules())
    for rule in rules():
        assert rule["annotations"].keys() == {"summary", "action"}
        assert rule["labels"]["severity"] in ("page", "ticket")
