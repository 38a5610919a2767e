"""The service itself: health, who asks, which images there are (API reference, sections 4 and 4.4)."""

from __future__ import annotations

from fastapi import APIRouter
from starlette.responses import Response

from runta.api.answers import ImageView, Paged, Single, UserView, answers, empty
from runta.api.context import EngineOf
from runta.api.pages import DEFAULT_LIMIT, After, Limit, view_page
from runta.api.views import Json, view_image, view_me

router = APIRouter(tags=["host"])


@router.head("/healthz", include_in_schema=False)
@router.get("/healthz", responses=empty(200), response_class=Response)
async def tell_health() -> Response:
    """200 with an empty body, and public."""
    return Response(status_code=200)


@router.get("/v2/me", responses=answers(200, Single[UserView]))
async def tell_user() -> Json:
    """Who asks: a local host has one user."""
    return {"data": view_me()}


@router.get("/v2/images", responses=answers(200, Paged[ImageView]))
async def list_images(engine: EngineOf, limit: Limit = DEFAULT_LIMIT, after: After = None) -> Json:
    """The base images of this host."""
    return view_page(await engine.list_images(), view_image, limit=limit, after=after)
