"""Connections: sockets to the service, what a failure to get one means, and when another try may help."""

from __future__ import annotations

import socket
import ssl
from collections.abc import Iterator

from runta.client.endpoint import Endpoint
from runta.client.steps import TransportError
from runta.errors import ApiError, ConfigError

KEEP_ALIVE = 30.0
"""Seconds an idle connection is kept."""
SLOW_TIMEOUT = 600.0
"""Seconds for each piece of a streamed body, and for the answer to one: the service packs or unpacks meanwhile."""


def connect(endpoint: Endpoint, timeout: float) -> socket.socket:
    """A connected socket with this timeout; an embedded service is started if need be.

    Raises TransportError, or ConfigError for a user who may not.
    """
    try:
        return _connect_once(endpoint, timeout)
    except OSError as err:
        if not may_start(endpoint, err):
            raise connect_error(endpoint, err) from err
    from runta.client.spawn import ensure_service

    ensure_service(endpoint.settings)
    try:
        return _connect_once(endpoint, timeout)
    except OSError as err:
        raise connect_error(endpoint, err) from err


def may_start(endpoint: Endpoint, error: BaseException) -> bool:
    """Whether a failed connect means that nobody started this host's service yet."""
    absent = (FileNotFoundError, ConnectionRefusedError)
    return endpoint.embedded and any(isinstance(cause, absent) for cause in _chain(error))


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


def _connect_once(endpoint: Endpoint, timeout: float) -> socket.socket:
    if endpoint.socket is None:
        sock = socket.create_connection((endpoint.host, endpoint.port), timeout)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        if not endpoint.secure:
            return sock
        return ssl.create_default_context().wrap_socket(sock, server_hostname=endpoint.host)
    sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        sock.settimeout(timeout)
        sock.connect(str(endpoint.socket))
    except BaseException:
        sock.close()
        raise
    return sock


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__
