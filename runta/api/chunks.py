"""Bytes that come from the engine piece by piece, as answers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from runta.errors import InvalidArgument

OCTETS = "application/octet-stream"
TAR = "application/x-tar"


class ChunkResponse(StreamingResponse):
    """A stream whose source is let go of at once when the client leaves."""

    def __init__(self, source: AsyncIterator[bytes], first: bytes, media_type: str) -> None:
        super().__init__(_prepend(first, source), media_type=media_type)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with letting_go(self._source):
            await super().__call__(scope, receive, send)


async def respond_in_chunks(source: AsyncIterator[bytes], media_type: str) -> ChunkResponse:
    """Answer with a stream. Its first piece is awaited here, so that an error is still an error's answer."""
    return ChunkResponse(source, await anext(source, b""), media_type)


async def read_at_most(source: AsyncIterator[bytes], limit: int) -> bytes:
    """All of it, or InvalidArgument in the words the official SDK looks for (section 4.3)."""
    whole = bytearray()
    async with letting_go(source):
        async for chunk in source:
            whole += chunk
            if len(whole) > limit:
                raise InvalidArgument(
                    f"file is too large to return through the API; maximum is {limit} bytes",
                    hint="stream it: runta cp, or GET /v2/local/runtimes/{id}/content",
                )
    return bytes(whole)


@asynccontextmanager
async def letting_go(source: AsyncIterator[bytes]) -> AsyncIterator[None]:
    """Close a generator in the task that used it, not when the garbage collector finds it."""
    try:
        yield
    finally:
        close = getattr(source, "aclose", None)
        if close is not None:
            await close()


async def _prepend(first: bytes, rest: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    if first:
        yield first
    async for chunk in rest:
        yield chunk
