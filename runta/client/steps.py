"""An operation, written once: a generator that asks for requests and pauses, and a driver that grants them.

Steps (this package's pure half)      drivers (blocking.py, asyncio.py)
── yields Request ──────────────────► sends it, gives the Reply back (or throws TransportError in)
── yields Sleep ────────────────────► waits
── returns the operation's result
"""

from __future__ import annotations

import random
import time
from collections.abc import Generator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Any, TypeVar

from runta.errors import ApiError

T = TypeVar("T")

MAX_ATTEMPTS = 16
MAX_DELAY = 60.0
BUDGET = 480.0
"""Seconds after which nothing is tried again."""

BUSY = frozenset({408, 429, 502, 503, 504})
"""Statuses that say: not now."""


class TransportError(ApiError):
    """No answer came. `passing` says whether another try may help."""

    def __init__(self, message: str, *, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One HTTP request."""

    method: str
    path: str
    query: Mapping[str, str] = field(default_factory=dict)
    json: Any = None
    content: bytes | None = None
    headers: Mapping[str, str] = field(default_factory=dict)
    retry_on: frozenset[int] | None = None
    """Statuses to try again on, with transport failures; None: never."""
    timeout: float | None = None
    """Seconds to wait for each step of the answer; None: the client's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One HTTP answer."""

    status: int
    body: bytes = b""
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Sleep:
    seconds: float


Steps = Generator[Request | Sleep, Any, T]


def with_retries(steps: Steps[T], attempts: int) -> Steps[T]:
    """The same steps, each request repeated as its `retry_on` says, up to `attempts` times."""
    try:
        effect = next(steps)
        while True:
            try:
                answer = (yield from _repeat(effect, attempts)) if isinstance(effect, Request) else (yield effect)
            except TransportError as err:
                effect = steps.throw(err)
            else:
                effect = steps.send(answer)
    except StopIteration as stop:
        result: T = stop.value
        return result


def _repeat(request: Request, attempts: int) -> Steps[Reply]:
    deadline = time.monotonic() + BUDGET
    for attempt in range(1, attempts + 1):
        last = request.retry_on is None or attempt == attempts
        delay = random.uniform(0, min(MAX_DELAY, 2.0 ** (attempt - 1)))
        try:
            reply: Reply = yield request
        except TransportError as err:
            if last or not err.passing or time.monotonic() + delay > deadline:
                raise
        else:
            delay = _retry_after(reply) or delay
            if last or reply.status not in (request.retry_on or ()) or time.monotonic() + delay > deadline:
                return reply
        yield Sleep(delay)
    raise ValueError("attempts must be at least 1")


def _retry_after(reply: Reply) -> float | None:
    """Seconds the service asked to wait: a number or an HTTP date."""
    value = reply.headers.get("retry-after", "").strip()
    if reply.status != 429 or not value:
        return None
    if value.isdigit():
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - datetime.now(UTC)).total_seconds())
    except (TypeError, ValueError):
        return None
