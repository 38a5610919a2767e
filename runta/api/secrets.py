"""Secrets: list, read, set, delete (API reference, section 4, rows 17 to 20). A value never comes out."""

from __future__ import annotations

from fastapi import APIRouter

from runta.api.answers import Done, Listed, SecretView, Single, answers
from runta.api.context import EngineOf
from runta.api.schemas import NewSecretBody, SecretBody
from runta.api.views import Json, view_secret
from runta.errors import AlreadyExists

router = APIRouter(prefix="/v2/secrets", tags=["secrets"])


@router.get("", responses=answers(200, Listed[SecretView]))
async def list_secrets(engine: EngineOf) -> Json:
    """All secrets, without their values."""
    return {"data": [view_secret(secret) for secret in await engine.list_secrets()]}


@router.post("", responses=answers(200, Single[SecretView]))
async def create_secret(engine: EngineOf, body: NewSecretBody) -> Json:
    """Store a new secret; one of that name must not exist."""
    if any(secret.name == body.name for secret in await engine.list_secrets()):
        raise AlreadyExists(f"a secret named {body.name} exists", hint="PUT replaces its value")
    return {"data": view_secret(await engine.put_secret(body.name, body.value, cache_ttl_secs=body.cache_ttl_secs))}


@router.get("/{ref}", responses=answers(200, Single[SecretView]))
async def get_secret(engine: EngineOf, ref: str) -> Json:
    """By id or name."""
    return {"data": view_secret(await engine.get_secret(ref))}


@router.put("/{ref}", responses=answers(200, Single[SecretView]))
async def put_secret(engine: EngineOf, ref: str, body: SecretBody) -> Json:
    """Store a secret, or replace the value of the one with this id or name."""
    return {"data": view_secret(await engine.put_secret(ref, body.value, cache_ttl_secs=body.cache_ttl_secs))}


@router.delete("/{ref}", responses=answers(200, Done))
async def delete_secret(engine: EngineOf, ref: str) -> Json:
    """By id or name."""
    await engine.delete_secret(ref)
    return {"data": {}}
