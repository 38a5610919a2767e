"""The error envelope, and what errors of other makes become in it (API reference, section 2)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from runta.errors import (
    InvalidArgument,
    MalformedRequest,
    NotFound,
    ServiceError,
    Unavailable,
)

_BOUNDS: Mapping[str, str] = {
    "greater_than_equal": "ge",
    "greater_than": "gt",
    "less_than_equal": "le",
    "less_than": "lt",
}
_SIGNS: Mapping[str, str] = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
_VALUE_ERRORS = frozenset({*_BOUNDS, "value_error", "string_too_short", "string_too_long", "too_long", "too_short"})
"""A body whose shape is right and whose value is not: 422. Every other misfit of a body is 400."""


class MethodNotAllowed(InvalidArgument):
    """The path exists, the method does not; the public list of codes has none of its own for this."""

    http_status = 405


def envelope(error: ServiceError, request_id: str) -> JSONResponse:
    """The answer that tells an error: section 2.1's body, and nothing beside `code` and `message` in it."""
    body = {"error": {"code": error.code, "message": str(error)}, "request_id": request_id}
    headers = {"WWW-Authenticate": "Bearer"} if error.http_status == HTTPStatus.UNAUTHORIZED else None
    return JSONResponse(body, status_code=error.http_status, headers=headers)


def is_ours(error: ServiceError) -> bool:
    """A failure of the host or of runta itself, which belongs in the log; the others are the caller's affair."""
    return error.code == ServiceError.code


def explain_http(error: HTTPException, method: str, path: str) -> ServiceError:
    """Starlette's own refusals: unknown paths, wrong methods, unreadable bodies."""
    if error.status_code == HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "")
        return MethodNotAllowed(f"{method} is not a method of {path}", hint=f"use {allowed}" if allowed else None)
    if error.status_code == HTTPStatus.NOT_FOUND:
        return NotFound(f"no such path: {path}", hint="this service speaks /v2/… and /healthz")
    if error.status_code >= HTTPStatus.INTERNAL_SERVER_ERROR:
        return Unavailable(str(error.detail))
    return MalformedRequest(str(error.detail))


def explain_validation(error: RequestValidationError | WebSocketRequestValidationError) -> ServiceError:
    """What pydantic found, in one message: 400 for a body of another shape, 422 for a value out of its range."""
    found: Sequence[Mapping[str, Any]] = error.errors()
    text = "; ".join(dict.fromkeys(_describe(item) for item in found))
    in_body = [item for item in found if item["loc"][:1] == ("body",)]
    if any(item["type"] not in _VALUE_ERRORS for item in in_body):
        return MalformedRequest(text, hint="compare the body with the API's description")
    return InvalidArgument(text)


def _describe(item: Mapping[str, Any]) -> str:
    """`resources.requests.memory_mib must be >= 1`."""
    where = _name_place(item["loc"])
    kind, context = item["type"], item.get("ctx", {})
    if kind in _BOUNDS:
        bound = _BOUNDS[kind]
        return f"{where} must be {_SIGNS[bound]} {context[bound]}"
    if kind == "missing":
        return f"{where} is required"
    if kind == "extra_forbidden":
        return f"{where} is not a known field"
    if kind == "json_invalid":
        return f"the body is not JSON: {context.get('error', 'unreadable')}"
    return f"{where}: {item['msg'].removeprefix('Value error, ')}"


def _name_place(location: Sequence[int | str]) -> str:
    """The field's path, without where it came from and without the names of alternatives."""
    places = [str(part) for part in location[1:] if str(part) not in ("fresh", "restore", "denylist", "allowlist")]
    return ".".join(places) or "the body"
