"""Signatures, judged by the library that receivers use."""

import base64
from datetime import timedelta

import pytest
from standardwebhooks import Webhook, WebhookVerificationError

from service.tables import utc_now
from service.webhooks import signing

BODY = '{"type":"job.succeeded","data":{"name":"größer"}}'.encode()


def test_a_secret_is_256_bits_in_the_receivers_form() -> None:
    secret = signing.new_secret()
    assert secret.startswith("whsec_")
    assert len(base64.b64decode(secret.removeprefix("whsec_"), validate=True)) == 32
    assert signing.new_secret() != secret


def test_a_signed_webhook_verifies_and_a_changed_one_does_not() -> None:
    secret = signing.new_secret()
    headers = signing.headers([secret], "evt_1", utc_now(), BODY)
    assert Webhook(secret).verify(BODY, headers) == {"type": "job.succeeded", "data": {"name": "größer"}}
    for body, changed in (
        (BODY + b" ", headers),
        (BODY, headers | {"webhook-id": "evt_2"}),
        (BODY, headers | {"webhook-timestamp": str(int(headers["webhook-timestamp"]) + 1)}),
    ):
        with pytest.raises(WebhookVerificationError):
            Webhook(secret).verify(body, changed)
    with pytest.raises(WebhookVerificationError):
        Webhook(signing.new_secret()).verify(BODY, headers)


@pytest.mark.parametrize("minutes", [-6, 6])
def test_a_webhook_of_another_time_is_refused(minutes: int) -> None:
    secret = signing.new_secret()
    headers = signing.headers([secret], "evt_1", utc_now() + timedelta(minutes=minutes), BODY)
    with pytest.raises(WebhookVerificationError):
        Webhook(secret).verify(BODY, headers)


def test_both_secrets_sign_for_24_hours_after_a_rotation() -> None:
    now = utc_now()
    old, new = signing.new_secret(), signing.new_secret()
    held = signing.rotated(signing.first(old), new, now)
    headers = signing.headers(signing.valid(held, now), "evt_1", now, BODY)
    assert len(headers["webhook-signature"].split()) == 2
    for secret in (old, new):
        assert Webhook(secret).verify(BODY, headers)
    assert signing.valid(held, now + timedelta(hours=23, minutes=59)) == [new, old]
    assert signing.valid(held, now + timedelta(hours=24)) == [new]


def test_a_second_rotation_cuts_the_first_ones_day_not_short() -> None:
    now = utc_now()
    first, second, third = (signing.new_secret() for _ in range(3))
    held = signing.rotated(signing.first(first), second, now)
    held = signing.rotated(held, third, now + timedelta(hours=1))
    assert signing.valid(held, now + timedelta(hours=2)) == [third, second, first]
    assert signing.valid(held, now + timedelta(hours=24)) == [third, second]
    held = signing.rotated(held, signing.new_secret(), now + timedelta(hours=30))
    assert first not in str(held), "what signs no more is forgotten"
