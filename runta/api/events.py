"""Events: who did what to which runtime, when, and how long it took (API reference, section 4.4)."""

from __future__ import annotations

from typing import Annotated, Literal

from fastapi import APIRouter, Query

from runta.api.answers import EventPage, EventView, Single, answers
from runta.api.context import EngineOf
from runta.api.views import Json, view_event
from runta.models import EventFilter

router = APIRouter(prefix="/v2/events", tags=["events"])

Text = Annotated[str | None, Query(min_length=1)]
PageSize = Annotated[int, Query(ge=1, le=1000)]
Order = Annotated[Literal["newest", "oldest"], Query()]
Hosted = Annotated[str | None, Query(min_length=1, description="Of cloud agents: no event of this host has one.")]


@router.get("", responses=answers(200, Single[EventPage]))
async def list_events(
    engine: EngineOf,
    runtime_id: Text = None,
    kind: Text = None,
    harness: Hosted = None,
    session_id: Hosted = None,
    session_group_id: Hosted = None,
    agent_id: Hosted = None,
    page_token: Text = None,
    page_size: PageSize = 50,
    order: Order = "newest",
) -> Json:
    """A page of events. `runtime_id` is an id or a name; `order` is ours."""
    if harness or session_id or session_group_id or agent_id:
        return {"data": {"events": [], "next_page_token": None}}
    wanted = EventFilter(
        runtime=runtime_id, kind=kind, after=page_token, oldest_first=order == "oldest", limit=page_size + 1
    )
    found = list(await engine.list_events(wanted))
    more, page = len(found) > page_size, found[:page_size]
    return {"data": {"events": [view_event(event) for event in page], "next_page_token": page[-1].id if more else None}}


@router.get("/{event_id}", responses=answers(200, Single[EventView]))
async def get_event(engine: EngineOf, event_id: str) -> Json:
    """One event."""
    return {"data": view_event(await engine.get_event(event_id))}
