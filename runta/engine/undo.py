"""An effect and its undo on neighbouring lines."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Self


class Undo:
    """Collects undos while a block makes effects; runs them in reverse if the block fails, and forgets them if not.

    A failing undo never hides the original error: it becomes a note on it.
    """

    def __init__(self) -> None:
        self._steps: list[tuple[str, Callable[[], object]]] = []

    def push(self, what: str, step: Callable[[], object]) -> None:
        """`what` says in words what the step undoes."""
        self._steps.append((what, step))

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None:
            return
        for what, step in reversed(self._steps):
            try:
                step()
            except Exception as failure:  # noqa: BLE001 - the original error must reach the caller whatever this one is
                error.add_note(f"undoing {what} failed too: {failure}")
