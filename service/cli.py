"""The `secateur` command.

Exit codes: 0 accepted or succeeded, 2 usage (also a request that the service refused), 3 failed, 4 rejected,
5 cancelled, 6 unreachable.
"""

import json
import sys

import typer

from service.commands import datasets, deploy, exits, jobs, keys, models, operations, tenants, webhooks
from service.commands.run import run
from service.commands.show import say
from service.errors import SecateurError

app = typer.Typer(
    name="secateur",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Prune, fine-tune and measure Hugging Face NLP models. Address and key: SECATEUR_URL and SECATEUR_API_KEY, "
    "else those of a local `secateur up` (its data directory: SECATEUR_DATA_DIR, default ./secateur-data). "
    "Exit codes: 0 accepted or succeeded, 2 usage, 3 failed, 4 rejected, 5 cancelled, 6 unreachable.",
)
app.command()(run)
app.add_typer(models.app, name="models")
app.add_typer(datasets.app, name="datasets")
app.add_typer(jobs.app, name="jobs")
app.add_typer(webhooks.app, name="webhooks")
for part in (deploy.up, deploy.api, deploy.worker, deploy.migrate):
    app.command(rich_help_panel="The service")(part)
app.add_typer(keys.app, name="keys", rich_help_panel="The service")
app.add_typer(tenants.app, name="tenants", rich_help_panel="The service")
app.command()(operations.ready)
app.command()(operations.capabilities)
app.command("usage")(tenants.usage)
app.command("audit")(tenants.audit_log)


def main(arguments: list[str] | None = None) -> None:
    """Run one command; ends with its exit code. Expected errors are told in one line (or JSON), never a traceback."""
    given = sys.argv[1:] if arguments is None else arguments
    try:
        app(given)
    except exits.EXPECTED as error:
        _tell(error, as_json="--json" in given)
        sys.exit(exits.of_error(error))


def _tell(error: Exception, *, as_json: bool) -> None:
    fields = error.errors if isinstance(error, SecateurError) else ()
    code = error.code if isinstance(error, SecateurError) else type(error).__name__
    if as_json:
        shown = {"code": code, "detail": str(error), "errors": [vars(field) for field in fields]}
        say(json.dumps({"error": shown}, ensure_ascii=False))
        return
    say(f"error: {error} ({code})" if isinstance(error, SecateurError) else f"error: {error}")
    for field in fields:
        say(f"  {field.pointer or '/'}: {field.detail}")


if __name__ == "__main__":
    main()
