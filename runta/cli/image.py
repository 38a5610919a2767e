"""Commands on base images: ls, build, import, rm."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, BinaryIO

import typer

from runta.cli.door import Json, door_of
from runta.cli.tables import format_age, format_size, format_table

_CHUNK = 1 << 18

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    help="Base images: what runtimes are made from.",
)


@app.command("ls")
def ls(ctx: typer.Context, as_json: Json = False) -> None:
    """List images."""
    from runta.client.local import list_images

    door = door_of(ctx)
    with door.client() as client:
        found = client.perform(list_images())
    rows = [
        (
            image["id"],
            image["name"],
            format_size(int(image.get("size_bytes", 0))),
            image.get("source", ""),
            format_age(str(image.get("created_at", ""))),
        )
        for image in found
    ]
    door.show({"images": found}, format_table(["ID", "NAME", "SIZE", "SOURCE", "AGE"], rows))


@app.command("build")
def build(
    ctx: typer.Context,
    name: Annotated[str, typer.Argument(metavar="NAME", help="The recipe's name.")],
    as_json: Json = False,
) -> None:
    """Build the image of a recipe. This can take minutes."""
    from runta.client.local import build_image

    door = door_of(ctx)
    with door.client() as client:
        image = client.perform(build_image(name))
    door.show({"action": "build", "image": image}, f"{image['name']} is ready ({image['id']})", bare=image["id"])


@app.command("import")
def import_archive(
    ctx: typer.Context,
    archive: Annotated[str, typer.Argument(metavar="ARCHIVE", help="A tar, OCI or docker archive; `-`: stdin.")],
    name: Annotated[str, typer.Argument(metavar="NAME", help="The image's name.")],
    as_json: Json = False,
) -> None:
    """Make an image of a root file system's tar, or of an OCI or docker archive."""
    from runta.client.local import record_of

    door = door_of(ctx)
    with door.client() as client:
        if archive == "-":
            reply = client.driver.stream_up(
                "POST", "/v2/local/images/import", {"name": name}, pieces_of(sys.stdin.buffer)
            )
        else:
            with Path(archive).open("rb") as file:
                reply = client.driver.stream_up("POST", "/v2/local/images/import", {"name": name}, pieces_of(file))
    image = record_of(reply)
    door.show({"action": "import", "image": image}, f"{image['name']} is ready ({image['id']})", bare=image["id"])


@app.command("rm")
def rm(
    ctx: typer.Context,
    image: Annotated[str, typer.Argument(metavar="IMAGE", help="An image's name or id.")],
    as_json: Json = False,
) -> None:
    """Remove an image. One that a runtime or a checkpoint needs is refused."""
    from runta.client.local import delete_image

    door = door_of(ctx)
    with door.client() as client:
        client.perform(delete_image(image))
    door.show({"action": "rm", "image": {"name": image}}, f"{image} is removed", bare="")


def pieces_of(file: BinaryIO) -> Iterator[bytes]:
    """A file's content as it can be read."""
    while piece := file.read(_CHUNK):
        yield piece
