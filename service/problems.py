"""Errors as RFC 9457 problem documents: the one shape of every 4xx and 5xx answer."""

import json
import logging
import re
from collections.abc import Iterable, Sequence
from typing import Any

from fastapi import FastAPI, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.routing import APIRoute
from pydantic import BaseModel, ConfigDict, Field, ValidationError
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from service.db import DATABASE_AWAY
from service.errors import FieldError, InternalError, Invalid, SecateurError, Unavailable

log = logging.getLogger(__name__)

MEDIA_TYPE = "application/problem+json"
_MAX_ERRORS = 50
_PLAIN_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,40}")
_SCHEMA = {"$ref": "#/components/schemas/Problem"}
_BY_STATUS = {
    400: ("BAD_REQUEST", "Bad request", "The request is malformed."),
    404: ("NOT_FOUND", "Not found", "There is nothing at this address; /docs lists the routes."),
    405: ("METHOD_NOT_ALLOWED", "Method not allowed", "This address does not take this method; see Allow."),
    413: ("PAYLOAD_TOO_LARGE", "Too large", "The body is too large."),
}
_FIELD_TYPES = frozenset({"criterion", "pattern", "ratio", "scope", "nesterov", "exports"})
"""Error types of `service.specs` that name the field at fault within the part that they are raised for."""


class ProblemField(BaseModel):
    """One fault in the body."""

    pointer: str = Field(description="JSON Pointer (RFC 6901) into the body")
    detail: str


class Problem(BaseModel):
    """An RFC 9457 problem document."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str
    code: str = Field(description="stable, upper snake case")
    request_id: str
    errors: list[ProblemField]


def responses(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """The problem answers of one route for the OpenAPI document; always 400, 401, 403, 429, 500 and 503."""
    return {
        status: {"content": {MEDIA_TYPE: {"schema": _SCHEMA}}, "description": "problem document"}
        for status in sorted({400, 401, 403, 429, 500, 503, *statuses})
    }


def document(error: SecateurError, request_id: str) -> dict[str, Any]:
    """The body of one error's answer."""
    return {
        **error.extra,
        "type": f"urn:secateur:error:{error.code.lower().replace('_', '-')}",
        "title": error.title,
        "status": error.status,
        "detail": error.detail,
        "code": error.code,
        "request_id": request_id,
        "errors": [{"pointer": fault.pointer, "detail": fault.detail} for fault in error.errors],
    }


def problem(error: SecateurError, request_id: str) -> Response:
    """One error's whole answer."""
    body = json.dumps(document(error, request_id), ensure_ascii=False).encode()
    return Response(body, error.status, error.headers, MEDIA_TYPE)


def pointer(location: Sequence[str | int]) -> str:
    """A JSON Pointer (RFC 6901) for a path of names and indices."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in location)


def invalid_body(error: ValidationError, body: Any, code: str = "INVALID_BODY") -> Invalid:
    """A pydantic error about `body` with JSON Pointers instead of pydantic's paths, and no submitted value."""
    faults = error.errors(include_url=False, include_input=False)[:_MAX_ERRORS]
    if any(fault["type"] == "not_available" for fault in faults):
        code = "NOT_AVAILABLE"
    fields = tuple(FieldError(_locate(fault["loc"], fault["type"], body), _advice(fault)) for fault in faults)
    return Invalid("The body cannot work as it stands; see errors.", code=code, errors=fields)


def _locate(location: Sequence[str | int], type_: str, body: Any) -> str:
    """Walk the body along pydantic's path, leaving out the union tags that it puts in between."""
    path: list[str | int] = []
    here = body
    for index, part in enumerate(location):
        inside = part in here if isinstance(here, dict) else isinstance(here, list) and isinstance(part, int)
        if inside and (isinstance(part, int) or _PLAIN_NAME.fullmatch(part)):
            path.append(part)
            here = here[part]
        elif inside:  # a name that the client made up is not repeated
            break
        elif type_ == "missing" and index == len(location) - 1:
            path.append(part)
    if type_ in _FIELD_TYPES and (not path or path[-1] != type_):
        path.append(type_)
    return pointer(path)


def _advice(fault: Any) -> str:
    if fault["type"] in ("union_tag_invalid", "union_tag_not_found"):
        context = fault["ctx"]
        expected = context.get("expected_tags")
        name = str(context["discriminator"]).strip("'")
        return f"{name} must be one of {expected}" if expected else f"{name} is needed to tell what this is"
    return str(fault["msg"])


def install(app: FastAPI) -> None:
    """Make every error of an app a problem document."""
    app.add_exception_handler(SecateurError, _on_ours)
    app.add_exception_handler(RequestValidationError, _on_parameters)
    app.add_exception_handler(HTTPException, _on_http)
    for away in DATABASE_AWAY:
        app.add_exception_handler(away, _on_database_away)
    app.add_exception_handler(DBAPIError, _on_database)


def _request_id(request: Request) -> str:
    return str(request.scope.get("secateur_request_id", ""))


async def _on_ours(request: Request, error: Exception) -> Response:
    assert isinstance(error, SecateurError)
    if error.status >= 500:
        log.error("%s: %s", error.code, error.detail, exc_info=error.__cause__)
    return problem(error, _request_id(request))


async def _on_parameters(request: Request, error: Exception) -> Response:
    """Faults of path, query and header parameters; bodies are read by our own code."""
    assert isinstance(error, RequestValidationError)
    faults = [f"{fault['loc'][0]} parameter {fault['loc'][-1]}: {fault['msg']}" for fault in error.errors()]
    fields = tuple(FieldError("", text) for text in faults[:_MAX_ERRORS])
    return problem(Invalid("; ".join(faults[:3]), code="INVALID_PARAMETER", errors=fields), _request_id(request))


async def _on_http(request: Request, error: Exception) -> Response:
    """What the router raises itself: unknown paths and methods."""
    assert isinstance(error, HTTPException)
    unknown = (f"HTTP_{error.status_code}", "Error", "The request cannot be answered.")
    code, title, detail = _BY_STATUS.get(error.status_code, unknown)
    headers = dict(error.headers or {})
    if error.status_code == 405:  # the router knows only the first route that matched
        headers["Allow"] = ", ".join(sorted(_methods(request)))
    ours = SecateurError(detail, code=code, headers=headers)
    ours.status, ours.title = error.status_code, title
    return problem(ours, _request_id(request))


def _methods(request: Request) -> set[str]:
    routes: Iterable[APIRoute] = request.app.state.routes
    return {method for route in routes if route.path_regex.match(request.url.path) for method in route.methods or ()}


async def _on_database_away(request: Request, error: Exception) -> Response:
    log.error("The database is away: %s", type(getattr(error, "orig", error)).__name__)
    return problem(unavailable("The database cannot be reached; try again."), _request_id(request))


async def _on_database(request: Request, error: Exception) -> Response:
    assert isinstance(error, DBAPIError)
    if error.connection_invalidated:
        return await _on_database_away(request, error)
    return internal_error(error, _request_id(request))


def unavailable(detail: str) -> Unavailable:
    """503 that tells the client to come back in a few seconds."""
    return Unavailable(detail, headers={"Retry-After": "5"})


def internal_error(error: Exception, request_id: str) -> Response:
    """Log a fault of ours and answer 500 without a word of it."""
    log.error("Unhandled error in request %s", request_id, exc_info=error)
    return problem(InternalError("The service failed; quote the request_id when you report it."), request_id)
