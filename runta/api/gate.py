"""The outermost door: a request's id, its token, and the one place where errors become answers."""

from __future__ import annotations

import hmac
import logging

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from runta.api.envelopes import envelope, is_ours
from runta.api.peers import name_caller
from runta.engine.port import CALLER
from runta.errors import InternalError, ServiceError, Unauthenticated
from runta.models import new_id

log = logging.getLogger(__name__)

PUBLIC_PATHS = frozenset({"/healthz"})
_RESPONSE_STARTS = frozenset({"http.response.start", "websocket.http.response.start", "websocket.accept"})


class Gate:
    """ASGI middleware around everything. `token=None` asks for none: access is then the socket's file mode."""

    def __init__(self, app: ASGIApp, *, token: str | None) -> None:
        self._app = app
        self._token = token

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = new_id()
        started = False

        async def send_marked(message: Message) -> None:
            nonlocal started
            if message["type"] in _RESPONSE_STARTS:
                started = True
                MutableHeaders(scope=message)["X-Request-Id"] = request_id
            await send(message)

        try:
            if self._token is not None and scope["path"] not in PUBLIC_PATHS:
                check_token(scope, self._token)
            CALLER.set(name_caller(scope))
            await self._app(scope, receive, send_marked)
        except ClientDisconnect:
            log.debug("the client left: %s", scope["path"])
        except ServiceError as error:
            if is_ours(error):
                log.error("%s %s: %s", request_id, scope["path"], error)
            await _refuse(error, request_id, scope, receive, send_marked, started=started)
        except Exception:
            log.exception("%s %s: not foreseen", request_id, scope["path"])
            hidden = InternalError("the service failed at this request", hint=f"look for {request_id} in its log")
            await _refuse(hidden, request_id, scope, receive, send_marked, started=started)


def check_token(scope: Scope, token: str) -> None:
    """Raise Unauthenticated unless the request bears the token (section 2.2)."""
    kind, _, value = Headers(scope=scope).get("authorization", "").partition(" ")
    if kind.lower() != "bearer" or not value.strip():
        raise Unauthenticated("missing Authorization bearer token", hint="set RUNTA_TOKEN; `runta env` prints it")
    if not hmac.compare_digest(value.strip().encode(), token.encode()):
        raise Unauthenticated("invalid bearer credential", hint="set RUNTA_TOKEN anew; `runta env` prints it")


async def _refuse(
    error: ServiceError, request_id: str, scope: Scope, receive: Receive, send: Send, *, started: bool
) -> None:
    """Answer with the envelope, before a WebSocket is accepted too; a response under way can only be cut."""
    if not started:
        await envelope(error, request_id)(scope, receive, send)
