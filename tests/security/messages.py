"""Hostile messages for the broker, made by hand as somebody who can write to it would."""

import base64
import json
import pickle
from pathlib import Path
from typing import Any
from uuid import uuid4

from service.broker import ENTRY, QUEUE
from tests.security.corpus import Evil

RING = [["job_A"], {}, {"callbacks": None, "errbacks": None, "chain": None, "chord": None}]


def message(body: bytes, kind: str = "application/json", task: str = ENTRY, **headers: Any) -> bytes:
    """A message as Celery sends it over Redis."""
    number = str(uuid4())
    told = {"lang": "py", "task": task, "id": number, "root_id": number, "parent_id": None, "group": None, **headers}
    route = {"exchange": "", "routing_key": QUEUE}
    carried = {"delivery_mode": 2, "delivery_info": route, "priority": 0, "body_encoding": "base64"}
    return json.dumps(
        {
            "body": base64.b64encode(body).decode(),
            "content-encoding": "utf-8" if kind == "application/json" else "binary",
            "content-type": kind,
            "headers": told,
            "properties": {"correlation_id": number, "delivery_tag": str(uuid4()), **carried},
        }
    ).encode()


def ring(*arguments: Any, **headers: Any) -> bytes:
    """A ring with these arguments in place of a job's id."""
    return message(json.dumps([arguments, {}, RING[2]]).encode(), **headers)


def hostile(marker: Path) -> dict[str, bytes]:
    """Messages by name; `marker` is a file that none of them may make."""
    command = f"touch {marker}"
    chained: dict[str, Any] = {
        "task": "os.system",
        "args": [command],
        "kwargs": {},
        "options": {},
        "subtask_type": None,
    }
    return {
        "a pickle": message(pickle.dumps(Evil(marker)), "application/x-python-serialize"),
        "a pickle that calls itself JSON": message(pickle.dumps(Evil(marker))),
        "YAML": message(b"!!python/object/apply:os.system ['id']", "application/x-yaml"),
        "a function of Python's": ring(command, task="os.system"),
        "a task that Celery brings": ring(chained, [[command]], task="celery.map"),
        "a path for an id": ring("../../../etc/passwd"),
        "an order for an id": ring({"model_id": "x", "pruning": {"cuts": []}, "command": command}),
        "too many arguments": ring("job_A", command, 3),
        "an unknown job": ring("job_" + "0" * 26),
        "a job that says how to go on": message(json.dumps([["job_A"], {}, {"chain": [chained]}]).encode()),
        "no body": message(b""),
        "a body that is none": message(b"\xff\xfe"),
        "a packed body that is none": message(b"\xff", compression="application/x-gzip"),
        "no time left": ring("job_A", timelimit=[0.1, None]),
        "a time that is none": ring("job_A", expires="tomorrow", eta="yesterday"),
        "not JSON": b"\xff\x00",
        "an array": b"[]",
        "nothing in it": b"{}",
        "headers that are none": b'{"headers": 3}',
    }
