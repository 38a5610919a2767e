"""Checkpoints: create, list, read, delete (API reference, section 4, rows 13 to 16, and section 10)."""

from __future__ import annotations

from fastapi import APIRouter

from runta.api.answers import CheckpointView, Done, Paged, Single, answers
from runta.api.context import EngineOf
from runta.api.pages import DEFAULT_LIMIT, After, Limit, view_page
from runta.api.schemas import CheckpointBody
from runta.api.views import Json, view_checkpoint

router = APIRouter(prefix="/v2", tags=["checkpoints"])


@router.post("/runtimes/{ref}/checkpoints", responses=answers(200, Single[CheckpointView]))
async def create_checkpoint(engine: EngineOf, ref: str, body: CheckpointBody) -> Json:
    """Capture a runtime; answers with the result, or as `creating` when that takes long."""
    checkpoint = await engine.create_checkpoint(ref, name=body.name, kind=body.to_kind())
    return {"data": view_checkpoint(checkpoint)}


@router.get("/checkpoints", responses=answers(200, Paged[CheckpointView]))
async def list_checkpoints(engine: EngineOf, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Json:
    """Oldest first."""
    return view_page(await engine.list_checkpoints(), view_checkpoint, limit=limit, after=after)


@router.get("/checkpoints/{ref}", responses=answers(200, Single[CheckpointView]))
async def get_checkpoint(engine: EngineOf, ref: str) -> Json:
    """By id or name."""
    return {"data": view_checkpoint(await engine.get_checkpoint(ref))}


@router.delete("/checkpoints/{ref}", responses=answers(200, Done))
async def delete_checkpoint(engine: EngineOf, ref: str) -> Json:
    """By id or name. What was restored from it goes on."""
    await engine.delete_checkpoint(ref)
    return {"data": {}}
