"""The OpenAPI document, complete with the bodies that our own strict JSON reader takes, and a page that shows it."""

from html import escape
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from fastapi.responses import HTMLResponse
from fastapi.routing import APIRoute
from pydantic import BaseModel
from starlette.requests import Request

from service.intake.manifest import Manifest
from service.lifecycle import Retry, SpecPatch
from service.openapi_examples import EXAMPLES
from service.problems import Problem, responses
from service.schemas import NewKey
from service.specs import JobSpec
from service.specs.inspection import InspectionSpec
from service.webhooks.outbox import EVENTS
from service.webhooks.payload import WebhookPayload
from service.webhooks.schemas import NewWebhookEndpoint, WebhookEndpointChanges

BODIES: tuple[type[BaseModel], ...] = (
    Manifest,
    JobSpec,
    InspectionSpec,
    Retry,
    SpecPatch,
    NewKey,
    NewWebhookEndpoint,
    WebhookEndpointChanges,
    WebhookPayload,
    Problem,
)
_REFERENCE = "#/components/schemas/{model}"
_STYLE = """body{font:15px/1.5 system-ui,sans-serif;max-width:62rem;margin:2rem auto;padding:0 1rem;color:#1b1b1b}
code{background:#f2f2f2;padding:.1rem .3rem;border-radius:3px}h2{font-size:1rem;margin:1.6rem 0 .2rem}
b{display:inline-block;min-width:4.5rem}p{margin:.2rem 0}li{margin:.1rem 0}"""

_CREATORS = {
    "model_id": "upload_model",
    "dataset_id": "upload_dataset",
    "job_id": "create_job",
    "key_id": "create_key",
    "endpoint_id": "create_webhook_endpoint",
}
"""Which operation answers with the id that others take in their path."""

docs = APIRouter(include_in_schema=False)


def operation_id(route: APIRoute) -> str:
    """The name of the route's function, which is unique; a HEAD beside a GET says so."""
    return f"{route.name}_head" if route.methods == {"HEAD"} else route.name


def schema_of(body: type[BaseModel]) -> dict[str, Any]:
    """A reference to the schema of one of `BODIES`."""
    return {"$ref": _REFERENCE.format(model=body.__name__)}


def json_body(body: type[BaseModel], *, required: bool = True) -> dict[str, Any]:
    """`openapi_extra` of a route that reads `body` with our own reader."""
    return {"requestBody": {"required": required, "content": {"application/json": {"schema": schema_of(body)}}}}


def install(app: FastAPI) -> None:
    """Give the app its document, built once, and the page at /docs."""
    app.openapi = lambda: _document(app)  # type: ignore[method-assign]
    app.include_router(docs)


def _document(app: FastAPI) -> dict[str, Any]:
    if app.openapi_schema is None:
        document = get_openapi(
            title=app.title, version=app.version, summary=app.summary, routes=app.routes, openapi_version="3.1.0"
        )
        schemas = document.setdefault("components", {}).setdefault("schemas", {})
        for body in BODIES:
            schema = body.model_json_schema(ref_template=_REFERENCE)
            schemas.update(schema.pop("$defs", {}))
            schemas[body.__name__] = schema
        _give_examples(schemas)
        _link(document["paths"])
        _tell_of_parameters(document)
        document["webhooks"] = {event: {"post": _webhook(event)} for event in EVENTS}
        app.openapi_schema = document
    return app.openapi_schema


def _give_examples(schemas: dict[str, Any]) -> None:
    """One to every body; a page's is a page of one."""
    for name, schema in schemas.items():
        item = name.removeprefix("Page_").removesuffix("_")
        if item in EXAMPLES:
            example = EXAMPLES[item]
            schema["examples"] = [example if item == name else {"data": [example], "next_cursor": None}]


def _link(paths: dict[str, Any]) -> None:
    """Says at every operation that creates something which others take its id."""
    operations = {one["operationId"]: (path, one) for path, methods in paths.items() for one in methods.values()}
    for parameter, creator in _CREATORS.items():
        taking = [name for name, (path, _) in operations.items() if f"{{{parameter}}}" in path]
        answers = operations[creator][1]["responses"]
        created = next(answer for status, answer in answers.items() if status in ("201", "202"))
        created["links"] = {
            name: {"operationId": name, "parameters": {parameter: "$response.body#/id"}} for name in taking
        }


def _tell_of_parameters(document: dict[str, Any]) -> None:
    """FastAPI describes its own answer to bad parameters, which ours replaces."""
    for methods in document["paths"].values():
        for operation in methods.values():
            if "422" in operation["responses"]:
                operation["responses"]["422"] = responses(422)[422]
    for name in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(name, None)


def _webhook(event: str) -> dict[str, Any]:
    return {
        "summary": f"A job has {event.removeprefix('job.')}" if event != "job.cancelled" else "A job was cancelled",
        "description": "Signed as in Standard Webhooks 1.0.0: webhook-id, webhook-timestamp, webhook-signature (v1).",
        **json_body(WebhookPayload),
        "responses": {"2XX": {"description": "taken"}, "410": {"description": "never again: the endpoint is disabled"}},
    }


@docs.get("/docs", response_class=HTMLResponse)
def show_docs(request: Request) -> HTMLResponse:
    """The routes on one page, with no script and nothing fetched from elsewhere."""
    document = request.app.openapi()
    routes = [
        _route(path, method, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]
    page = (
        f"<!doctype html><html lang=en><meta charset=utf-8><title>{escape(document['info']['title'])}</title>"
        f"<style>{_STYLE}</style><h1>{escape(document['info']['title'])}</h1>"
        f"<p>{escape(document['info'].get('summary', ''))} The machine-readable document with every schema is "
        "<a href=openapi.json>openapi.json</a>; send your key as <code>Authorization: Bearer sct_…</code>.</p>"
        + "".join(routes)
    )
    policy = "default-src 'none'; style-src 'unsafe-inline'; frame-ancestors 'none'"
    return HTMLResponse(page, headers={"Content-Security-Policy": policy})


def _route(path: str, method: str, operation: dict[str, Any]) -> str:
    parameters = "".join(
        f"<li><code>{escape(given['name'])}</code> ({escape(given['in'])}) {escape(given.get('description', ''))}</li>"
        for given in operation.get("parameters", [])
    )
    return (
        f"<h2><b>{method.upper()}</b><code>{escape(path)}</code></h2><p>{escape(operation.get('summary', ''))}. "
        f"{escape(operation.get('description', ''))}</p><ul>{parameters}</ul>"
    )
