"""Secrets and signatures: `v1` of Standard Webhooks 1.0.0, HMAC-SHA256 over id, time and body.

A secret is stored as it is: the service must sign with it. A key to encrypt it would lie beside the database's
password in the same environment, so encryption would guard against a stolen copy of the database alone, which holds
all that webhooks tell anyway; what the thief gains is to forge them until the secret is rotated. It is shown when it
is made, and never in a list or a log.
"""

import base64
import hashlib
import hmac
import secrets
from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from typing import Any

OLD_VALID = timedelta(hours=24)
PREFIX = "whsec_"
_SECRET_BYTES = 32
_AT_ONCE = 5
"""Secrets that one webhook is signed with at most, so that its headers stay short."""


def new_secret() -> str:
    """A fresh secret of 256 bits of chance, as receivers' libraries take it."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_SECRET_BYTES)).decode()


def first(secret: str) -> list[dict[str, Any]]:
    """What an endpoint's column `secrets` starts with."""
    return [{"secret": secret, "until": None}]


def rotated(held: Sequence[dict[str, Any]], secret: str, now: datetime) -> list[dict[str, Any]]:
    """The secrets of an endpoint, newest first, with one more; those before it go on for 24 hours."""
    until = (now + OLD_VALID).isoformat()
    older = [{**one, "until": one["until"] or until} for one in held if _lives(one, now)]
    return [*first(secret), *older][:_AT_ONCE]


def valid(held: Sequence[dict[str, Any]], now: datetime) -> list[str]:
    """The secrets to sign with, newest first."""
    return [one["secret"] for one in held if _lives(one, now)]


def _lives(one: dict[str, Any], now: datetime) -> bool:
    return one["until"] is None or datetime.fromisoformat(one["until"]) > now


def headers(keys: Iterable[str], webhook_id: str, sent_at: datetime, body: bytes) -> dict[str, str]:
    """The three headers of one send: its id, its time in seconds since 1970, a signature for each secret."""
    time = str(int(sent_at.timestamp()))
    signed = b".".join((webhook_id.encode(), time.encode(), body))
    return {
        "webhook-id": webhook_id,
        "webhook-timestamp": time,
        "webhook-signature": " ".join(_signature(key, signed) for key in keys),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(PREFIX))
    return f"v1,{base64.b64encode(hmac.new(key, signed, hashlib.sha256).digest()).decode()}"
