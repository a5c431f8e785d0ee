"""Schemathesis with every check and two tenants against the running API: its document and its answers agree."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from fastapi import FastAPI

from service.auth import issue_key
from service.config import Settings
from service.tables import Model
from service.webhooks import outbox
from tests.listening import listening
from tests.service.published import Published, publish
from tests.service.samples import a_worker

TENANTS = ("default", "other")
SUCCESS_OF_EACH = 3
"""Finished jobs of each tenant, so that some are left when others have been deleted."""

BODIES_DECIDE = [
    "POST /v1/datasets",
    "POST /v1/jobs",
    "POST /v1/jobs/{job_id}/clone",
    "POST /v1/jobs/{job_id}/retry",
    "POST /v1/jobs:estimate",
    "POST /v1/keys",
    "POST /v1/models",
    "POST /v1/models/{model_id}/complete",
    "POST /v1/models/{model_id}/inspections",
    "POST /v1/models/{model_id}/uploads",
    "POST /v1/webhook_endpoints",
    "PATCH /v1/webhook_endpoints/{endpoint_id}",
]
"""A body can follow its schema and say what cannot be all the same: a time that is over, two files of one name."""

HOOKS = """
import schemathesis

@schemathesis.serializer("application/offset+octet-stream")
def chunk(ctx, value):
    return value if isinstance(value, bytes) else str(value).encode()
"""


@pytest.fixture
def app(settings: Settings) -> Iterator[FastAPI]:
    """The API on a port of the loopback; its address is `app.state.url`."""
    patient = settings.model_copy(update={"failed_authentications_per_minute": 1_000_000})
    with listening(patient) as service:
        service.app.state.url = service.url
        yield service.app


def give_bytes(app: FastAPI, published: Published) -> None:
    """The model that a job began with is a row alone; it gets the bytes of the one that the job made."""
    made = published.model
    with app.state.database.session_scope() as session:
        given = session.get_one(Model, published.job.model_id)
        given.prefix, given.files = made.prefix, made.files
        given.archive_size, given.archive_sha256 = made.archive_size, made.archive_sha256


def furnish(app: FastAPI, folder: Path, tenant: str) -> tuple[str, dict[str, list[str]]]:
    """An admin key of the tenant, and the ids of what it owns by the name of the path's parameter."""
    owned: dict[str, list[str]] = {"path": ["config.json", "model.safetensors"]}
    for number in range(SUCCESS_OF_EACH):
        (folder / f"{tenant}{number}").mkdir()
        published = publish(app, folder / f"{tenant}{number}", tenant=tenant)
        give_bytes(app, published)
        owned.setdefault("job_id", []).append(published.job.id)
        owned.setdefault("model_id", []).append(published.model.id)
        owned.setdefault("dataset_id", []).append(published.dataset.id)
        owned.setdefault("artifact_id", []).extend(artifact.id for artifact in published.artifacts.values())
    with app.state.database.session_scope() as session:
        _, key = issue_key(session, tenant=tenant, name="fuzz", scopes=["admin"])
        spare = [issue_key(session, tenant=tenant, name="spare", scopes=["read"])[0].id for _ in range(3)]
        session.merge(a_worker())
        endpoint = outbox.signer_of_jobs(session, tenant)
        owned |= {"key_id": spare, "endpoint_id": [endpoint]}
    return key, owned


def configure(app: FastAPI, folder: Path) -> None:
    """Tell schemathesis the keys of both tenants, and ids of the first one's for every second value of a path."""
    furnished = {tenant: furnish(app, folder, tenant) for tenant in TENANTS}
    users = [
        {"name": tenant, "fixedHeaders": [{"name": "Authorization", "value": f"Bearer {key}"}]}
        for tenant, (key, _) in furnished.items()
    ]
    (folder / "users.json").write_text(json.dumps({"auth": users}))
    owned = furnished[TENANTS[0]][1]
    lines = [
        'hooks = "hooks.py"',
        "[auth.wfc]",
        'path = "users.json"',
        f"peers = {json.dumps(TENANTS)}",
        "[checks.not_a_server_error]",
        'expected-statuses = ["2xx", "3xx", "4xx", 507]  # a manifest may announce more than any disk holds',
    ]
    for name, ids in owned.items():
        lines += [f"[dictionaries.{name}]", f"values = {json.dumps(ids)}"]
    lines += ["[parameters]"]
    lines += [f'"path.{name}" = {{ dictionary = "{name}", probability = 0.5 }}' for name in owned]
    for operation in BODIES_DECIDE:
        lines += [
            "[[operations]]",
            f"include-name = {json.dumps(operation)}",
            "checks.positive_data_acceptance.expected-statuses = "
            '["2xx", "3xx", 400, 401, 403, 404, 409, 412, 422, 429, "5xx"]',
        ]
    (folder / "hooks.py").write_text(HOOKS)
    (folder / "schemathesis.toml").write_text("\n".join(lines) + "\n")


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_no_check_of_schemathesis_finds_anything(app: FastAPI, tmp_path: Path) -> None:
    configure(app, tmp_path)
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{app.state.url}/openapi.json", "--checks", "all"]
    options = ["--max-examples", "20", "--seed", "1", "--no-color", "--continue-on-failure", "--request-timeout", "20"]
    done = subprocess.run([*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-20_000:] + done.stderr[-2_000:]
    assert "Tested: " in done.stdout
