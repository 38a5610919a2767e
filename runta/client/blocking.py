"""The blocking driver: grants an operation's steps with httpx, and streams bodies of any size."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TypeVar

import httpx

from runta.client.answers import raise_for_status
from runta.client.channel import Channel, open_channel, run_session
from runta.client.connecting import BODY_CHUNK, HTTP_SETTINGS, SLOW_TIMEOUT, connect_error, pool_limits, transport_error
from runta.client.endpoint import Endpoint
from runta.client.execution import Session
from runta.client.spawn import ensure_service
from runta.client.steps import Reply, Request, Sleep, Steps, with_retries
from runta.client.types import CommandResult

T = TypeVar("T")


class Driver:
    """Talks to one service. Threads may share it."""

    def __init__(self, endpoint: Endpoint, *, timeout: float, attempts: int, pool: int) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._attempts = attempts
        self._pool = pool
        self._lock = threading.Lock()
        self._opened: httpx.Client | None = None

    def close(self) -> None:
        """Close the connections."""
        with self._lock:
            client, self._opened = self._opened, None
        if client is not None:
            client.close()

    def perform(self, steps: Steps[T]) -> T:
        """Run an operation to its result."""
        retried = with_retries(steps, self._attempts)
        try:
            effect = next(retried)
            while True:
                try:
                    answer = self._grant(effect)
                except Exception as err:  # noqa: BLE001 - the operation decides
                    effect = retried.throw(err)
                else:
                    effect = retried.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    def execute(self, session: Session) -> CommandResult:
        """Run a command to its result."""
        run_session(session, self.endpoint, timeout=self.timeout, attempts=self._attempts)
        return session.result()

    def open_channel(self, path: str) -> Channel:
        """A WebSocket, for a caller who moves the bytes."""
        return open_channel(self.endpoint, path, self.timeout)

    @contextmanager
    def stream_down(self, path: str, query: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """The body of a GET, piece by piece.

        Raises ApiError where the service refuses, or where the body breaks off.
        """
        response = self._send("GET", path, query, timeout=SLOW_TIMEOUT)
        try:
            if not response.is_success:
                raise_for_status(_read(response))
            yield _iter_body(response)
        finally:
            response.close()

    def stream_up(self, method: str, path: str, query: Mapping[str, str], content: Iterable[bytes]) -> Reply:
        """Send a body of any size. It is sent once: a lost connection is an error."""
        if self.endpoint.embedded:
            ensure_service(self.endpoint.settings)
        return _read(self._send(method, path, query, content=content, timeout=SLOW_TIMEOUT))

    def _grant(self, effect: Request | Sleep) -> Reply | None:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
            return None
        return _read(
            self._send(
                effect.method,
                effect.path,
                effect.query,
                json=effect.json,
                content=effect.content,
                headers=effect.headers,
                timeout=effect.timeout,
            )
        )

    def _send(
        self,
        method: str,
        path: str,
        query: Mapping[str, str],
        *,
        json: object = None,
        content: Iterable[bytes] | bytes | None = None,
        headers: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> httpx.Response:
        """The answer, its body not read yet. An embedded service is started if need be."""
        client = self._client()
        request = client.build_request(
            method,
            path,
            params=query or None,
            json=json,
            content=content,
            headers=headers,
            timeout=self.timeout if timeout is None else timeout,
        )
        try:
            return client.send(request, stream=True)
        except (httpx.ConnectError, httpx.ConnectTimeout) as err:
            if not self.endpoint.embedded:
                raise connect_error(self.endpoint, err) from err
            ensure_service(self.endpoint.settings)
        except (httpx.TransportError, httpx.InvalidURL) as err:
            raise transport_error(err) from err
        try:
            return client.send(request, stream=True)
        except httpx.TransportError as err:
            raise transport_error(err) from err

    def _client(self) -> httpx.Client:
        with self._lock:
            if self._opened is None:
                socket = self.endpoint.socket
                transport = httpx.HTTPTransport(
                    uds=None if socket is None else str(socket),
                    verify=self.endpoint.secure,
                    limits=pool_limits(self._pool),
                )
                self._opened = httpx.Client(
                    transport=transport,
                    base_url=self.endpoint.url,
                    headers=self.endpoint.headers,
                    timeout=self.timeout,
                    **HTTP_SETTINGS,
                )
            return self._opened


def _read(response: httpx.Response) -> Reply:
    try:
        response.read()
    except httpx.TransportError as err:
        raise transport_error(err) from err
    finally:
        response.close()
    headers = {name.lower(): value for name, value in response.headers.items()}
    return Reply(status=response.status_code, body=response.content, headers=headers)


def _iter_body(response: httpx.Response) -> Iterator[bytes]:
    try:
        yield from response.iter_bytes(BODY_CHUNK)
    except httpx.TransportError as err:
        raise transport_error(err) from err
