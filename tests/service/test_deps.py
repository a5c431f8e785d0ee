"""What routes get: strict JSON, and a transaction that ends before the answer."""

from typing import Any

import pytest
from fastapi import FastAPI
from sqlalchemy import func, select
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session
from starlette.testclient import TestClient

from service.app import create_app
from service.config import Settings
from service.db import Database
from service.deps import Require, SessionDep, Writer, parse_json, require
from service.errors import BadRequest
from service.intake.strict_json import MAX_DEPTH
from service.tables import Worker
from tests.databases import on_databases
from tests.service.samples import a_worker


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b'{"a": 1, "a": 2}',
        b'{"a": {"b": 1, "b": 1}}',
        b'{"a": NaN}',
        b'{"a": -Infinity}',
        b'{"a": 1e999}',
        b'{"a": ' + b"9" * 5000 + b"}",
        b"[" * 100_000,
        b"[" * (MAX_DEPTH + 2) + b"]" * (MAX_DEPTH + 2),
        b'\xef\xbb\xbf{"a": 1}',
        '{"a": 1}'.encode("utf-16"),
        b'{"a": "\xff"}',
        b'{"a": "\\u0000"}',
        b'{"\\ud800": 1}',
    ],
)
def test_what_is_not_strict_json_is_refused(body: bytes) -> None:
    with pytest.raises(BadRequest) as caught:
        parse_json(body)
    assert caught.value.code == "MALFORMED_JSON"


def test_strict_json_is_read() -> None:
    deep = b"[" * MAX_DEPTH + b"]" * MAX_DEPTH
    assert parse_json(b'{"a": [1, 2.5, "\xc3\xa9", null, true, {}]}') == {"a": [1, 2.5, "é", None, True, {}]}
    assert isinstance(parse_json(deep), list)


def _with_routes(settings: Settings) -> FastAPI:
    app = create_app(settings)

    @app.post("/v1/probe", status_code=201)
    def write(principal: Writer, session: SessionDep) -> dict[str, bool]:
        session.add(a_worker("probe"))
        return {"stored": True}

    @app.get("/v1/probe")
    def write_on_get(principal: Writer, session: SessionDep) -> dict[str, bool]:
        session.add(a_worker("probe"))
        session.flush()
        return {"stored": True}

    return app


def test_a_commit_that_fails_is_never_answered_2xx(
    settings: Settings, api_key: str, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: Session) -> None:
        raise OperationalError("COMMIT", {}, Exception("secret://disk"))

    with TestClient(
        _with_routes(settings), base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"}
    ) as client:
        monkeypatch.setattr(Session, "commit", fail)
        answer = client.post("/v1/probe")
        monkeypatch.undo()
        assert answer.status_code == 503
        assert answer.headers["retry-after"]
        assert "secret" not in answer.text
        with database.session_scope(read_only=True) as session:
            assert session.scalar(select(func.count()).select_from(Worker)) == 0
        assert client.post("/v1/probe").status_code == 201


@pytest.mark.parametrize("database_url", ["postgresql"], indirect=True)
def test_a_get_cannot_write(settings: Settings, api_key: str) -> None:
    with TestClient(
        _with_routes(settings), base_url="http://127.0.0.1:8400", headers={"Authorization": f"Bearer {api_key}"}
    ) as client:
        assert client.get("/v1/probe").status_code == 500
        assert client.post("/v1/probe").status_code == 201


@on_databases
def test_a_key_without_the_scope_is_forbidden(anonymous_client: TestClient, database: Database) -> None:
    from service.auth import issue_key

    with database.session_scope() as session:
        _, plaintext = issue_key(session, tenant="default", name="r", scopes=["read"])
    bearer = {"Authorization": f"Bearer {plaintext}"}
    assert anonymous_client.get("/v1/jobs", headers=bearer).status_code == 200
    answers: list[Any] = [
        anonymous_client.post("/v1/jobs", headers=bearer, json={}),
        anonymous_client.get("/v1/keys", headers=bearer),
    ]
    assert [(answer.status_code, answer.json()["code"]) for answer in answers] == [(403, "SCOPE_MISSING")] * 2


def test_require_carries_its_scope() -> None:
    assert isinstance(require("admin"), Require)
    assert require("admin").scope == "admin"
