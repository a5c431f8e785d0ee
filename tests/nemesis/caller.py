"""A client that notes what it asks and what it is answered, as short as a judge needs it."""

import hashlib
import re
import time
from typing import Any

import httpx

from tests.nemesis.history import History

IDS = re.compile(r"\b(?:job|mdl|ds|art|evt|whe|wvd|upl)_[0-9A-Z]{26}\b")
_NEVER_SENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_VERSION = re.compile(r'"(\d+)-\d+"')
_AFTER_NO_ANSWER = 0.3


class Caller:
    """One connection of one tenant's client; its methods raise nothing that the network does."""

    def __init__(self, history: History, name: str, url: str, key: str) -> None:
        self._history, self.name = history, name
        self._http = httpx.Client(
            base_url=url,
            headers={"Authorization": f"Bearer {key}"},
            timeout=httpx.Timeout(15, connect=2),
            trust_env=False,
        )

    def call(
        self, kind: str, method: str, path: str, asked: dict[str, Any] | None = None, **request: Any
    ) -> httpx.Response | None:
        """Ask, and note it; None when there was no whole answer."""
        op = self._history.invoke(self.name, kind, method=method, path=path, **(asked or {}))
        try:
            answer = self._http.request(method, path, **request)
        except httpx.TransportError as error:
            outcome = "fail" if isinstance(error, _NEVER_SENT) else "info"
            self._history.complete(self.name, outcome, op, error=type(error).__name__)
            time.sleep(_AFTER_NO_ANSWER)
            return None
        outcome = "ok" if answer.status_code < 400 else "fail" if answer.status_code < 500 else "info"
        self._history.complete(self.name, outcome, op, **shortened(answer))
        return answer

    def close(self) -> None:
        """Hang up."""
        self._http.close()


def shortened(answer: httpx.Response) -> dict[str, Any]:
    """What is kept of an answer."""
    kept: dict[str, Any] = {"status": answer.status_code, "sha256": hashlib.sha256(answer.content).hexdigest()}
    for name in ("retry-after", "etag", "upload-offset", "repr-digest", "content-range"):
        if name in answer.headers:
            kept[name] = answer.headers[name]
    if not answer.content or "json" not in answer.headers.get("content-type", ""):
        return kept | {"size": len(answer.content)}
    kept["ids"] = sorted(set(IDS.findall(answer.text)))
    body = answer.json()
    if not isinstance(body, dict):
        return kept
    if answer.is_error:
        return kept | {name: body[name] for name in ("code", "job_status") if name in body}
    return kept | _of_body(body, answer)


def _of_body(body: dict[str, Any], answer: httpx.Response) -> dict[str, Any]:
    kept: dict[str, Any] = {"id": body["id"]} if "id" in body else {}
    if body.get("object") == "job":
        version = _VERSION.fullmatch(answer.headers.get("etag", ""))
        kept["jobs"] = [job_of(body) | ({"version": int(version[1])} if version else {})]
    if isinstance(rows := body.get("data"), list):
        kept |= {"next": body.get("next_cursor"), "listed": [row["id"] for row in rows if "id" in row]}
        kept["jobs"] = [job_of(row) for row in rows if row.get("object") == "job"]
        kept["events"] = [[row["id"], row["type"]] for row in rows if "level" in row]
    if "state" in body:
        kept["state"] = body["state"]
    return kept


def job_of(view: dict[str, Any]) -> dict[str, Any]:
    """What is kept of a job."""
    outcomes = [attempt["outcome"] for attempt in view["attempts"]]
    result = view["result"] or {}
    return {
        "id": view["id"],
        "status": view["status"],
        "outcomes": outcomes,
        "key": view["metadata"].get("key"),
        "model_id": result.get("model_id"),
        "error": (view["error"] or {}).get("code"),
    }
