"""One regular file a call (API reference, section 4.3)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query
from starlette.requests import Request
from starlette.responses import Response

from runta.api.answers import binary, empty, takes_bytes
from runta.api.chunks import OCTETS, read_at_most
from runta.api.context import EngineOf

router = APIRouter(prefix="/v2/runtimes", tags=["files"])

FILE_LIMIT = 1_048_576
"""What a GET may return; the official SDK turns to a streamed copy at the 422 beyond it."""

PathOf = Annotated[str, Query(alias="path", min_length=1)]


@router.get("/{ref}/files", responses=binary(200, OCTETS), response_class=Response)
async def read_file(engine: EngineOf, ref: str, path: PathOf) -> Response:
    """Absolute, or relative to the home directory."""
    content = await read_at_most(await engine.read_file(ref, path), FILE_LIMIT)
    return Response(content, media_type=OCTETS)


@router.put("/{ref}/files", responses=empty(204), openapi_extra=takes_bytes(OCTETS), status_code=204)
async def write_file(engine: EngineOf, ref: str, path: PathOf, request: Request) -> Response:
    """Replace the content; missing parent directories are made. No limit of size."""
    await engine.write_file(ref, path, request.stream())
    return Response(status_code=204)
