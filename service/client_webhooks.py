"""What the client says to the API about webhooks, as `service.client_calls` does about the rest."""

from service.client_calls import Flow, Json, _delete, _fresh_key, _get, _pages, _patch, _post

ENDPOINTS = "/v1/webhook_endpoints"


def create_webhook(url: str | None, *, events: list[str] | None = None, description: str = "") -> Flow[Json]:
    """Make a webhook endpoint, None for that of the jobs' own `webhook_url`; the only answer that shows its secret.

    Raises `Conflict` (IDEMPOTENCY_SECRET_NOT_KEPT) when it was made, but the answer lost: rotate its secret.
    """
    payload: Json = {"url": url, "description": description}
    if events is not None:
        payload["events"] = events
    return (yield from _post(ENDPOINTS, payload, key=_fresh_key()))


def list_webhooks(*, limit: int | None = 20) -> Flow[list[Json]]:
    """Webhook endpoints, newest first, without their secrets."""
    return (yield from _pages(ENDPOINTS, limit, {}))


def show_webhook(endpoint_id: str) -> Flow[Json]:
    """One webhook endpoint."""
    return (yield from _get(f"{ENDPOINTS}/{endpoint_id}"))


def update_webhook(
    endpoint_id: str,
    *,
    url: str | None = None,
    events: list[str] | None = None,
    description: str | None = None,
    enabled: bool | None = None,
) -> Flow[Json]:
    """Change a webhook endpoint; what is None stays as it is."""
    given = {"url": url, "events": events, "description": description, "enabled": enabled}
    changes = {name: value for name, value in given.items() if value is not None}
    return (yield from _patch(f"{ENDPOINTS}/{endpoint_id}", changes))


def delete_webhook(endpoint_id: str) -> Flow[None]:
    """Delete a webhook endpoint with its deliveries."""
    yield from _delete(f"{ENDPOINTS}/{endpoint_id}")


def test_webhook(endpoint_id: str) -> Flow[Json]:
    """Queue a `webhook.test`; returns its delivery, `pending`."""
    return (yield from _post(f"{ENDPOINTS}/{endpoint_id}/test", key=_fresh_key()))


def rotate_webhook_secret(endpoint_id: str) -> Flow[Json]:
    """Replace the secret; the old one goes on for 24 hours. The only answer that shows the new one.

    Raises `Conflict` (IDEMPOTENCY_SECRET_NOT_KEPT) when it was replaced, but the answer lost: rotate once more.
    """
    return (yield from _post(f"{ENDPOINTS}/{endpoint_id}/rotate_secret", key=_fresh_key()))


def webhook_deliveries(endpoint_id: str, *, job_id: str | None = None, limit: int | None = 20) -> Flow[list[Json]]:
    """Deliveries to an endpoint with their attempts, newest first."""
    return (yield from _pages(f"{ENDPOINTS}/{endpoint_id}/deliveries", limit, {"job_id": job_id}))


def redeliver_webhook(endpoint_id: str, delivery_id: str) -> Flow[Json]:
    """Send a delivery once more, now; returns it as it waits."""
    return (yield from _post(f"{ENDPOINTS}/{endpoint_id}/deliveries/{delivery_id}/redeliver"))
