"""`secateur webhooks`: be told when jobs start and end."""

from typing import Annotated

import typer

from service.commands.completion import EndpointId
from service.commands.connect import connect
from service.commands.show import AsJson, Json, Limit, deleted, emit, facts, say, table

app = typer.Typer(no_args_is_help=True, help="Be told when jobs start and end.")

EventNames = Annotated[list[str] | None, typer.Option("--event", help="May be repeated; default: all of a job's.")]
_FACTS = ("id", "url", "events", "description", "enabled", "disabled_reason", "failing_since", "created_at")


@app.command()
def create(
    url: Annotated[
        str | None, typer.Argument(help="Where to, https. Left out: the endpoint of the jobs' own webhook_url.")
    ] = None,
    event: EventNames = None,
    description: Annotated[str, typer.Option(help="What it is for.")] = "",
    as_json: AsJson = False,
) -> None:
    """Make an endpoint; prints its secret, this once."""
    with connect() as client:
        endpoint = client.create_webhook(url, events=event, description=description)
    _show_secret(endpoint, as_json)


@app.command("list")
def list_(limit: Limit = 20, as_json: AsJson = False) -> None:
    """List endpoints, newest first."""
    with connect() as client:
        endpoints = client.list_webhooks(limit=limit)
    if as_json:
        emit(endpoints)
    else:
        columns = ("id", "enabled", "failing_since", "created_at", "url")
        table(columns, ([endpoint[column] for column in columns] for endpoint in endpoints))


@app.command()
def show(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Show one endpoint."""
    with connect() as client:
        endpoint = client.show_webhook(endpoint_id)
    emit(endpoint) if as_json else facts(endpoint, _FACTS)


@app.command()
def update(
    endpoint_id: EndpointId,
    url: Annotated[str | None, typer.Option(help="Where to from now on.")] = None,
    event: EventNames = None,
    description: Annotated[str | None, typer.Option(help="What it is for.")] = None,
    enabled: Annotated[bool | None, typer.Option("--enable/--disable", help="Whether it is sent anything.")] = None,
    as_json: AsJson = False,
) -> None:
    """Change an endpoint; what is not given stays."""
    with connect() as client:
        endpoint = client.update_webhook(endpoint_id, url=url, events=event, description=description, enabled=enabled)
    emit(endpoint) if as_json else facts(endpoint, _FACTS)


@app.command()
def delete(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Delete an endpoint with its deliveries."""
    with connect() as client:
        client.delete_webhook(endpoint_id)
    deleted(endpoint_id, as_json=as_json)


@app.command()
def test(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Send a webhook.test; prints the id of its delivery."""
    with connect() as client:
        delivery = client.test_webhook(endpoint_id)
    emit(delivery) if as_json else typer.echo(delivery["id"])


@app.command("rotate-secret")
def rotate_secret(endpoint_id: EndpointId, as_json: AsJson = False) -> None:
    """Make a new secret and print it, this once; the old one goes on for 24 hours."""
    with connect() as client:
        endpoint = client.rotate_webhook_secret(endpoint_id)
    _show_secret(endpoint, as_json)


@app.command()
def deliveries(
    endpoint_id: EndpointId,
    job_id: Annotated[str | None, typer.Option("--job", help="Only those about this job.")] = None,
    limit: Limit = 20,
    as_json: AsJson = False,
) -> None:
    """List what was sent to an endpoint and what came of it, newest first."""
    with connect() as client:
        rows = client.webhook_deliveries(endpoint_id, job_id=job_id, limit=limit)
    if as_json:
        emit(rows)
    else:
        columns = ("id", "type", "status", "created_at", "job_id")
        lines = ([*(row[column] for column in columns), len(row["attempts"]), _last(row)] for row in rows)
        table((*columns, "attempts", "last"), lines)


@app.command()
def redeliver(
    endpoint_id: EndpointId,
    delivery_id: Annotated[str, typer.Argument(metavar="DELIVERY", help="Id of the delivery, wvd_…")],
    as_json: AsJson = False,
) -> None:
    """Send a delivery once more, now."""
    with connect() as client:
        delivery = client.redeliver_webhook(endpoint_id, delivery_id)
    emit(delivery) if as_json else say(f"{delivery_id} {delivery['status']}")


def _show_secret(endpoint: Json, as_json: bool) -> None:
    if as_json:
        emit(endpoint)
        return
    say(f"{endpoint['id']}; its secret, which is not shown again:")
    typer.echo(endpoint["secret"])


def _last(delivery: Json) -> object:
    """The last answer's status, or why there was none."""
    if not delivery["attempts"]:
        return None
    last = delivery["attempts"][-1]
    return last["response_status"] or last["error"]
