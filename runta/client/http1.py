"""HTTP/1.1 for the blocking driver: kept-alive connections on the sockets of `connecting`, bodies of any size.

The standard library client, because the command line pays for every import: httpx costs three times as much before
the first byte is sent.
"""

from __future__ import annotations

import http.client
import json
import select
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from urllib.parse import urlencode

from runta.client.connecting import KEEP_ALIVE, connect, transport_error
from runta.client.endpoint import Endpoint
from runta.client.steps import Reply

BODY_CHUNK = 1 << 18
_BROKEN = (OSError, http.client.HTTPException)
Body = bytes | Iterable[bytes]


class Pool:
    """The connections to one service. Threads may share it; each request has one to itself."""

    def __init__(self, endpoint: Endpoint, size: int) -> None:
        self._endpoint = endpoint
        self._size = size
        self._lock = threading.Lock()
        self._idle: list[tuple[float, http.client.HTTPConnection]] = []

    def close(self) -> None:
        """Close the idle connections."""
        with self._lock:
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    @contextmanager
    def send(
        self,
        method: str,
        path: str,
        *,
        query: Mapping[str, str],
        headers: Mapping[str, str],
        body: Body | None,
        timeout: float,
    ) -> Iterator[http.client.HTTPResponse]:
        """One request; its answer, to be read inside the block. `timeout` (seconds) bounds every single step.

        Raises TransportError where no answer comes, ConfigError where the service may not be reached.
        """
        connection = self._take(timeout)
        target = self._endpoint.base_path + path + (f"?{urlencode(query)}" if query else "")
        reusable = False
        try:
            try:
                response = _exchange(connection, method, target, body, {**self._endpoint.headers, **headers})
            except _BROKEN as err:
                raise transport_error(err) from err
            yield response
            reusable = response.isclosed() and not response.will_close
        finally:
            self._give_back(connection) if reusable else connection.close()

    def _take(self, timeout: float) -> http.client.HTTPConnection:
        """An idle connection that is still good, else a new one."""
        while True:
            with self._lock:
                since, connection = self._idle.pop() if self._idle else (0.0, None)
            if connection is None:
                return self._open(timeout)
            if time.monotonic() - since < KEEP_ALIVE and not _is_stale(connection):
                connection.sock.settimeout(timeout)
                return connection
            connection.close()

    def _open(self, timeout: float) -> http.client.HTTPConnection:
        connection = http.client.HTTPConnection(self._endpoint.host, self._endpoint.port)
        connection.sock = connect(self._endpoint, timeout)
        return connection

    def _give_back(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            if len(self._idle) < self._size and connection.sock is not None:
                self._idle.append((time.monotonic(), connection))
                return
        connection.close()


def reply_of(response: http.client.HTTPResponse) -> Reply:
    """The whole answer."""
    try:
        body = response.read()
    except _BROKEN as err:
        raise transport_error(err) from err
    headers = {name.lower(): value for name, value in response.getheaders()}
    return Reply(status=response.status, body=body, headers=headers)


def pieces_of(response: http.client.HTTPResponse) -> Iterator[bytes]:
    """The body as it comes.

    Raises TransportError where it breaks off.
    """
    try:
        while piece := response.read1(BODY_CHUNK):
            yield piece
        if response.length:
            raise http.client.IncompleteRead(b"", response.length)
    except _BROKEN as err:
        raise transport_error(err) from err


def json_body(value: Any) -> tuple[bytes, dict[str, str]]:
    """A JSON body and its header."""
    return json.dumps(value).encode(), {"Content-Type": "application/json"}


def _exchange(
    connection: http.client.HTTPConnection, method: str, target: str, body: Body | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    """Send and hear. A service that refuses early stops reading: its answer tells why."""
    try:
        connection.request(method, target, body=body, headers=dict(headers))
    except (BrokenPipeError, ConnectionResetError):
        if body is None:
            raise
    return connection.getresponse()


def _is_stale(connection: http.client.HTTPConnection) -> bool:
    """Readable without a request: the service closed it."""
    poller = select.poll()
    poller.register(connection.sock, select.POLLIN)
    return bool(poller.poll(0))
