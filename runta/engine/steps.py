"""Where the milliseconds of an operation go: named steps, written into its event."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from contextvars import ContextVar

_STEPS: ContextVar[dict[str, float] | None] = ContextVar("steps", default=None)


@contextlib.contextmanager
def collecting() -> Iterator[dict[str, float]]:
    """Steps of the block, also those in threads that inherit its context, with their milliseconds."""
    steps: dict[str, float] = {}
    before = _STEPS.get()
    _STEPS.set(steps)
    try:
        yield steps
    finally:
        _STEPS.set(before)  # not by its token: what streams an answer may end in another context than it began in


@contextlib.contextmanager
def step(name: str) -> Iterator[None]:
    """The block is a step of whatever operation is under way; one that comes twice counts in all."""
    started = time.perf_counter()
    try:
        yield
    finally:
        steps = _STEPS.get()
        if steps is not None:
            steps[name] = round(steps.get(name, 0.0) + (time.perf_counter() - started) * 1000, 1)
