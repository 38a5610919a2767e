"""Commands on secrets: set, ls, rm. A value is read from a file or stdin, never from the words of a command."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from runta.cli.door import Json, door_of, usage_error
from runta.cli.tables import format_table

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Keep secrets, encrypted at rest. Their values never come out again.",
)


@app.command("set")
def set_secret(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The secret's name.")],
    file: Annotated[Path | None, typer.Option("--file", help="Read the value from this file.")] = None,
    cache_ttl: Annotated[
        int, typer.Option("--cache-ttl-secs", min=0, max=3600, help="How long a user of it may keep the value.")
    ] = 0,
    as_json: Json = False,
) -> None:
    """Store a secret, or replace its value. Without --file the value is asked for, or read from stdin."""
    door = door_of(ctx)
    value = _read_value(file)
    if not value:
        raise usage_error("the value is empty")
    with door.client() as client:
        info = client.secrets.set(name, value, cache_ttl_secs=cache_ttl)
    shown = {"id": info.id, "display_name": info.display_name, "cache_ttl_secs": info.cache_ttl_secs}
    door.show({"action": "set", "secret": shown}, f"{info.display_name} is stored ({info.id})", bare=info.id)


@app.command("ls")
def list_secrets(ctx: typer.Context, as_json: Json = False) -> None:
    """List secrets, without their values."""
    door = door_of(ctx)
    with door.client() as client:
        found = client.secrets.list()
    rows = [(one.id, one.display_name, one.value_preview or "", one.cache_ttl_secs) for one in found]
    shown = [{"id": one.id, "display_name": one.display_name, "value_preview": one.value_preview} for one in found]
    door.show({"secrets": shown}, format_table(["ID", "NAME", "VALUE", "TTL"], rows))


@app.command("rm")
def remove_secret(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The secret's name or id.")],
    as_json: Json = False,
) -> None:
    """Forget a secret."""
    door = door_of(ctx)
    with door.client() as client:
        client.secrets.delete(name)
    door.show({"action": "rm", "secret": {"display_name": name}}, f"{name} is removed", bare="")


def _read_value(file: Path | None) -> str:
    """Without the line end that editors and `echo` leave."""
    if file is not None:
        return file.read_text().removesuffix("\n")
    if sys.stdin.isatty():
        return str(typer.prompt("value", hide_input=True))
    return sys.stdin.read().removesuffix("\n")
