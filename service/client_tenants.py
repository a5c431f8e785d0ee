"""What the client says to the API about the key's tenant, as `service.client_calls` does about the rest."""

from service.client_calls import Flow, Json, _get, _pages


def show_tenant() -> Flow[Json]:
    """The limits in force for the key's tenant, and what it uses now."""
    return (yield from _get("/v1/tenant"))


def list_audit(
    *,
    action: str | None = None,
    target: str | None = None,
    key_id: str | None = None,
    created_after: str | None = None,
    created_before: str | None = None,
    limit: int | None = 20,
) -> Flow[list[Json]]:
    """What keys of the tenant have changed, newest first; times as RFC 3339 has them. Needs the scope `admin`."""
    filters = {
        "action": action,
        "target": target,
        "key_id": key_id,
        "created_after": created_after,
        "created_before": created_before,
    }
    return (yield from _pages("/v1/audit", limit, filters))
