"""`runta serve`: puts the house together."""

from __future__ import annotations

import asyncio
import logging
import sys
from contextlib import suppress
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Annotated

import typer

from runta.cli.door import Door, Json, door_of
from runta.layout import Layout
from runta.settings import Settings, load_settings

if TYPE_CHECKING:
    from runta.api.serve import Listening

_LOG_FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"


def serve(
    ctx: typer.Context,
    listen: Annotated[
        str | None, typer.Option("--listen", metavar="HOST:PORT", help="TCP address; empty: the Unix socket alone.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Run the service in the foreground until SIGTERM or SIGINT. Runtimes outlive it."""
    settings = load_settings()
    if listen is not None:
        settings = replace(settings, listen=listen)
    logging.basicConfig(level=logging.INFO, format=_LOG_FORMAT, stream=sys.stderr)
    logging.getLogger("httpx").setLevel(logging.WARNING)
    asyncio.run(_serve(settings, door_of(ctx)))


async def _serve(settings: Settings, door: Door) -> None:
    """The engine of this host behind the API. Arrows of the house meet here and nowhere else."""
    from runta.api.serve import serve as serve_api
    from runta.engine.house import build_engine

    def announce(listening: Listening) -> None:
        if door.json:
            told = {name: value for name, value in asdict(listening).items() if name != "token"}
            door.show(told)
            sys.stdout.flush()

    engine = await build_engine(settings)
    try:
        with suppress(asyncio.CancelledError):
            await serve_api(engine, Layout(settings.state_dir, settings.run_dir), settings, announce=announce)
    finally:
        await engine.close()
