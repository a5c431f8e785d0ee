"""Fixtures: a receiver under a name that only these tests resolve, and settings that make retries fast."""

from collections.abc import Iterator

import pytest

from service.config import Settings
from service.db import Database
from service.ids import new_id
from service.tables import WebhookEndpoint
from service.webhooks import signing
from service.webhooks.addresses import Addresses, NameUnknown
from service.webhooks.outbox import EVENTS
from service.webhooks.sender import Sender
from tests.service.samples import TENANT, store
from tests.service.webhooks.receiver import Receiver, receiver

SECRET = signing.new_secret()


@pytest.fixture
def receiving() -> Iterator[Receiver]:
    """A receiver that listens."""
    with receiver() as listening:
        yield listening


@pytest.fixture
def quick(settings: Settings) -> Settings:
    """Settings whose webhooks come at once and are tried again soon."""
    return settings.model_copy(
        update={"webhook_seconds": 0.05, "webhook_timeout_seconds": 0.6, "webhook_retry_seconds": [0.05] * 9}
    )


def at_loopback(host: str, port: int) -> list[str]:
    """A resolver to which every name of `example` is this machine."""
    if not host.endswith(".example"):
        raise NameUnknown
    return ["127.0.0.1"]


@pytest.fixture
def addresses() -> Addresses:
    """The check of an on-premises network."""
    return Addresses(allow_private=True, look_up=at_loopback)


@pytest.fixture
def sender(quick: Settings, database: Database, addresses: Addresses) -> Iterator[Sender]:
    """A sender that runs."""
    running = Sender(quick, database, addresses)
    running.start()
    yield running
    running.stop()


def an_endpoint(database: Database, url: str | None, **changes: object) -> WebhookEndpoint:
    """A stored endpoint for every event, signed with `SECRET`."""
    values = {
        "id": new_id("whe"),
        "tenant": TENANT,
        "url": url,
        "events": list(EVENTS),
        "secrets": signing.first(SECRET),
    }
    return store(database, WebhookEndpoint(**{**values, **changes}))
