"""The blocking driver: grants an operation's steps, streams bodies, runs commands."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, TypeVar

from runta.client.answers import raise_for_status
from runta.client.connecting import SLOW_TIMEOUT
from runta.client.endpoint import Endpoint
from runta.client.http1 import Pool, json_body, pieces_of, reply_of
from runta.client.steps import Reply, Request, Sleep, Steps, with_retries
from runta.client.types import CommandResult

if TYPE_CHECKING:
    from runta.client.channel import Channel
    from runta.client.execution import Session

T = TypeVar("T")


class Driver:
    """Talks to one service. Threads may share it."""

    def __init__(self, endpoint: Endpoint, *, timeout: float, attempts: int, pool: int) -> None:
        self.endpoint = endpoint
        self.timeout = timeout
        self._attempts = attempts
        self._pool = Pool(endpoint, pool)

    def close(self) -> None:
        """Close the connections."""
        self._pool.close()

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
        from runta.client.channel import run_session

        run_session(session, self.endpoint, timeout=self.timeout, attempts=self._attempts)
        return session.result()

    def open_channel(self, path: str) -> Channel:
        """A WebSocket, for a caller who moves the bytes."""
        from runta.client.channel import open_channel

        return open_channel(self.endpoint, path, self.timeout)

    @contextmanager
    def stream_down(self, path: str, query: Mapping[str, str]) -> Iterator[Iterator[bytes]]:
        """The body of a GET, piece by piece.

        Raises ApiError where the service refuses, or where the body breaks off.
        """
        with self._pool.send("GET", path, query=query, headers={}, body=None, timeout=SLOW_TIMEOUT) as response:
            if response.status >= 300:
                raise_for_status(reply_of(response))
            yield pieces_of(response)

    def stream_up(self, method: str, path: str, query: Mapping[str, str], content: Iterable[bytes]) -> Reply:
        """Send a body of any size. It is sent once: a lost connection is an error."""
        with self._pool.send(method, path, query=query, headers={}, body=content, timeout=SLOW_TIMEOUT) as response:
            return reply_of(response)

    def _grant(self, effect: Request | Sleep) -> Reply | None:
        if isinstance(effect, Sleep):
            time.sleep(effect.seconds)
            return None
        body, headers = effect.content, dict(effect.headers)
        if effect.json is not None:
            body, kind = json_body(effect.json)
            headers |= kind
        timeout = self.timeout if effect.timeout is None else effect.timeout
        with self._pool.send(
            effect.method, effect.path, query=effect.query, headers=headers, body=body, timeout=timeout
        ) as response:
            return reply_of(response)
