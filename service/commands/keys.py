"""`secateur keys`: made directly in the database, listed and revoked over HTTP."""

from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import typer

from service import audit
from service.auth import DEFAULT_TENANT, issue_key
from service.commands.connect import connect
from service.commands.database import opened
from service.commands.show import AsJson, Limit, deleted, emit, table
from service.tables import utc_now

app = typer.Typer(no_args_is_help=True, help="Make API keys, directly in the database; list and revoke them.")


class ScopeName(StrEnum):
    """What a key may do; each includes the ones before it."""

    READ = "read"
    WRITE = "write"
    ADMIN = "admin"


@app.command()
def create(
    scope: Annotated[list[ScopeName], typer.Option(help="May be repeated.")],
    tenant: Annotated[str, typer.Option(help="Whose data the key opens.")] = DEFAULT_TENANT,
    name: Annotated[str, typer.Option(help="What the key is for.")] = "command line",
    days: Annotated[int | None, typer.Option(min=1, help="Days until it expires; default: never.")] = None,
    as_json: AsJson = False,
) -> None:
    """Make a key and print it, this once. Needs access to the database, no other key."""
    expires_at = None if days is None else utc_now() + timedelta(days=days)
    with opened() as session:
        row, plaintext = issue_key(session, tenant=tenant, name=name, scopes=scope, expires_at=expires_at)
        key_id = row.id
        audit.record(session, tenant=tenant, key_id=audit.COMMAND_LINE, action="key.create", target=key_id)
    emit({"id": key_id, "tenant": tenant, "key": plaintext}) if as_json else typer.echo(plaintext)


@app.command("list")
def list_(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List the keys of the tenant, newest first, without their secrets."""
    with connect() as client:
        rows = client.list_keys(limit=limit)
    if as_json:
        emit(rows)
        return
    columns = ("id", "name", "scopes", "created_at", "expires_at", "last_used_at", "revoked_at")
    table(columns, ([*(_plain(row[column]) for column in columns)] for row in rows))


def _plain(value: object) -> object:
    return ",".join(value) if isinstance(value, list) else value


@app.command()
def delete(
    key_id: Annotated[str, typer.Argument(metavar="KEY", help="Id of the key, key_…")], as_json: AsJson = False
) -> None:
    """Revoke a key, at once."""
    with connect() as client:
        client.delete_key(key_id)
    deleted(key_id, as_json=as_json, word="revoked")
