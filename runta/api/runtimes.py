"""Runtimes: list, create, read, change, delete, and the four actions (API reference, section 4, rows 2 to 10)."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Body, Header, Query
from starlette.responses import JSONResponse, Response

from runta.api.context import EngineOf
from runta.api.pages import DEFAULT_LIMIT, After, Limit, view_page
from runta.api.schemas import CreateBody, PatchBody, parse_choices
from runta.api.views import Json, view_runtime
from runta.models import Runtime, RuntimeStatus

router = APIRouter(prefix="/v2/runtimes")

Revision = Annotated[int | None, Query(alias="expected_revision", ge=1)]
"""Required by SPEC; here a caller who leaves it out asks for no check."""
IdempotencyKey = Annotated[str | None, Header(min_length=1, max_length=255)]


@router.get("")
async def list_runtimes(
    engine: EngineOf, status: str | None = None, limit: Limit = DEFAULT_LIMIT, after: After = None
) -> Json:
    chosen = parse_choices(status, list(RuntimeStatus), "status")
    runtimes = [one for one in await engine.list_runtimes() if not chosen or one.status in chosen]
    return view_page(runtimes, view_runtime, limit=limit, after=after)


@router.post("")
async def create_runtime(
    engine: EngineOf, body: Annotated[CreateBody, Body()], idempotency_key: IdempotencyKey = None
) -> JSONResponse:
    """A fresh runtime, or with `checkpoint_id` a restored one; the same key names the same runtime (section 1.3)."""
    runtime = await engine.create_runtime(body.to_model(), idempotency_key=idempotency_key)
    return JSONResponse(_wrap(runtime), status_code=201, headers={"Location": f"/v2/runtimes/{runtime.id}"})


@router.get("/{ref}")
async def get_runtime(engine: EngineOf, ref: str) -> Json:
    return _wrap(await engine.get_runtime(ref))


@router.patch("/{ref}")
async def patch_runtime(engine: EngineOf, ref: str, body: PatchBody, revision: Revision = None) -> Json:
    return _wrap(await engine.patch_runtime(ref, body.to_model(), expected_revision=revision))


@router.delete("/{ref}")
async def delete_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Response:
    """204: when the answer comes, the runtime is gone."""
    await engine.delete_runtime(ref, expected_revision=revision)
    return Response(status_code=204)


@router.post("/{ref}/start")
async def start_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    return _wrap(await engine.start_runtime(ref, expected_revision=revision))


@router.post("/{ref}/stop")
async def stop_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    return _wrap(await engine.stop_runtime(ref, expected_revision=revision))


@router.post("/{ref}/pause")
async def pause_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    return _wrap(await engine.pause_runtime(ref, expected_revision=revision))


@router.post("/{ref}/resume")
async def resume_runtime(engine: EngineOf, ref: str, revision: Revision = None) -> Json:
    return _wrap(await engine.resume_runtime(ref, expected_revision=revision))


def _wrap(runtime: Runtime) -> Json:
    return {"data": view_runtime(runtime)}
