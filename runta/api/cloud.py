"""What the public API has and a local host has not: 501, with a word on why (API reference, sections 4.4 and 11)."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping

from fastapi import APIRouter
from starlette.requests import Request
from starlette.responses import Response

from runta.errors import Unimplemented

METHODS = ("GET", "POST", "PUT", "PATCH", "DELETE")

MISSING: Mapping[str, tuple[str, str]] = {
    "/v2/agents": ("cloud agents", "run the agent inside a runtime"),
    "/v2/github": ("GitHub bindings", "clone the repository inside a runtime"),
    "/v2/model-providers": ("managed model providers", "reach the provider from inside a runtime"),
    "/v2/token-analysis": ("token analysis", "this host records no model traffic"),
    "/v2/token-savings": ("token savings", "this host records no model traffic"),
    "/v2/auth": ("device login", "set RUNTA_TOKEN; `runta env` prints it"),
    "/v2/ssh-keys": ("SSH keys", "use `runta exec -it`"),
    "/v2/ssh-host-key": ("an SSH gateway", "use `runta exec -it`"),
    "/v2/runtimes/{ref}/ssh-keys": ("SSH keys", "use `runta exec -it`"),
    "/v2/runtimes/{ref}/vnc": ("a VNC gateway", "publish a port of the runtime"),
    "/v2/runtimes/{ref}/vnc-credentials": ("a VNC gateway", "publish a port of the runtime"),
    "/v2/images/builds": ("image builds from Dockerfiles", "import an archive: `runta image import`"),
    "/v2/images/{ref}": ("this way to single images", "use `runta image`, or /v2/local/images"),
}
"""Path prefix: what it would be, and what to do instead."""


def build_cloud_router() -> APIRouter:
    """A router that answers all of MISSING, at the prefix and below it."""
    router = APIRouter(include_in_schema=False)
    for prefix, (what, instead) in MISSING.items():
        refuse = _make_refusal(what, instead)
        router.add_api_route(prefix, refuse, methods=list(METHODS))
        router.add_api_route(prefix + "/{rest:path}", refuse, methods=list(METHODS))
    return router


def _make_refusal(what: str, instead: str) -> Callable[[Request], Awaitable[Response]]:
    async def refuse(request: Request) -> Response:
        raise Unimplemented(f"this service does not have {what}", hint=instead)

    return refuse
