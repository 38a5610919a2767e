"""Who did what to which runtime, when, and how long it took."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import Any

from runta.engine.port import CALLER
from runta.engine.steps import collecting
from runta.errors import ServiceError
from runta.models import Checkpoint, Event, Runtime, new_id
from runta.store.events import EventLog

_MAX_TEXT = 512


class Note:
    """What is known of an event while it happens."""

    def __init__(self, runtime: Runtime | Checkpoint | None, details: dict[str, Any]) -> None:
        self.details = details
        self.runtime_id: str | None = None
        self.runtime_name: str | None = None
        if runtime is not None:
            self.concern(runtime)

    def concern(self, thing: Runtime | Checkpoint) -> None:
        """Whom it happens to: a runtime, or the source of a checkpoint."""
        if isinstance(thing, Checkpoint):
            self.runtime_id, self.runtime_name = thing.source_id, thing.source_name
        else:
            self.runtime_id, self.runtime_name = thing.id, thing.name


class Journal:
    """Writes events."""

    def __init__(self, events: EventLog) -> None:
        self._events = events

    @contextlib.contextmanager
    def recording(self, kind: str, thing: Runtime | Checkpoint | None = None, /, **details: Any) -> Iterator[Note]:
        """The block is an event: it is written with its duration, and with its error if it fails."""
        caller = details.pop("caller", CALLER.get())
        note = Note(thing, details)
        steps: dict[str, float] = {}
        began, started = time.time_ns() // 1_000_000, time.monotonic()
        outcome: str = "ok"
        try:
            with collecting() as steps:
                yield note
        except BaseException as error:
            outcome = error.code if isinstance(error, ServiceError) else "internal"
            note.details["message"] = str(error)[:_MAX_TEXT]
            raise
        finally:
            if steps:
                note.details["steps_ms"] = steps
            self._events.record(
                Event(
                    id=new_id(),
                    kind=kind,
                    runtime_id=note.runtime_id,
                    runtime_name=note.runtime_name,
                    caller=caller,
                    occurred_at_ms=began,
                    duration_ms=round((time.monotonic() - started) * 1000, 1),
                    outcome=outcome,
                    details=note.details,
                )
            )


def shorten(text: str) -> str:
    """As much of a caller's text as an event keeps."""
    return text if len(text) <= _MAX_TEXT else text[: _MAX_TEXT - 1] + "…"
