"""What is told of an engine that died."""

import signal

import pytest

from workers.deaths import death_of, no_sandbox, no_space
from workers.relay import Relay

RUST = "memory allocation of 1099511627776 bytes failed"
CPP = "terminate called after throwing an instance of 'std::bad_alloc'"


@pytest.mark.parametrize(
    ("code", "said", "told", "blame", "retryable"),
    [
        (-signal.SIGXCPU, "", "TIMEOUT", "user", False),
        (-signal.SIGXFSZ, "", "NO_SPACE", "transient", True),
        (-signal.SIGABRT, RUST, "OUT_OF_MEMORY", "user", False),
        (-signal.SIGABRT, CPP, "OUT_OF_MEMORY", "user", False),
        (-signal.SIGABRT, "assertion failed", "ENGINE_CRASHED", "service", True),
        (-signal.SIGSEGV, RUST, "ENGINE_CRASHED", "service", True),
        (-signal.SIGKILL, "", "ENGINE_KILLED", "transient", True),
        (75, "", "ENGINE_STOPPED", "transient", True),
        (3, "", "ENGINE_ERROR", "service", False),
    ],
)
def test_each_death_has_its_code(code: int, said: str, told: str, blame: str, retryable: bool) -> None:
    failure = death_of(code, Relay(), said, 2 << 30)
    assert (failure.code, failure.blame, failure.retryable) == (told, blame, retryable)
    assert ("2048 MiB" in str(failure)) is (told == "OUT_OF_MEMORY")


def test_the_engines_own_words_come_first() -> None:
    relay = Relay()
    relay.feed(
        b'{"type": "error", "code": "NOT_FINITE", "message": "loss is NaN", "blame": "user", "retryable": false}'
    )
    failure = death_of(-signal.SIGABRT, relay, RUST, 2 << 30)
    assert (failure.code, str(failure), failure.blame) == ("NOT_FINITE", "loss is NaN", "user")


def test_what_is_the_machines_fault_is_tried_again() -> None:
    assert (no_space().code, no_space().retryable) == ("NO_SPACE", True)
    assert (no_sandbox().code, no_sandbox().retryable) == ("SANDBOX_ERROR", True)
