"""The command fork."""

from __future__ import annotations

from typing import Annotated

import typer

from runta.cli.complaints import ERROR, explain, print_complaint
from runta.cli.door import Json, door_of


def fork(
    ctx: typer.Context,
    runtime: Annotated[str, typer.Argument(metavar="RUNTIME", help="What to fork: name or id.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The fork's name; of several, NAME-1, NAME-2 …")],
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=100, help="How many.")] = 1,
    as_json: Json = False,
) -> int:
    """Make new runtimes of one that runs, from this very instant. It goes on."""
    door = door_of(ctx)
    code = 0
    with door.client() as client:
        made = client.runtimes.get(runtime).fork(count, name=name)
    for one in made:
        if one.error is not None:
            complaint = explain(one.error)
            if complaint is not None:
                print_complaint(complaint, as_json=door.json)
            code = ERROR
    found = [one.runtime.cached_info for one in made if one.runtime is not None]
    words = "\n".join(f"{info.display_name} is {info.status} ({info.id})" for info in found)
    bare = "\n".join(info.id for info in found)
    door.show({"action": "fork", "runtimes": [info.raw for info in found]}, words, bare=bare)
    return code
