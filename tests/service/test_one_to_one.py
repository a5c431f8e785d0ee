"""HTTP, client and command line, one to one: a route without a method, or a method without a command, is a gap."""

import inspect
from pathlib import Path

import pytest
import typer.main

from service.app import create_app
from service.cli import app
from service.client import AsyncClient, Client
from service.config import Settings

METHODS = {
    "append_chunk": "push_model",
    "cancel_job": "cancel_job",
    "capabilities": "capabilities",
    "change_webhook_endpoint": "update_webhook",
    "clone_job": "clone_job",
    "complete_model": "push_model",
    "create_inspection": "inspect_model",
    "create_job": "submit_job",
    "create_key": "create_key",
    "create_upload": "push_model",
    "create_webhook_endpoint": "create_webhook",
    "delete_dataset": "delete_dataset",
    "delete_job": "delete_job",
    "delete_key": "delete_key",
    "delete_model": "delete_model",
    "delete_webhook_endpoint": "delete_webhook",
    "estimate_job": "estimate_job",
    "get_archive": "pull_model",
    "get_archive_head": "pull_model",
    "get_content": "download_artifact",
    "get_content_head": "download_artifact",
    "get_dataset": "show_dataset",
    "get_file": "download_model_file",
    "get_file_head": "download_model_file",
    "get_job": "show_job",
    "get_job_model": "pull_job",
    "get_job_model_head": "pull_job",
    "get_lineage": "model_lineage",
    "get_model": "show_model",
    "get_offset_head": "push_model",
    "get_protocol": "push_model",
    "get_protocol_of": "push_model",
    "get_report": "job_report",
    "get_tenant": "show_tenant",
    "get_webhook_endpoint": "show_webhook",
    "healthz": "alive",
    "list_artifacts": "job_artifacts",
    "list_audit_entries": "list_audit",
    "list_datasets": "list_datasets",
    "list_events": "job_events",
    "list_jobs": "list_jobs",
    "list_keys": "list_keys",
    "list_metrics": "job_metrics",
    "list_models": "list_models",
    "list_webhook_deliveries": "webhook_deliveries",
    "list_webhook_endpoints": "list_webhooks",
    "metrics": "prometheus_metrics",
    "pause_job": "pause_job",
    "readyz": "ready",
    "redeliver_webhook": "redeliver_webhook",
    "resume_job": "resume_job",
    "retry_job": "retry_job",
    "rotate_webhook_secret": "rotate_webhook_secret",
    "stream_events": "stream_job_events",
    "terminate_upload": "push_model",
    "test_webhook_endpoint": "test_webhook",
    "upload_dataset": "push_dataset",
    "upload_model": "push_model",
}
"""Operation of the OpenAPI document to the method of both clients that performs it, alone or among others."""

COMMANDS = {
    "cancel_job": "jobs cancel",
    "capabilities": "capabilities",
    "clone_job": "jobs clone",
    "create_webhook": "webhooks create",
    "delete_dataset": "datasets delete",
    "delete_job": "jobs delete",
    "delete_key": "keys delete",
    "delete_model": "models delete",
    "delete_webhook": "webhooks delete",
    "download_artifact": "jobs download",
    "download_model_file": "models download",
    "estimate_job": "jobs estimate",
    "inspect_model": "models inspect",
    "job_artifacts": "jobs artifacts",
    "job_events": "jobs events",
    "job_metrics": "jobs metrics",
    "job_report": "jobs report",
    "list_audit": "audit",
    "list_datasets": "datasets list",
    "list_jobs": "jobs list",
    "list_keys": "keys list",
    "list_models": "models list",
    "list_webhooks": "webhooks list",
    "model_lineage": "models lineage",
    "pause_job": "jobs pause",
    "pull_job": "jobs pull",
    "pull_model": "models pull",
    "push_dataset": "datasets push",
    "push_model": "models push",
    "ready": "ready",
    "redeliver_webhook": "webhooks redeliver",
    "resume_job": "jobs resume",
    "retry_job": "jobs retry",
    "rotate_webhook_secret": "webhooks rotate-secret",
    "show_dataset": "datasets show",
    "show_job": "jobs show",
    "show_model": "models show",
    "show_tenant": "usage",
    "show_webhook": "webhooks show",
    "stream_job_events": "jobs events",
    "submit_job": "jobs submit",
    "test_webhook": "webhooks test",
    "update_webhook": "webhooks update",
    "validate_job": "jobs submit",
    "watch_job": "jobs watch",
    "webhook_deliveries": "webhooks deliveries",
}
WITHOUT_COMMAND = {
    "alive": "for probes; a person asks `secateur ready`",
    "close": "the connections of the client itself",
    "create_key": "`keys create` works on the database: it makes the first key, for which there is none to send",
    "prometheus_metrics": "for a Prometheus server, which brings its own client",
}
WITHOUT_JSON = {
    "up": "a service, not an answer",
    "api": "a service, not an answer",
    "worker": "a service, not an answer",
    "migrate": "its exit code says it all",
}


def commands() -> dict[str, typer.core.TyperCommand]:
    """Every command by its words."""
    found: dict[str, typer.core.TyperCommand] = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined] # typed as a command
        inner = getattr(command, "commands", None)
        found |= {name: command} if inner is None else {f"{name} {word}": one for word, one in inner.items()}
    return found


def methods(kind: type) -> set[str]:
    """Public methods of a client."""
    return {name for name, _ in inspect.getmembers(kind, inspect.isfunction) if not name.startswith("_")}


def test_every_operation_has_a_method_in_both_clients(tmp_path: Path) -> None:
    document = create_app(Settings(data_dir=tmp_path)).openapi()
    operations = {operation["operationId"] for path in document["paths"].values() for operation in path.values()}
    assert operations == METHODS.keys()
    for kind in (Client, AsyncClient):
        assert set(METHODS.values()) <= methods(kind)


def test_every_method_has_a_command_or_a_reason() -> None:
    assert methods(Client) == COMMANDS.keys() | WITHOUT_COMMAND.keys()
    assert set(COMMANDS.values()) <= commands().keys()


def test_every_command_can_answer_in_json() -> None:
    without = {name for name, command in commands().items() if all("--json" not in p.opts for p in command.params)}
    assert without == WITHOUT_JSON.keys()


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_and_option_says_what_it_does(name: str) -> None:
    command = commands()[name]
    assert command.help
    silent = [parameter.name for parameter in command.params if not getattr(parameter, "help", None)]
    assert silent == []
