"""Logs: one line per record on stderr, as text or as a JSON object, without keys or passwords."""

import json
import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any, Literal, TypeAlias

LogFormat: TypeAlias = Literal["text", "json"]

ACCESS = "service.access"
"""Logger of one line per request; in text it is left to uvicorn's own."""

_about: ContextVar[dict[str, Any] | None] = ContextVar("secateur_log_context", default=None)
_SECRETS = (
    (re.compile(r"sct_([0-9A-Z]{26})_[0-9a-f_]+"), r"sct_\1_…"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)\s+)[^\s'\"]+"), r"\1…"),
    (re.compile(r"whsec_[A-Za-z0-9+/]+=*"), "whsec_…"),
    (re.compile(r"(\w://[^/\s:@]*):[^@\s/]+@"), r"\1:…@"),
    (re.compile(r'("[A-Z-]+ [^"?\s]*\?)[^"\s]*(?= HTTP/)'), r"\1…"),  # uvicorn's lines
)


@contextmanager
def about(**facts: Any) -> Iterator[None]:
    """Records of the block say what they are about: `request_id`, `tenant`, `job_id`, `attempt`."""
    token = _about.set({**(_about.get() or {}), **facts})
    try:
        yield
    finally:
        _about.reset(token)


def note(**facts: Any) -> None:
    """Add to what the innermost `about` says, also when a thread of its block has learned it."""
    known = _about.get()
    if known is not None:  # changed in place: a thread has a copy of the variable, but of the same dict
        known.update(facts)


def redact(text: str) -> str:
    """`text` without API keys, secrets of webhooks, Authorization values, passwords of URLs and queries of requests."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Redacts the finished line, so that messages, arguments and tracebacks are all covered."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        return redact(super().format(record))


class JsonFormatter(logging.Formatter):
    """One JSON object per record: time, level, logger, message, what it is about, and the exception if there is one.

    Each value is redacted before it is quoted, so that no redaction can break the quoting.
    """

    def format(self, record: logging.LogRecord) -> str:
        """One record as a line of JSON."""
        line: dict[str, Any] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
            "logger": record.name,
            "message": record.getMessage(),
            **(_about.get() or {}),
            **getattr(record, "fields", {}),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        safe = {name: redact(value) if isinstance(value, str) else value for name, value in line.items()}
        return json.dumps(safe, ensure_ascii=False, default=lambda value: redact(str(value)))


def access(fields: dict[str, Any]) -> None:
    """Tell of one answered request: `method`, `route` (a template), `status` and `ms` among its fields."""
    message = f"{fields['method']} {fields['route']} {fields['status']}"
    logging.getLogger(ACCESS).info(message, extra={"fields": fields})


def configuration(level: str, log_format: LogFormat = "text") -> dict[str, Any]:
    """For `logging.config.dictConfig` and uvicorn's `log_config`."""
    silent = ACCESS if log_format == "text" else "uvicorn.access"
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "text": {"()": RedactingFormatter, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
            "json": {"()": JsonFormatter},
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": log_format}},
        "loggers": {
            "httpcore": {"level": "INFO"},  # below that it tells the headers of webhooks
            silent: {"level": "WARNING"},
        },
        "root": {"handlers": ["stderr"], "level": level.upper()},
    }
