"""The application: routers before an engine, behind the gate."""

from __future__ import annotations

from typing import NoReturn

from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError, WebSocketRequestValidationError
from fastapi.routing import APIRoute
from starlette.exceptions import HTTPException
from starlette.requests import HTTPConnection
from starlette.websockets import WebSocket

from runta.api import checkpoints, document, events, exec, files, host, local, runtimes, secrets
from runta.api.cloud import build_cloud_router
from runta.api.context import House
from runta.api.envelopes import explain_http, explain_validation
from runta.api.gate import Gate
from runta.engine.port import Engine


def create_app(engine: Engine, *, token: str | None) -> FastAPI:
    """The public v2 API and our additions. With `token=None` nobody is asked for one: see `runta.api.serve`."""
    app = FastAPI(openapi_url=None, redirect_slashes=False, generate_unique_id_function=_name_operation)
    app.state.house = House(engine)
    app.add_middleware(Gate, token=token)
    app.add_exception_handler(HTTPException, _raise_http)
    app.add_exception_handler(RequestValidationError, _raise_validation)
    app.add_exception_handler(WebSocketRequestValidationError, _raise_validation)
    for module in (host, document, runtimes, files, checkpoints, secrets, events, exec, local):
        app.include_router(module.router)
    app.include_router(build_cloud_router())
    app.add_api_websocket_route("/{path:path}", _refuse_path)
    return app


def _name_operation(route: APIRoute) -> str:
    """`runtimes_pause_runtime`: what generated clients call it."""
    return "_".join([*(str(tag) for tag in route.tags[:1]), route.name])


async def _refuse_path(socket: WebSocket, path: str) -> NoReturn:
    """Where the framework would close an unknown WebSocket path without a word."""
    raise explain_http(HTTPException(404), "WebSocket", f"/{path}")


async def _raise_http(connection: HTTPConnection, error: Exception) -> NoReturn:
    """Say the framework's refusal in our words; the gate answers."""
    if not isinstance(error, HTTPException):
        raise error
    raise explain_http(error, connection.scope.get("method", "WebSocket"), connection.url.path) from None


async def _raise_validation(_: HTTPConnection, error: Exception) -> NoReturn:
    if not isinstance(error, RequestValidationError | WebSocketRequestValidationError):
        raise error
    raise explain_validation(error) from None
