"""The events' operations, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from runta.client.answers import data_of
from runta.client.steps import BUSY, Request, Steps

PAGE = 1000
Event = Mapping[str, Any]


def latest_events(limit: int, *, runtime: str | None = None, kind: str | None = None) -> Steps[list[Event]]:
    """The newest events, at most `limit`, oldest first."""
    found: list[Event] = []
    token: str | None = None
    while len(found) < limit:
        size = min(PAGE, limit - len(found))
        query = _compose(runtime_id=runtime, kind=kind, page_size=str(size), page_token=token)
        data = data_of((yield Request(method="GET", path="/v2/events", query=query, retry_on=BUSY)))
        found += data["events"]
        token = data["next_page_token"]
        if token is None:
            break
    return found[::-1]


def events_after(event_id: str | None, *, runtime: str | None = None, kind: str | None = None) -> Steps[list[Event]]:
    """What happened since an event, oldest first; with None since the log began."""
    query = _compose(runtime_id=runtime, kind=kind, page_size=str(PAGE), page_token=event_id, order="oldest")
    events: list[Event] = data_of((yield Request(method="GET", path="/v2/events", query=query, retry_on=BUSY)))[
        "events"
    ]
    return events


def _compose(**given: str | None) -> dict[str, str]:
    return {name: value for name, value in given.items() if value is not None}
