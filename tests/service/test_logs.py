"""No secret reaches a log line."""

import io
import logging
import logging.config

import pytest

from service.auth import new_plaintext
from service.logs import RedactingFormatter, configuration, redact


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("postgresql://user:hunter2@db/x", "postgresql://user:…@db/x"),
        ("redis://:hunter2@host:6379/0", "redis://:…@host:6379/0"),
        ("{'authorization': 'Bearer hunter2'}", "{'authorization': 'Bearer …'}"),
        ("Authorization: Basic aHVudGVyMg==", "Authorization: Basic …"),
        ("signed with whsec_aGVsbG8+d29ybGQ/aGVsbG8=.", "signed with whsec_…."),
        ("http://127.0.0.1:8400/v1/jobs took 3:4 s", "http://127.0.0.1:8400/v1/jobs took 3:4 s"),
    ],
)
def test_secrets_are_cut_out(text: str, shown: str) -> None:
    assert redact(text) == shown


def test_tracebacks_and_arguments_are_covered() -> None:
    key, stream = new_plaintext(), io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(RedactingFormatter("%(message)s"))
    logger = logging.Logger("test")
    logger.addHandler(handler)
    try:
        raise ValueError(f"bad key {key}")
    except ValueError:
        logger.exception("while reading %s", key)
    secret = key.split("_")[2]
    assert secret not in stream.getvalue()
    assert key.split("_")[1] in stream.getvalue(), "the public part tells which key it was"
    assert "Traceback" in stream.getvalue()


def test_the_configuration_is_one_that_logging_takes() -> None:
    root = logging.getLogger()
    before, level = list(root.handlers), root.level
    try:
        logging.config.dictConfig(configuration("warning"))
        assert isinstance(root.handlers[0].formatter, RedactingFormatter)
        assert root.level == logging.WARNING
    finally:
        root.handlers[:] = before
        root.setLevel(level)
