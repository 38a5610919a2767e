"""What every command shares: JSON or words, and the client."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

if TYPE_CHECKING:
    from runta.client.sync import Runta

ATTEMPTS = 3
"""Tries of a request: a person waits less patiently than a program."""


@dataclass
class Door:
    """One run of the command line."""

    json: bool = False

    @contextmanager
    def client(self) -> Iterator[Runta]:
        """A client of the configured service; the embedded one is started if need be."""
        from runta.client.sync import Runta

        with Runta(retry_max_attempts=ATTEMPTS) as client:
            yield client

    def show(self, value: Any, words: str | None = None, *, bare: str | None = None) -> None:
        """The value as JSON; or words on a terminal, and `bare` (default: the same words) where a program reads."""
        if self.json:
            print(json.dumps(value, indent=2 if is_terminal() else None, default=str))
            return
        text = words if is_terminal() or bare is None else bare
        if text:
            print(text)

    def show_line(self, value: Any, words: str) -> None:
        """One of many, at once: a line of JSON, or of words."""
        print(json.dumps(value, default=str) if self.json else words, flush=True)


def door_of(ctx: typer.Context) -> Door:
    """The door of this run."""
    return cast(Door, ctx.find_root().obj)


def remember_json(ctx: typer.Context, value: bool) -> bool:
    """`--json`, before or after the command's name."""
    if value:
        door_of(ctx).json = True
    return value


Json = Annotated[bool, typer.Option("--json", help="Print JSON.", callback=remember_json, is_eager=True)]


def is_terminal() -> bool:
    """Whether a person reads what we print."""
    return sys.stdout.isatty()


def usage_error(text: str) -> typer.BadParameter:
    """What is wrong with the words of the command line."""
    return typer.BadParameter(text)
