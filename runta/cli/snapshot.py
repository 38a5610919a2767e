"""Commands on checkpoints: create, ls, restore, rollback, rm, inspect."""

from __future__ import annotations

from typing import Annotated

import typer

from runta.cli.complaints import ERROR, explain, print_complaint
from runta.cli.door import Json, door_of
from runta.cli.runtimes import show_new
from runta.cli.tables import format_age, format_record, format_table
from runta.errors import RuntaError

Checkpoint = Annotated[str, typer.Argument(metavar="CHECKPOINT", help="A checkpoint's name or id.")]

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Capture runtimes, and make new ones of what was captured.",
)


@app.command("create")
def create(
    ctx: typer.Context,
    runtime: Annotated[str, typer.Argument(metavar="RUNTIME", help="What to capture: name or id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The checkpoint's name.")],
    kind: Annotated[str, typer.Option("--kind", help="full (also: live), or cold of a shut-down runtime.")] = "full",
    as_json: Json = False,
) -> None:
    """Capture a runtime: its files and its processes."""
    door = door_of(ctx)
    with door.client() as client:
        info = client.runtimes.get(runtime).checkpoints.create(kind, name)
    words = f"{info.display_name} is {info.state} ({info.id})"
    door.show({"action": "create", "checkpoint": info.raw}, words, bare=info.id)


@app.command("ls")
def ls(ctx: typer.Context, as_json: Json = False) -> None:
    """List checkpoints."""
    door = door_of(ctx)
    with door.client() as client:
        found = client.checkpoints.list()
    rows = [
        (
            info.id,
            info.display_name,
            info.state,
            info.kind or "",
            (info.raw.get("source_runtime") or {}).get("name", ""),
            format_age(info.raw.get("created_at", "")),
        )
        for info in found
    ]
    table = format_table(["ID", "NAME", "STATE", "KIND", "SOURCE", "AGE"], rows)
    door.show({"checkpoints": [info.raw for info in found]}, table)


@app.command("restore")
def restore(
    ctx: typer.Context,
    checkpoint: Checkpoint,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The new runtime's name.")],
    lazy: Annotated[bool, typer.Option("--lazy", help="Let it run before its memory is in.")] = False,
    as_json: Json = False,
) -> None:
    """Make a new runtime of a checkpoint; as often as you like."""
    door = door_of(ctx)
    with door.client() as client:
        found = client.checkpoints.get(checkpoint)
        show_new(door, "restore", client.runtimes.create(name, checkpoint_id=found.id, lazy=lazy))


@app.command("rollback")
def rollback(
    ctx: typer.Context,
    runtime: Annotated[str, typer.Argument(metavar="RUNTIME", help="What to put back: name or id.")],
    checkpoint: Checkpoint,
    as_json: Json = False,
) -> None:
    """Put a runtime back to one of its checkpoints, in its place; what it did since is lost."""
    door = door_of(ctx)
    with door.client() as client:
        found = client.runtimes.get(runtime)
        found.roll_back(client.checkpoints.get(checkpoint).id)
        show_new(door, "rollback", found)


@app.command("rm")
def rm(
    ctx: typer.Context,
    names: Annotated[list[str], typer.Argument(metavar="CHECKPOINT...", help="Names or ids of checkpoints.")],
    as_json: Json = False,
) -> int:
    """Remove checkpoints. Runtimes restored from them go on."""
    door = door_of(ctx)
    code = 0
    with door.client() as client:
        for name in names:
            try:
                client.checkpoints.delete(name)
            except RuntaError as err:
                complaint = explain(err)
                if complaint is None:
                    raise
                print_complaint(complaint, as_json=door.json)
                code = ERROR
                continue
            door.show({"action": "rm", "checkpoint": {"display_name": name}}, f"{name} is removed", bare="")
    return code


@app.command("inspect")
def inspect(ctx: typer.Context, checkpoint: Checkpoint, as_json: Json = False) -> None:
    """Tell all about a checkpoint."""
    from runta.client.local import inspect_checkpoint

    door = door_of(ctx)
    with door.client() as client:
        record = client.perform(inspect_checkpoint(checkpoint))
    door.show(record, format_record(record))
