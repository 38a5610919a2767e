"""Who is at the other end: the process behind a Unix socket (SO_PEERCRED, unix(7)), the address behind a port."""

from __future__ import annotations

import asyncio
import os
import pwd
import socket
import struct
from contextlib import suppress

from starlette.types import Scope
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.protocols.websockets.websockets_sansio_impl import WebSocketsSansIOProtocol

_CREDENTIALS = struct.Struct("3i")


class HttpDoor(HttpToolsProtocol):
    """HTTP, with the peer's process in the scope's `client`."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        self.client = self.client or read_peer(transport)


class WebSocketDoor(WebSocketsSansIOProtocol):
    """WebSockets, likewise."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(transport)
        self.client = self.client or read_peer(transport)


def read_peer(transport: asyncio.BaseTransport) -> tuple[str, int] | None:
    """`uid 0` and the pid of the process that connected; None where the socket can't tell."""
    sock = transport.get_extra_info("socket")
    if sock is None or sock.family != socket.AF_UNIX:
        return None
    with suppress(OSError):
        pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
        return f"uid {uid}", pid
    return None


def name_caller(scope: Scope) -> str:
    """Who asks, for people: `root (pid 812)` through the Unix socket, `127.0.0.1` through the port."""
    who, number = scope.get("client") or ("unknown", 0)
    if not who.startswith("uid "):
        return str(who)
    uid = int(who.removeprefix("uid "))
    if uid == os.getuid() == 0:
        name = "root"
    else:
        try:
            name = pwd.getpwuid(uid).pw_name
        except KeyError:
            name = who
    return f"{name} (pid {number})"
