"""What clients do, one thread each: every step of the plan, about whatever is there when its time comes."""

import base64
import hashlib
import threading
import time
from collections.abc import Callable
from math import inf
from typing import Any

import httpx

from tests import uploads
from tests.nemesis import orders
from tests.nemesis.book import Book, Made, chosen
from tests.nemesis.caller import Caller
from tests.nemesis.plan import Step, steps

CHUNK = 64 << 10
PIECE = 1 << 10
MOST_UNFINISHED = 4
MAKES = {"submit", "clone", "retry", "resume", "push_model", "push_dataset"}
_TRIES = 4
_TWICE = 0.7
_TUS = {"Tus-Resumable": "1.0.0", "Content-Type": "application/offset+octet-stream"}


class Client(threading.Thread):
    """One client: `stop` ends it after its step, `idle` keeps it from ordering anything new."""

    def __init__(
        self, seed: int, caller: Caller, book: Book, others: Book, *, trained_share: float, hooks: str
    ) -> None:
        super().__init__(name=caller.name, daemon=True)
        self._caller, self._book, self._others, self._hooks = caller, book, others, hooks
        self._steps, self._trained_share = steps(seed, caller.name), trained_share
        self._count = 0
        self.stop, self.idle = threading.Event(), threading.Event()
        self._fault: Exception | None = None

    def run(self) -> None:
        """Take step after step."""
        try:
            while not self.stop.is_set():
                step = next(self._steps)
                time.sleep(step.pause)
                self._take(step)
        except Exception as fault:
            self._fault = fault
        finally:
            self._caller.close()

    def check(self) -> None:
        """Raises what ended the client before its time."""
        if self._fault is not None:
            raise self._fault

    def _take(self, step: Step) -> None:
        busy = self._book.unfinished() >= MOST_UNFINISHED
        kind = "read" if step.kind in MAKES and (self.idle.is_set() or busy) else step.kind
        self._count += 1
        does: Callable[[Step], None] = getattr(self, f"_{kind}")
        does(step)

    def _call(self, kind: str, method: str, path: str, asked: dict[str, Any] | None = None, **request: Any) -> Any:
        answer = self._caller.call(kind, method, path, asked, **request)
        if answer is not None and answer.is_success and answer.content and _is_json(answer):
            body = answer.json()
            views = [body] if body.get("object") == "job" else body.get("data") or []
            self._book.saw([view for view in views if isinstance(view, dict) and view.get("object") == "job"])
        return answer

    # Orders

    def _new_name(self) -> str:
        return f"{self._caller.name}-{self._count}"

    def _submit(self, step: Step) -> None:
        book = self._book
        model_id = (chosen(book.models, step.pick) if step.pick < 0.3 else None) or book.model_id
        order = orders.spec(step.way, model_id=model_id, dataset_id=book.dataset_id, trained_share=self._trained_share)
        if "dataset_id" in order:  # only the first model has the data set's words
            order["model_id"] = book.model_id
        elif step.pick > 0.7:
            order["webhook_url"] = f"{self._hooks}/{book.tenant}/job"
        key = self._new_name()
        order["metadata"] = {"key": key}
        self._order(Made(key, "/v1/jobs", {"json": order}))

    def _order(self, made: Made) -> None:
        """Send an order under its key until it is answered; sometimes that takes longer than patience lasts."""
        self._book.ordered(made)
        for _ in range(_TRIES):
            if self._send(made):
                return

    def _send(self, made: Made) -> bool:
        answer = self._call(
            "order", "POST", made.path, {"key": made.key}, headers={"Idempotency-Key": made.key}, **made.content
        )
        if answer is not None and answer.is_success:
            made.id = answer.json()["id"]
        elif answer is not None and answer.status_code < 500 and answer.json()["code"] != "IDEMPOTENCY_IN_FLIGHT":
            made.status = "deleted"  # refused: it is not there
        else:
            return False
        return True

    def _repeat(self, step: Step) -> None:
        made = chosen([made for made in self._book.orders if made.id or step.way < 0.5], step.pick)
        if made is None:
            return
        if step.way < 0.8:
            self._call(
                "order", "POST", made.path, {"key": made.key}, headers={"Idempotency-Key": made.key}, **made.content
            )
        elif made.id is not None and "json" in made.content:
            other = {"json": made.content["json"] | {"seed": 7}}
            self._call(
                "reuse key", "POST", made.path, {"key": made.key}, headers={"Idempotency-Key": made.key}, **other
            )

    def _clone(self, step: Step) -> None:
        origin, key = chosen(self._book.jobs(), step.pick), self._new_name()
        if origin is not None:
            changes = {"json": {"metadata": {"key": key}, "webhook_url": None}}
            self._order(Made(key, f"/v1/jobs/{origin.id}/clone", changes))

    # Jobs

    def _about(self, kind: str, step: Step, *statuses: str, method: str = "POST", **request: Any) -> Any:
        # Now and then of a job that is in no such state, as far as is known: that must do no harm either.
        job = chosen(self._book.jobs(*(statuses if step.way > 0.2 else ())), step.pick)
        if job is None:
            return None
        path = f"/v1/jobs/{job.id}" + (f"/{kind}" if method == "POST" else "")
        return self._call(kind, method, path, {"job": job.id}, **request)

    def _read(self, step: Step) -> None:
        job = chosen(self._book.jobs(), step.pick)
        if job is not None:
            self._call("read", "GET", f"/v1/jobs/{job.id}", {"job": job.id})

    def _wait(self, step: Step) -> None:
        job = chosen(self._book.jobs("queued", "running", "pausing", "cancelling"), step.pick)
        if job is not None:
            self._call("read", "GET", f"/v1/jobs/{job.id}", {"job": job.id}, headers={"Prefer": "wait=2"})

    def _cancel(self, step: Step) -> None:
        self._about("cancel", step, "queued", "running", "paused")

    def _pause(self, step: Step) -> None:
        self._about("pause", step, "queued", "running")

    def _resume(self, step: Step) -> None:
        self._about("resume", step, "paused", "pausing")

    def _retry(self, step: Step) -> None:
        start = {"from": "start"} if step.pick > 0.8 else {}
        self._about("retry", step, "failed", "cancelled", json=start)

    def _delete_job(self, step: Step) -> None:
        job = chosen(self._book.jobs("failed", "cancelled", "succeeded", "rejected"), step.pick)
        if job is None:
            return
        answer = self._call("delete job", "DELETE", f"/v1/jobs/{job.id}", {"job": job.id})
        if answer is None or answer.is_success or answer.status_code >= 500:
            job.status = "deleted"  # or perhaps: nothing more is asked of it

    def _list(self, step: Step) -> None:
        below: str | None = None
        for _ in range(1 + int(step.pick * 3)):
            query: dict[str, Any] = {"limit": 40} | ({"cursor": below} if below else {})
            answer = self._call("list", "GET", "/v1/jobs", {"below": below}, params=query)
            below = answer.json()["next_cursor"] if answer is not None and answer.is_success else None
            if below is None:
                return

    def _events(self, step: Step) -> None:
        job = chosen(self._book.jobs(), step.pick)
        if job is not None:
            self._call("events", "GET", f"/v1/jobs/{job.id}/events", {"job": job.id}, params={"limit": 100})

    def _artifacts(self, step: Step) -> None:
        job = chosen(self._book.jobs("succeeded", "rejected"), step.pick)
        if job is None:
            return
        answer = self._call("artifacts", "GET", f"/v1/jobs/{job.id}/artifacts", {"job": job.id})
        if answer is not None and answer.is_success:
            self._book.artifacts += [row["id"] for row in answer.json()["data"]]

    def _download(self, step: Step) -> None:
        job, artifact = (
            chosen(self._book.jobs("succeeded", "rejected"), step.pick),
            chosen(self._book.artifacts, step.pick),
        )
        model = chosen(self._book.models, step.pick)
        if step.way < 0.5 and job is not None:
            self._call("download", "GET", f"/v1/jobs/{job.id}/model", {"job": job.id})
        elif step.way < 0.8 and artifact is not None:
            self._call("download", "GET", f"/v1/artifacts/{artifact}/content", {"artifact": artifact})
        elif model is not None:
            self._call("download", "GET", f"/v1/models/{model}/archive", {"model": model})

    # Uploads

    def _push_model(self, step: Step) -> None:
        name = self._new_name()
        files = orders.model_files(name)
        if step.way < 0.3:
            body = {"content": uploads.tar(files), "headers": {"Content-Type": "application/x-tar"}}
            for known in (self._book.models, None)[: 1 + (step.pick > _TWICE)]:
                self._upload("order", f"/v1/models?name={name.replace('/', '-')}", name, body, known)
            return
        body = {"json": orders.manifest(name, files)}
        answer = self._upload("order", "/v1/models", name, body, None)
        if answer is not None:
            shown = answer.json()
            sent = all(self._push_file(files[upload["path"]], upload, step) for upload in shown["uploads"])
            if sent and self._complete(shown["id"]):
                self._book.models.append(shown["id"])

    def _upload(
        self, kind: str, path: str, name: str, request: dict[str, Any], known: list[str] | None
    ) -> httpx.Response | None:
        sent = request | {"headers": {**request.get("headers", {}), "Idempotency-Key": name}}
        for _ in range(_TRIES):
            answer: httpx.Response | None = self._call(kind, "POST", path, {"key": name}, **sent)
            if answer is not None and answer.is_success:
                if known is not None:
                    known.append(answer.json()["id"])
                return answer
        return None

    def _push_file(self, content: bytes, upload: dict[str, Any], step: Step) -> bool:
        path, offset = "/v1/uploads/" + upload["upload_url"].rpartition("/")[2], upload["offset"]
        for _ in range(len(content) // CHUNK + 2 * _TRIES):
            if offset >= len(content):
                return True
            chunk = content[offset : offset + CHUNK]
            headers = {**_TUS, "Upload-Offset": str(offset)}
            if step.pick < 0.7:
                digest = base64.b64encode(hashlib.sha256(chunk).digest()).decode()
                headers["Upload-Checksum"] = f"sha256 {digest}"
            asked = {"upload": path, "offset": offset, "length": len(chunk)}
            answer = self._call("chunk", "PATCH", path, asked, headers=headers, content=chunk)
            offset = self._reached(path, answer)
        return False

    def _reached(self, path: str, answer: httpx.Response | None) -> float:
        """Where to go on; infinite when the upload is no more."""
        while answer is None or not answer.is_success:
            if self.stop.is_set() or (answer is not None and answer.status_code == 404):
                return inf
            answer = self._call("offset", "HEAD", path, {"upload": path}, headers={"Tus-Resumable": "1.0.0"})
        return int(answer.headers["Upload-Offset"])

    def _complete(self, model_id: str) -> bool:
        for _ in range(_TRIES):
            answer = self._call("complete", "POST", f"/v1/models/{model_id}/complete", {"model": model_id})
            if answer is not None and answer.status_code < 500:
                return bool(answer.is_success)
        return False

    def _push_dataset(self, step: Step) -> None:
        """Send one in pieces whose number is not told beforehand, sometimes twice."""
        name = self._new_name()
        content, kind = orders.dataset(name)
        path = f"/v1/datasets?name={name.replace('/', '-')}&task=text-classification"
        pieces = [content[start : start + PIECE] for start in range(0, len(content), PIECE)]
        for known in (self._book.datasets, None)[: 1 + (step.pick > _TWICE)]:
            self._upload("order", path, name, {"content": pieces, "headers": {"Content-Type": kind}}, known)

    def _delete_model(self, step: Step) -> None:
        self._drop("model", self._book.models, step)

    def _delete_dataset(self, step: Step) -> None:
        self._drop("dataset", self._book.datasets, step)

    def _drop(self, what: str, known: list[str], step: Step) -> None:
        id_ = chosen(known, step.pick)
        if id_ is not None:
            answer = self._call(f"delete {what}", "DELETE", f"/v1/{what}s/{id_}", {what: id_})
            if (answer is None or answer.status_code != 409) and id_ in known:
                known.remove(id_)

    # Others

    def _deliveries(self, step: Step) -> None:
        endpoint = chosen(self._book.endpoints, step.pick)
        if endpoint is not None:
            self._call("deliveries", "GET", f"/v1/webhook_endpoints/{endpoint}/deliveries", params={"limit": 100})

    def _stranger(self, step: Step) -> None:
        """Ask for what is another tenant's."""
        job, artifact = chosen(self._others.jobs(), step.pick), chosen(self._others.artifacts, step.pick)
        paths = [f"/v1/models/{self._others.model_id}", f"/v1/models/{self._others.model_id}/archive"]
        paths += [f"/v1/jobs/{job.id}{end}" for end in ("", "/events", "/model", "/artifacts")] if job else []
        paths += [f"/v1/artifacts/{artifact}/content"] if artifact else []
        if step.pick > 0.8 and job is not None:
            self._call("stranger", "POST", f"/v1/jobs/{job.id}/cancel")
        else:
            self._call("stranger", "GET", paths[int(step.way * len(paths))])


def _is_json(answer: httpx.Response) -> bool:
    return "json" in answer.headers.get("content-type", "")
