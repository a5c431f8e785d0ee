"""`secateur tenants`: what each may use, directly in the database. `secateur usage` and `secateur audit`: over HTTP."""

from enum import StrEnum
from typing import Annotated, Any

import typer
from sqlalchemy import select

from service import audit
from service.commands.connect import connect
from service.commands.database import opened
from service.commands.show import AsJson, Json, Limit, emit, table
from service.config import get_settings
from service.quotas import TenantLimits, limits_of, usage_of
from service.tables import ApiKey, Tenant, utc_now

app = typer.Typer(no_args_is_help=True, help="Set what a tenant may use, directly in the database.")

Name = Annotated[str, typer.Argument(metavar="NAME", help="The tenant, as `keys create --tenant` names it.")]
Bound = Annotated[int | None, typer.Option(min=0, help="At most so many at a time.")]


class LimitName(StrEnum):
    """The limits that a tenant can have of its own."""

    STORED_BYTES = "stored-bytes"
    QUEUED_JOBS = "queued-jobs"
    RUNNING_JOBS = "running-jobs"
    REQUESTS_PER_MINUTE = "requests-per-minute"


@app.command("set")
def set_(
    name: Name,
    stored_bytes: Bound = None,
    queued_jobs: Bound = None,
    running_jobs: Bound = None,
    requests_per_minute: Annotated[int | None, typer.Option(min=1, help="Of each key.")] = None,
    default: Annotated[
        list[LimitName] | None, typer.Option(help="Go back to the settings' limit; may be repeated.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Give a tenant limits of its own; what is not named stays."""
    given = {
        "stored_bytes": stored_bytes,
        "queued_jobs": queued_jobs,
        "running_jobs": running_jobs,
        "requests_per_minute": requests_per_minute,
    }
    changes = {limit: value for limit, value in given.items() if value is not None}
    dropped = {limit.replace("-", "_") for limit in default or ()}
    if (not changes and not dropped) or changes.keys() & dropped:
        raise typer.BadParameter("name at least one limit, and none twice")
    with opened() as session:
        row = session.get(Tenant, name, with_for_update=True) or Tenant(name=name, limits={})
        row.limits = {limit: value for limit, value in row.limits.items() if limit not in dropped} | changes
        row.updated_at = utc_now()
        session.add(row)
        audit.record(
            session, tenant=name, key_id=audit.COMMAND_LINE, action="tenant.update", target=name[:40], data=row.limits
        )
    show(name, as_json)


@app.command()
def show(name: Name, as_json: AsJson = False) -> None:
    """Show the limits in force for a tenant, and what it uses."""
    with opened(read_only=True) as session:
        limits, usage = limits_of(session, get_settings(), name), usage_of(session, name)
    _show({"name": name, "limits": limits.model_dump(), "usage": usage.model_dump()}, as_json)


@app.command("list")
def list_(as_json: AsJson = False) -> None:
    """List the tenants that have keys or limits of their own."""
    with opened(read_only=True) as session:
        names = sorted({*session.scalars(select(ApiKey.tenant).distinct()), *session.scalars(select(Tenant.name))})
        rows: list[Json] = [{"name": name, **limits_of(session, get_settings(), name).model_dump()} for name in names]
    columns = ("name", *TenantLimits.model_fields)
    emit(rows) if as_json else table(columns, ([row[column] for column in columns] for row in rows))


def usage(as_json: AsJson = False) -> None:
    """Show what the key's tenant may use, and what it uses."""
    with connect() as client:
        tenant = client.show_tenant()
    _show(tenant, as_json)


def _show(tenant: Json, as_json: bool) -> None:
    if as_json:
        emit(tenant)
        return
    limits: dict[str, Any] = tenant["limits"]
    rows = ((name, tenant["usage"].get(name), "none" if most is None else most) for name, most in limits.items())
    table(("", "used", "limit"), rows, title=tenant["name"])


def audit_log(
    action: Annotated[str | None, typer.Option(help="Only this one, as job.cancel.")] = None,
    target: Annotated[str | None, typer.Option(help="Only what was done to this id.")] = None,
    key_id: Annotated[str | None, typer.Option("--key", help="Only what this key did.")] = None,
    after: Annotated[str | None, typer.Option(help="Only later than this time, with its zone.")] = None,
    before: Annotated[str | None, typer.Option(help="Only earlier than this time, with its zone.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List what keys have changed, newest first."""
    filters = {"action": action, "target": target, "key_id": key_id, "created_after": after, "created_before": before}
    with connect() as client:
        rows = client.list_audit(**filters, limit=limit)
    columns = ("created_at", "key_id", "action", "target", "request_id")
    emit(rows) if as_json else table(columns, ([row[column] for column in columns] for row in rows))
