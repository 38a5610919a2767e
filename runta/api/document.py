"""The API's own description: `/openapi.json` (OpenAPI 3.1), and `/docs`, a page of it that loads nothing."""

from __future__ import annotations

import html
from collections.abc import Iterator, Mapping
from functools import lru_cache
from typing import Any

from fastapi import APIRouter, FastAPI
from fastapi.openapi.utils import get_openapi
from starlette.requests import Request
from starlette.responses import HTMLResponse, JSONResponse

import runta

router = APIRouter(include_in_schema=False)
Json = dict[str, Any]

METHODS = ("get", "head", "post", "put", "patch", "delete")
_ABOUT = """Runta's public v2 API on this host, and what this host adds under `/v2/local`.

Errors have one envelope, `{"error": {"code", "message"}, "request_id"}`; `request_id` is the `X-Request-Id` header too.
WebSockets: `GET /v2/runtimes/{ref}/exec/stream` runs a command, `GET /v2/local/runtimes/{ref}/tasks/{task_id}/attach`
follows one; every message is a JSON object with a `type`."""
_STYLE = (
    "body{font:15px/1.5 sans-serif;max-width:60rem;margin:2rem auto;padding:0 1rem}"
    "code{background:#eee}pre{white-space:pre-wrap}"
)


@router.get("/openapi.json")
async def tell_description(request: Request) -> JSONResponse:
    """The description, for programs."""
    return JSONResponse(describe(request.app))


@router.get("/docs")
async def show_description(request: Request) -> HTMLResponse:
    """The description, for people."""
    return HTMLResponse("".join(_render(describe(request.app))))


@lru_cache(maxsize=4)
def describe(app: FastAPI) -> Json:
    """The application's OpenAPI document."""
    document: Json = get_openapi(title="runta", version=runta.__version__, description=_ABOUT, routes=app.routes)
    document["components"]["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["security"] = [{"token": []}]
    for path, operations in document["paths"].items():
        for operation in operations.values():
            responses = operation["responses"]
            responses.pop("422", None)  # the framework's own shape of it, which no answer has
            for status in [status for status, one in responses.items() if _is_untold(status, one, operation)]:
                del responses[status]
            if path == "/healthz":
                operation["security"] = []
    for unused in ("HTTPValidationError", "ValidationError"):
        document["components"]["schemas"].pop(unused, None)
    return document


def _is_untold(status: str, response: Json, operation: Json) -> bool:
    """The 200 the framework adds where an operation names another success."""
    others = [other for other in operation["responses"] if other[0] == "2" and other != status]
    return status == "200" and bool(others) and response.get("description") == "Successful Response"


def _render(document: Json) -> Iterator[str]:
    yield f"<!doctype html><meta charset=utf-8><title>runta API</title><style>{_STYLE}</style>"
    version, about = document["info"]["version"], document["info"]["description"]
    yield f"<h1>runta {html.escape(version)}</h1><pre>{html.escape(about)}</pre>"
    yield "<p>For programs: <a href=/openapi.json>/openapi.json</a></p>"
    for path, operations in sorted(document["paths"].items()):
        for method in METHODS:
            if method in operations:
                yield from _render_operation(path, method, operations[method])
    yield "<h1>Shapes</h1>"
    for name, schema in sorted(document["components"]["schemas"].items()):
        yield f'<h3 id="{html.escape(name)}">{html.escape(name)}</h3><ul>'
        for field, kind in schema.get("properties", {}).items():
            yield f"<li><code>{html.escape(field)}</code> {_name_type(kind)}</li>"
        yield "</ul>"


def _render_operation(path: str, method: str, operation: Mapping[str, Any]) -> Iterator[str]:
    yield f"<h3><code>{method.upper()} {html.escape(path)}</code></h3>"
    yield f"<p>{html.escape(operation.get('description', operation.get('summary', '')))}</p><ul>"
    for parameter in operation.get("parameters", ()):
        needed = ", required" if parameter.get("required") else ""
        kind = _name_type(parameter["schema"])
        yield f"<li>{parameter['in']} <code>{html.escape(parameter['name'])}</code>{needed}: {kind}</li>"
    for media, body in operation.get("requestBody", {}).get("content", {}).items():
        yield f"<li>body {html.escape(media)}: {_name_type(body['schema'])}</li>"
    for status, response in operation["responses"].items():
        shapes = " ".join(_name_type(content["schema"]) for content in response.get("content", {}).values())
        yield f"<li>{status}: {shapes or 'empty'}</li>"
    yield "</ul>"


def _name_type(schema: Mapping[str, Any]) -> str:
    """A schema in a few words, with links to the shapes."""
    if "$ref" in schema:
        name = html.escape(schema["$ref"].rsplit("/", 1)[-1])
        return f'<a href="#{name}">{name}</a>'
    for several in ("anyOf", "oneOf", "allOf"):
        if several in schema:
            return " or ".join(_name_type(one) for one in schema[several])
    if "enum" in schema or "const" in schema:
        return html.escape(", ".join(str(word) for word in schema.get("enum", [schema.get("const")])))
    if schema.get("type") == "array":
        return "list of " + _name_type(schema.get("items", {}))
    return html.escape(str(schema.get("type", "anything")))
