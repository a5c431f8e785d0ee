"""`secateur ready` and `secateur capabilities`: the service itself."""

import typer

from service.commands.connect import connect
from service.commands.show import AsJson, emit, say, table


def ready(as_json: AsJson = False) -> None:
    """Tell whether the service has all that it leans on: database, broker, storage, a worker; else exit code 6."""
    with connect() as client:
        found = client.ready()
    if as_json:
        emit(found)
        return
    for name in found["checks"]:
        typer.echo(f"{name:<10} ok")
    for warning in found["warnings"]:
        say(f"warning: {warning}")


def capabilities(as_json: AsJson = False) -> None:
    """List what the service can do with each family of models."""
    with connect() as client:
        found = client.capabilities()
    if as_json:
        emit(found)
        return
    families = found["families"]
    columns = ("tasks", "structures", "exports")
    table(
        ("family", *columns), ([family["name"], *(", ".join(family[name]) for name in columns)] for family in families)
    )
    table(
        ("worker", "devices"),
        ([w["name"], ", ".join(str(d.get("name")) for d in w["devices"])] for w in found["workers"]),
    )
