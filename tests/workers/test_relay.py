"""Report lines: what is taken, what is refused, what survives a database that is away."""

import json
from typing import Any

import pytest

from workers.relay import LONGEST_LINE, MAX_EVENTS, Lines, Relay, parse


def line(**fields: Any) -> bytes:
    """A report line."""
    return json.dumps(fields).encode()


@pytest.mark.parametrize(
    "raw",
    [
        b"",
        b"\xff",
        b"[]",
        b'{"type": "phase"}',
        b'{"type": "phase", "phase": "dreaming"}',
        b'{"type": "unheard-of"}',
        b'{"type": "metric", "name": "loss", "step": 1, "value": NaN}',
        b'{"type": "metric", "name": "loss", "step": 1, "value": 1e999}',
        b'{"type": "metric", "name": "loss", "step": -1, "value": 1}',
        b'{"type": "metric", "name": "loss", "step": 9007199254740993, "value": 1}',
        b'{"type": "metric", "name": "loss", "step": "1", "value": 1}',
        b'{"type": "metric", "name": "Lo ss", "step": 1, "value": 1}',
        b'{"type": "progress", "fraction": 1.5, "step": 1, "total_steps": 2, "seconds_remaining": null}',
        b'{"type": "error", "code": "lower", "message": "m", "blame": "user", "retryable": false}',
        b'{"type": "error", "code": "OK", "message": "m", "blame": "nobody", "retryable": false}',
        b'{"type": "event", "event": "job.succeeded", "level": "info", "message": "m", "data": {}}',
        b'{"type": "event", "event": "e", "level": "info", "message": "m", "data": {"a": "\\u0000"}}',
        b'{"type": "event", "event": "e", "level": "info", "message": "m", "data": {"a": "\\ud800"}}',
        b'{"type": "event", "event": "e", "level": "info", "message": "m", "data": ' + b"[" * 60_000 + b"}",
        b'{"type": "event", "event": "e", "level": "info", "message": "m", "data": {"a": ' + b"1" * 5000 + b"}}",
    ],
)
def test_a_malformed_line_is_counted_and_changes_nothing(raw: bytes) -> None:
    assert parse(raw) is None
    relay = Relay()
    relay.feed(raw)
    assert relay.malformed == 1
    pending = relay.take()
    assert not (pending.visible or pending.events or pending.points or relay.error)


def test_the_latest_of_everything_is_pending() -> None:
    relay = Relay()
    for step in (1, 2):
        relay.feed(line(type="phase", phase=("loading", "pruning")[step - 1]))
        relay.feed(line(type="progress", fraction=step / 4, step=step, total_steps=4, seconds_remaining=None))
        relay.feed(line(type="metric", name="finetuning/loss", step=7, value=float(step)))
        relay.feed(line(type="warning", code=f"CODE_{step}", message="m"))
        relay.feed(line(type="error", code=f"CODE_{step}", message="m", blame="user", retryable=False))
    pending = relay.take()
    assert pending.visible == {
        "phase": "pruning",
        "progress": {"fraction": 0.5, "step": 2, "total_steps": 4, "seconds_remaining": None},
        "warnings": [{"code": "CODE_1", "message": "m"}, {"code": "CODE_2", "message": "m"}],
    }
    assert pending.points == {("finetuning/loss", 7): 2.0}
    assert relay.error is not None and relay.error.code == "CODE_1"
    assert relay.take().visible == {}


def test_what_is_put_back_yields_to_what_is_newer() -> None:
    relay = Relay()
    relay.feed(line(type="phase", phase="loading"))
    relay.feed(line(type="metric", name="a", step=1, value=1.0))
    relay.feed(line(type="event", event="first", level="info", message="m"))
    old = relay.take()
    relay.feed(line(type="phase", phase="pruning"))
    relay.feed(line(type="metric", name="a", step=2, value=2.0))
    relay.feed(line(type="event", event="second", level="info", message="m"))
    relay.put_back(old)
    pending = relay.take()
    assert pending.visible == {"phase": "pruning"}
    assert pending.points == {("a", 1): 1.0, ("a", 2): 2.0}
    assert [event.event for event in pending.events] == ["first", "second"]


def test_messages_are_cut_and_cleaned() -> None:
    relay = Relay()
    relay.feed(line(type="warning", code="LONG", message="a\x1b[31m" + "b" * 5000))
    (warning,) = relay.take().visible["warnings"]
    assert warning["message"].startswith("a [31mb") and len(warning["message"]) == 2000


def test_events_are_bounded() -> None:
    relay = Relay()
    for _ in range(MAX_EVENTS + 5):
        relay.feed(line(type="event", event="again", level="info", message="m"))
    assert len(relay.take().events) == MAX_EVENTS


@pytest.mark.parametrize("piece", [1, 7, 1 << 20])
def test_lines_are_split_wherever_the_pieces_end(piece: int) -> None:
    taken: list[bytes] = []
    lines = Lines(taken.append)
    data = b"one\n\n" + b"x" * LONGEST_LINE + b"\n" + b"y" * (LONGEST_LINE + 1) + b"\nlast\nunfinished"
    for start in range(0, len(data), piece):
        lines.feed(data[start : start + piece])
    assert taken == [b"one", b"", b"x" * LONGEST_LINE, b"last"]
    assert lines.too_long == 1


def test_an_endless_line_is_not_kept() -> None:
    lines = Lines(lambda _: None)
    for _ in range(100):
        lines.feed(b"x" * LONGEST_LINE)
    assert len(lines._rest) <= LONGEST_LINE
    assert lines.too_long == 1
