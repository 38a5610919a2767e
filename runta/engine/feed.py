"""Bytes of a request for a blocking reader in a thread of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import ParamSpec, TypeVar

P = ParamSpec("P")
T = TypeVar("T")


def run_apart(work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> asyncio.Future[T]:
    """Run blocking work in a thread made for it.

    Work that waits for other work must not sit in the shared pool: with all of its threads waiting, nobody could do
    what they wait for.
    """
    pool = ThreadPoolExecutor(1, thread_name_prefix=work.__name__)
    try:
        return asyncio.wrap_future(pool.submit(work, *args, **kwargs))
    finally:
        pool.shutdown(wait=False)


class Feed:
    """A binary stream with two ends: one thread `read`s, another `give`s a piece and waits until it was used up.

    While nobody is giving, the reader stands still: that is how a checkpoint finds an archive that comes in slowly.
    """

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._piece = memoryview(b"")
        self._wanting = False
        self._ended = False
        self._left = False

    def read(self, size: int = -1) -> bytes:
        """Up to `size` bytes, at least one; b"" at the end. Waits for the next piece where the last one is used up."""
        with self._changed:
            self._wanting = not self._piece
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._piece or self._ended)
            self._wanting = False
            count = len(self._piece) if size < 0 else size
            taken = bytes(self._piece[:count])
            self._piece = self._piece[count:]
            return taken

    def give(self, piece: bytes) -> None:
        """Hand over a piece; returns when the reader asks for the next one. Raises BrokenPipeError if it left."""
        with self._changed:
            self._piece = memoryview(piece)
            self._changed.notify_all()
            self._changed.wait_for(lambda: self._left or (self._wanting and not self._piece))
            if self._left:
                raise BrokenPipeError("the reader left")

    def end(self) -> None:
        """No more pieces."""
        with self._changed:
            self._ended = True
            self._changed.notify_all()

    def leave(self) -> None:
        """The reader reads no more."""
        with self._changed:
            self._left = True
            self._changed.notify_all()
