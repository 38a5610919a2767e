"""Runtimes: list, create, read, change, delete, and the four actions (API reference, section 4, rows 2 to 10)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from starlette.responses import JSONResponse, Response

from runta.api.answers import Paged, RuntimeView, Single, answers
from runta.api.context import EngineOf
from runta.api.pages import DEFAULT_LIMIT, After, Limit, view_page
from runta.api.schemas import CreateBody, PatchBody, parse_choices
from runta.api.views import Json, view_runtime
from runta.models import Runtime, RuntimeStatus

router = APIRouter(prefix="/v2/runtimes", tags=["runtimes"])

Revision = Annotated[int | None, Query(alias="expected_revision", ge=1)]
"""Required by SPEC; here a caller who leaves it out asks for no check."""
_RUNTIME = answers(200, Single[RuntimeView])
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.get("", responses=answers(200, Paged[RuntimeView]))
async def list_runtimes(
    engine: EngineOf, status: str | None = None, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Json:
    """Oldest first; `status` is a comma list."""
    chosen = parse_choices(status, list(RuntimeStatus), "status")
    runtimes = [one for one in await engine.list_runtimes() if not chosen or one.status in chosen]
    return view_page(runtimes, view_runtime, limit=limit, after=after)


@router.post("", responses=answers(201, Single[RuntimeView]))
async def create_runtime(
    engine: EngineOf, body: Annotated[CreateBody, Body()], idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """A fresh runtime, or with `checkpoint_id` a restored one; the same key names the same runtime (section 1.3)."""
    runtime = await engine.create_runtime(body.to_model(), idempotency_key=idempotency_key)
    return JSONResponse(_wrap(runtime), status_code=201, headers={"Location": f"/v2/runtimes/{runtime.id}"})


@router.get("/{ref}", responses=_RUNTIME)
async def get_runtime(engine: EngineOf, ref: str) -> Json:
    """By id or name."""
    return _wrap(await engine.get_runtime(ref))


@router.patch("/{ref}", responses=_RUNTIME)
async def patch_runtime(engine: EngineOf, ref: str, body: PatchBody, revision: Revision = None) -> Json:
    """Change what is named; the rest stays as it is."""
    return _wrap(await engine.patch_runtime(ref, body.to_model(), expected_revision=revision))


@router.delete("/{ref}", responses={**answers(202, Single[RuntimeView]), 204: {"description": "Gone"}})
async def delete_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Response:
    """204: when the answer comes, the runtime is gone. 202: it takes longer, and goes on."""
    leaving = await engine.delete_runtime(ref, expected_revision=revision)
    if leaving is None:
        return Response(status_code=204)
    return JSONResponse(_wrap(leaving), status_code=202, headers={"Location": f"/v2/runtimes/{leaving.id}"})


@router.post("/{ref}/start", responses=_RUNTIME)
async def start_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    """Boot a shut-down runtime from its disk, or let a paused or suspended one go on."""
    return _wrap(await engine.start_runtime(ref, expected_revision=revision))


@router.post("/{ref}/stop", responses=_RUNTIME)
async def stop_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    """End its processes: TERM, a grace, KILL. The disk stays."""
    return _wrap(await engine.stop_runtime(ref, expected_revision=revision))


@router.post("/{ref}/pause", responses=_RUNTIME)
async def pause_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    """Freeze its processes; memory and connections stay."""
    return _wrap(await engine.pause_runtime(ref, expected_revision=revision))


@router.post("/{ref}/resume", responses=_RUNTIME)
async def resume_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    """Let a paused or suspended runtime go on."""
    return _wrap(await engine.resume_runtime(ref, expected_revision=revision))


def _wrap(runtime: Runtime) -> Json:
    return {"data": view_runtime(runtime)}
