"""Logs of the API: one line per record on stderr, without keys or passwords."""

import logging
import re
from typing import Any

_SECRETS = (
    (re.compile(r"sct_([0-9A-Z]{26})_[0-9a-f_]+"), r"sct_\1_…"),
    (re.compile(r"(?i)(authorization['\"]?\s*[:=]\s*['\"]?(?:bearer|basic)\s+)[^\s'\"]+"), r"\1…"),
    (re.compile(r"whsec_[A-Za-z0-9+/]+=*"), "whsec_…"),
    (re.compile(r"(\w://[^/\s:@]*):[^@\s/]+@"), r"\1:…@"),
)


def redact(text: str) -> str:
    """`text` without API keys, secrets of webhooks, Authorization values and the passwords of URLs."""
    for pattern, replacement in _SECRETS:
        text = pattern.sub(replacement, text)
    return text


class RedactingFormatter(logging.Formatter):
    """Redacts the finished line, so that messages, arguments and tracebacks are all covered."""

    def format(self, record: logging.LogRecord) -> str:
        """One record as text."""
        return redact(super().format(record))


def configuration(level: str) -> dict[str, Any]:
    """For `logging.config.dictConfig` and uvicorn's `log_config`."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {
            "line": {"()": RedactingFormatter, "format": "%(asctime)s %(levelname)s %(name)s: %(message)s"},
        },
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "line"}},
        "loggers": {"httpcore": {"level": "INFO"}},  # below that it tells the headers of webhooks
        "root": {"handlers": ["stderr"], "level": level.upper()},
    }
