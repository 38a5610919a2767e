"""The asyncio driver: grants an operation's steps with httpx, and runs commands on asyncio's streams."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Iterator
from typing import TypeVar

import httpx

from runta.client.channel import READ_SIZE
from runta.client.connecting import KEEP_ALIVE, connect_error, may_start, transport_error
from runta.client.endpoint import Endpoint
from runta.client.execution import SILENCE, Session, refusal_error
from runta.client.spawn import ensure_service
from runta.client.steps import Reply, Request, Sleep, Steps, with_retries
from runta.client.types import CommandResult
from runta.client.wire import Frame, Wire
from runta.errors import ApiError

T = TypeVar("T")


class AsyncDriver:
    """Talks to one service, on one event loop."""

    def __init__(self, endpoint: Endpoint, *, timeout: float, attempts: int, pool: int) -> None:
        self.endpoint = endpoint
        self._timeout = timeout
        self._attempts = attempts
        self._pool = pool
        self._opened: httpx.AsyncClient | None = None

    async def aclose(self) -> None:
        """Close the connections."""
        client, self._opened = self._opened, None
        if client is not None:
            await client.aclose()

    async def perform(self, steps: Steps[T]) -> T:
        """Run an operation to its result."""
        retried = with_retries(steps, self._attempts)
        try:
            effect = next(retried)
            while True:
                try:
                    answer = await self._grant(effect)
                except Exception as err:  # noqa: BLE001 - the operation decides
                    effect = retried.throw(err)
                else:
                    effect = retried.send(answer)
        except StopIteration as stop:
            result: T = stop.value
            return result

    async def execute(self, session: Session) -> CommandResult:
        """Run a command to its result, across lost connections."""
        while not session.done:
            try:
                link = await self._open_link(session.path)
            except ApiError as err:
                await asyncio.sleep(session.retry_open(err, self._attempts))
                continue
            try:
                await link.run(session)
            finally:
                link.close()
            if not session.done:
                await asyncio.sleep(session.lose(link.wire.end_reason))
        return session.result()

    async def _grant(self, effect: Request | Sleep) -> Reply | None:
        if isinstance(effect, Sleep):
            await asyncio.sleep(effect.seconds)
            return None
        try:
            return await self._send(effect)
        except (httpx.ConnectError, httpx.ConnectTimeout) as err:
            if not may_start(self.endpoint, err):
                raise connect_error(self.endpoint, err) from err
            await asyncio.to_thread(ensure_service, self.endpoint.settings)
        except (httpx.TransportError, httpx.InvalidURL) as err:
            raise transport_error(err) from err
        try:
            return await self._send(effect)
        except httpx.TransportError as err:
            raise transport_error(err) from err

    async def _send(self, request: Request) -> Reply:
        response = await self._client().request(
            request.method,
            request.path,
            params=request.query or None,
            json=request.json,
            content=request.content,
            headers=request.headers,
            timeout=self._timeout if request.timeout is None else request.timeout,
        )
        headers = {name.lower(): value for name, value in response.headers.items()}
        return Reply(status=response.status_code, body=response.content, headers=headers)

    def _client(self) -> httpx.AsyncClient:
        if self._opened is None:
            socket = self.endpoint.socket
            transport = httpx.AsyncHTTPTransport(
                uds=None if socket is None else str(socket),
                verify=self.endpoint.secure,
                limits=httpx.Limits(
                    max_connections=self._pool,
                    max_keepalive_connections=self._pool,
                    keepalive_expiry=KEEP_ALIVE,
                ),
            )
            self._opened = httpx.AsyncClient(
                transport=transport,
                base_url=self.endpoint.url,
                headers=self.endpoint.headers,
                timeout=self._timeout,
                trust_env=False,
                follow_redirects=False,
            )
        return self._opened

    async def _open_link(self, path: str) -> _Link:
        """An open WebSocket.

        Raises ExecutionError where the service refuses, TransportError where it does not answer.
        """
        try:
            async with asyncio.timeout(self._timeout):
                reader, writer = await self._connect()
                link = _Link(Wire(self.endpoint, path), reader, writer)
                try:
                    await link.shake_hands()
                except BaseException:
                    link.close()
                    raise
        except TimeoutError as err:
            raise transport_error(TimeoutError(f"no answer within {self._timeout:g} seconds")) from err
        return link

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        try:
            return await _connect_once(self.endpoint)
        except OSError as err:
            if not may_start(self.endpoint, err):
                raise connect_error(self.endpoint, err) from err
        await asyncio.to_thread(ensure_service, self.endpoint.settings)
        return await _connect_once(self.endpoint)


class _Link:
    """One WebSocket on asyncio's streams."""

    def __init__(self, wire: Wire, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.wire = wire
        self._reader = reader
        self._writer = writer
        self._early: list[Frame] = []

    async def shake_hands(self) -> None:
        self._flush()
        while not self.wire.accepted:
            self._early += await self._receive()
            if self.wire.refusal is not None:
                raise refusal_error(self.wire.refusal)
            if self.wire.ended and not self.wire.accepted:
                raise transport_error(ConnectionError(self.wire.end_reason))

    async def run(self, session: Session) -> None:
        """Send and take frames until the exit or the connection's end."""
        frames = session.frames()
        first = next(frames, None)
        if first is not None:
            self.wire.send(first)
            self._flush()
        sending = asyncio.create_task(self._send_all(frames)) if session.has_stdin else None
        if sending is None:
            next(frames, None)
        try:
            while not session.done and (self._early or not self.wire.ended):
                for frame in await self._next_frames():
                    session.take(frame)
        except TimeoutError:
            return
        finally:
            if sending is not None:
                sending.cancel()
                await asyncio.gather(sending, return_exceptions=True)

    def close(self) -> None:
        self.wire.close()
        self._flush()
        self._writer.close()

    async def _send_all(self, frames: Iterator[Frame]) -> None:
        for frame in frames:
            self.wire.send(frame)
            self._flush()
            await self._writer.drain()

    async def _next_frames(self) -> list[Frame]:
        early, self._early = self._early, []
        return early or await asyncio.wait_for(self._receive(), SILENCE)

    async def _receive(self) -> list[Frame]:
        try:
            data = await self._reader.read(READ_SIZE)
        except OSError:
            data = b""
        frames = self.wire.feed(data)
        self._flush()
        return frames

    def _flush(self) -> None:
        data = self.wire.outgoing()
        if data and not self._writer.is_closing():
            self._writer.write(data)


async def _connect_once(endpoint: Endpoint) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    if endpoint.socket is not None:
        return await asyncio.open_unix_connection(str(endpoint.socket), limit=READ_SIZE)
    context = ssl.create_default_context() if endpoint.secure else None
    return await asyncio.open_connection(endpoint.host, endpoint.port, ssl=context, limit=READ_SIZE)
