"""Lists, page by page (API reference, section 3.6)."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable, Sequence
from typing import Annotated, Any, TypeVar

from fastapi import Query

from runta.errors import InvalidArgument
from runta.models import Checkpoint, Image, Runtime

T = TypeVar("T", Runtime, Checkpoint, Image)

Limit = Annotated[int, Query(ge=1, le=100)]
After = Annotated[str | None, Query()]
DEFAULT_LIMIT = 50


def view_page(things: Sequence[T], view: Callable[[T], Any], *, limit: int, after: str | None) -> dict[str, Any]:
    """One page of a list. The cursor names a place in time, so it holds though the thing it came from is deleted."""
    ordered = sorted(things, key=_place)
    if after is not None:
        start = _read_cursor(after)
        ordered = [thing for thing in ordered if _place(thing) > start]
    page = ordered[:limit]
    more = len(ordered) > limit
    cursor = _write_cursor(_place(page[-1])) if more else None
    return {"data": [view(thing) for thing in page], "pagination": {"has_more": more, "next_cursor": cursor}}


def _place(thing: T) -> tuple[str, str]:
    return thing.created_at, thing.id


def _write_cursor(place: tuple[str, str]) -> str:
    return base64.urlsafe_b64encode(" ".join(place).encode()).decode()


def _read_cursor(cursor: str) -> tuple[str, str]:
    try:
        moment, _, key = base64.urlsafe_b64decode(cursor.encode()).decode().partition(" ")
    except (binascii.Error, ValueError):
        moment = key = ""
    if not key:
        raise InvalidArgument("after is not a cursor of this service", hint="pass next_cursor of the page before")
    return moment, key
