"""What both drivers know of connecting: texts of failures, and when another try may help."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator, Mapping
from typing import Any

import httpx

from runta.client.endpoint import Endpoint
from runta.client.steps import TransportError
from runta.errors import ApiError, ConfigError

SLOW_TIMEOUT = 600.0
"""Seconds for each piece of a streamed body, and for the answer to one: the service packs or unpacks meanwhile."""
BODY_CHUNK = 1 << 18
KEEP_ALIVE = 30.0
HTTP_SETTINGS: Mapping[str, Any] = {"trust_env": False, "follow_redirects": False}
"""No proxies from the environment, no redirects."""


def pool_limits(size: int) -> httpx.Limits:
    """At most `size` connections, kept for KEEP_ALIVE seconds."""
    return httpx.Limits(max_connections=size, max_keepalive_connections=size, keepalive_expiry=KEEP_ALIVE)


def connect_error(endpoint: Endpoint, error: BaseException) -> ApiError | ConfigError:
    """What a failed connect means to the user."""
    causes = list(_chain(error))
    if any(isinstance(cause, PermissionError) for cause in causes):
        return ConfigError(
            f"may not connect to {endpoint}\nwhy: permission denied\n"
            "what to do: run this as root (sudo), or set RUNTA_ENDPOINT and RUNTA_TOKEN"
        )
    why = next((text for text in map(str, reversed(causes)) if text), type(error).__name__)
    return TransportError(
        f"HTTP request failed: can't connect to {endpoint}\nwhy: {why}\n"
        "what to do: start the service (`runta serve`), or set RUNTA_ENDPOINT to one that runs",
        passing=may_pass(error),
    )


def transport_error(error: BaseException) -> TransportError:
    """A request that broke after the connect."""
    return TransportError(f"HTTP request failed: {str(error) or type(error).__name__}", passing=may_pass(error))


def may_pass(error: BaseException) -> bool:
    """Whether another try may help: not for a bad certificate, nor for a name that does not exist."""
    for cause in _chain(error):
        if isinstance(cause, ssl.SSLCertVerificationError):
            return False
        if isinstance(cause, socket.gaierror) and cause.errno != socket.EAI_AGAIN:
            return False
    return True


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
