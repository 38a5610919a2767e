"""The command on events."""

from __future__ import annotations

import signal
import threading
from collections.abc import Mapping
from datetime import datetime
from types import FrameType
from typing import Annotated, Any

import typer

from runta.cli.complaints import INTERRUPTED
from runta.cli.door import Json, door_of

LOOK_SECONDS = 0.3
_WIDTHS = (23, 20, 18, 12, 9, 18)
_TITLES = ("TIME", "RUNTIME", "EVENT", "OUTCOME", "MS", "CALLER", "DETAILS")
_OWN = {"runtime_name", "caller", "duration_ms", "outcome", "steps_ms"}
"""Columns of their own, or of use to programs only."""


def events(
    ctx: typer.Context,
    runtime: Annotated[str | None, typer.Argument(metavar="RUNTIME", help="Only of this one: name or id.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on as things happen.")] = False,
    kind: Annotated[str | None, typer.Option("--kind", help="Only of this kind, as exec or runtime.create.")] = None,
    limit: Annotated[int, typer.Option("--limit", "-n", min=1, help="How many of the past.")] = 50,
    as_json: Json = False,
) -> int:
    """Tell who did what to which runtime, when, and how long it took."""
    from runta.client.events import events_after, latest_events

    door = door_of(ctx)
    interrupted = _catch_interrupt() if follow else threading.Event()
    with door.client() as client:
        found = client.perform(latest_events(limit, runtime=runtime, kind=kind))
        if not follow:
            lines = [_format_row(_TITLES), *(_format_event(event) for event in found)]
            door.show({"events": found}, "\n".join(lines))
            return 0
        if not door.json:
            print(_format_row(_TITLES), flush=True)
        last: str | None = None
        while True:
            for event in found:
                last = event["id"]
                door.show_line(event, _format_event(event))
            if interrupted.wait(LOOK_SECONDS):
                return INTERRUPTED
            found = client.perform(events_after(last, runtime=runtime, kind=kind))


def _catch_interrupt() -> threading.Event:
    """Ctrl-C is looked for between two looks, so that it can't hit the middle of one."""
    interrupted = threading.Event()

    def remember(number: int, frame: FrameType | None) -> None:
        interrupted.set()

    signal.signal(signal.SIGINT, remember)
    return interrupted


def _format_event(event: Mapping[str, Any]) -> str:
    payload = event["payload"]
    moment = datetime.fromtimestamp(event["occurred_at_unix_millis"] / 1000).astimezone()
    details = " ".join(f"{name}={value}" for name, value in payload.items() if name not in _OWN and value is not None)
    return _format_row(
        (
            moment.strftime("%Y-%m-%d %H:%M:%S.") + f"{event['occurred_at_unix_millis'] % 1000:03}",
            payload.get("runtime_name") or "",
            event["kind"],
            payload.get("outcome", ""),
            f"{payload.get('duration_ms', 0):.1f}",
            payload.get("caller") or "the service",
            details.replace("\n", " "),
        )
    )


def _format_row(cells: tuple[str, ...]) -> str:
    """Columns of fixed widths: a line must not wait for the ones after it."""
    return "  ".join([*(cell.ljust(width) for cell, width in zip(cells, _WIDTHS, strict=False)), cells[-1]]).rstrip()
