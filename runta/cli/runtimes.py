"""Commands on runtimes as wholes: run, ps, inspect, pause, resume, shutdown, boot, rm."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from runta.cli.complaints import ERROR, explain, print_complaint
from runta.cli.door import Door, Json, door_of, usage_error
from runta.cli.tables import format_age, format_record, format_table
from runta.errors import RuntaError

if TYPE_CHECKING:
    from runta.client.sync import Runtime

Name = Annotated[str, typer.Argument(metavar="NAME", help="A runtime's name or id.")]
Names = Annotated[list[str], typer.Argument(metavar="NAME...", help="Names or ids of runtimes.")]
_AWAY = ("shutdown", "error", "crashed", "deleting")
"""States `ps` leaves out unless told otherwise."""
_PROTOCOLS = ("http", "https")


def run(
    ctx: typer.Context,
    name: Annotated[str | None, typer.Option("--name", help="The runtime's name; one is made up otherwise.")] = None,
    image: Annotated[str | None, typer.Option("--image", help="The base image's name or id.")] = None,
    cpus: Annotated[int, typer.Option("--cpus", min=1, help="Virtual CPUs.")] = 1,
    memory: Annotated[int, typer.Option("--memory", min=1, metavar="MIB", help="Memory in MiB.")] = 1024,
    memory_max: Annotated[
        int | None, typer.Option("--memory-max", min=1, metavar="MIB", help="The most memory, in MiB.")
    ] = None,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="A variable for all.")] = None,
    idle_timeout: Annotated[
        int | None, typer.Option("--idle-timeout", min=1, metavar="SECONDS", help="Suspend when idle this long.")
    ] = None,
    publish: Annotated[
        list[str] | None, typer.Option("--publish", "-p", metavar="PORT[/PROTO]", help="A port others may reach.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a runtime and start it."""
    door = door_of(ctx)
    with door.client() as client:
        runtime = client.runtimes.create(
            name,
            image=image,
            vcpus=cpus,
            memory_mib=memory,
            memory_max_mib=memory_max,
            environment=parse_env(env),
            idle_suspend_after_secs=idle_timeout,
            ingress_specs=[_parse_port(text) for text in publish or ()],
        )
        show_new(door, "run", runtime)


def ps(
    ctx: typer.Context,
    every: Annotated[bool, typer.Option("--all", "-a", help="Also those that are shut down or failed.")] = False,
    as_json: Json = False,
) -> None:
    """List runtimes."""
    door = door_of(ctx)
    with door.client() as client:
        found = [runtime.cached_info for runtime in client.runtimes.list()]
    shown = [info for info in found if every or info.status not in _AWAY]
    rows = [
        (
            info.id,
            info.display_name,
            info.status,
            info.resources.requests.vcpus,
            f"{info.resources.requests.memory_mib} MiB",
            format_age(info.raw.get("created_at", "")),
        )
        for info in shown
    ]
    table = format_table(["ID", "NAME", "STATUS", "VCPUS", "MEMORY", "AGE"], rows)
    door.show({"runtimes": [info.raw for info in shown]}, table)


def inspect(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """Tell all about a runtime."""
    from runta.client.local import inspect_runtime

    door = door_of(ctx)
    with door.client() as client:
        record = client.perform(inspect_runtime(name))
    door.show(record, format_record(record))


def pause(ctx: typer.Context, names: Names, as_json: Json = False) -> int:
    """Freeze processes; memory is kept."""
    return _for_each(door_of(ctx), names, "pause", "paused", lambda runtime: runtime.pause())


def resume(ctx: typer.Context, names: Names, as_json: Json = False) -> int:
    """Let paused runtimes go on."""
    return _for_each(door_of(ctx), names, "resume", "running", lambda runtime: runtime.resume())


def shutdown(ctx: typer.Context, names: Names, as_json: Json = False) -> int:
    """End processes; the disk is kept."""
    return _for_each(door_of(ctx), names, "shutdown", "shut down", lambda runtime: runtime.shutdown())


def boot(ctx: typer.Context, names: Names, as_json: Json = False) -> int:
    """Start shut-down runtimes anew on their disks."""
    return _for_each(door_of(ctx), names, "boot", "running", lambda runtime: runtime.boot())


def rm(ctx: typer.Context, names: Names, as_json: Json = False) -> int:
    """Remove runtimes with their disks. Checkpoints stay."""
    return _for_each(door_of(ctx), names, "rm", "removed", lambda runtime: runtime.delete())


def show_new(door: Door, action: str, runtime: Runtime) -> None:
    """A new runtime: its id alone where a program reads."""
    info = runtime.cached_info
    words = f"{info.display_name} is {info.status} ({info.id})"
    door.show({"action": action, "runtime": info.raw}, words, bare=info.id)


def parse_env(pairs: list[str] | None) -> dict[str, str]:
    """`K=V` words as variables."""
    variables = {}
    for pair in pairs or ():
        name, sign, value = pair.partition("=")
        if not sign or not name:
            raise usage_error(f"{pair!r} is not K=V")
        variables[name] = value
    return variables


def _for_each(door: Door, names: list[str], action: str, became: str, act: Callable[[Runtime], None]) -> int:
    """Act on each; one that fails is told and does not stop the others."""
    code = 0
    with door.client() as client:
        for name in names:
            try:
                runtime = client.runtimes.get(name)
                act(runtime)
            except (RuntaError, RuntimeError, TimeoutError) as err:
                complaint = explain(err)
                if complaint is None:
                    raise
                print_complaint(complaint, as_json=door.json)
                code = ERROR
                continue
            gone = action == "rm"
            told = {"id": runtime.id, "display_name": runtime.name} if gone else runtime.cached_info.raw
            door.show({"action": action, "runtime": told}, f"{runtime.name} is {became}", bare="")
    return code


def _parse_port(text: str) -> dict[str, object]:
    """`PORT` or `PORT/PROTO`."""
    port, _, protocol = text.partition("/")
    if not port.isdigit() or not 1 <= int(port) <= 65535 or (protocol or "http") not in _PROTOCOLS:
        raise usage_error(f"{text!r} is not PORT or PORT/PROTO with PROTO {' or '.join(_PROTOCOLS)}")
    return {"protocol": protocol or "http", "runtime_port": int(port)}
