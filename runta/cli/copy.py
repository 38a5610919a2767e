"""`runta cp`: files and directories between here and a runtime, or a tar stream."""

from __future__ import annotations

import posixpath
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from runta.cli import terminal
from runta.cli.door import Json, door_of, usage_error
from runta.cli.image import pieces_of

if TYPE_CHECKING:
    from runta.client.blocking import Driver

Place = tuple[str | None, str]
"""Runtime (None: here) and path."""
STREAM = "-"


def cp(
    ctx: typer.Context,
    source: Annotated[str, typer.Argument(metavar="SOURCE", help="LOCAL, NAME:/PATH, or `-`: a tar stream.")],
    target: Annotated[str, typer.Argument(metavar="TARGET", help="NAME:/PATH, LOCAL, or `-`: a tar stream.")],
    as_json: Json = False,
) -> None:
    """Copy a file or a directory: LOCAL NAME:/PATH or NAME:/PATH LOCAL.

    What exists and is a directory gets the source inside; `SOURCE/.` copies a directory's contents.
    """
    here, there = _parse(source), _parse(target)
    if (here[0] is None) is (there[0] is None):
        raise usage_error("one of SOURCE and TARGET must be NAME:/PATH, the other one here")
    door = door_of(ctx)
    with door.client() as client:
        if there[0] is not None:
            _copy_in(client.driver, here[1], there[0], there[1])
        elif here[0] is not None:
            _copy_out(client.driver, here[0], here[1], there[1])
    told = {"action": "cp", "source": source, "target": target}
    if door.json and target != STREAM:
        door.show(told)


def _parse(text: str) -> Place:
    """`NAME:PATH` is a runtime's, unless a slash comes before the colon."""
    name, colon, path = text.partition(":")
    if not colon or not name or "/" in name:
        return None, text
    return name, path or "."


def _copy_in(driver: Driver, source: str, runtime: str, target: str) -> None:
    from runta.client.archive import pack_tree
    from runta.client.files import is_directory, put_archive, upload

    if source == STREAM:
        put_archive(driver, runtime, target, pieces_of(sys.stdin.buffer))
        return
    path = Path(source)
    if not path.exists():
        raise FileNotFoundError(2, "No such file or directory", source)
    contents = source.endswith("/.") or source in (".", "..")
    if path.is_dir() and not contents and is_directory(driver, runtime, target):
        put_archive(driver, runtime, target, pack_tree(path, path.resolve().name))
    elif not path.is_dir() and not target.endswith("/") and is_directory(driver, runtime, target):
        upload(driver, runtime, source, f"{target}/")
    else:
        upload(driver, runtime, source, target)


def _copy_out(driver: Driver, runtime: str, source: str, target: str) -> None:
    from runta.client.files import download, download_dir_contents
    from runta.client.local import local_path

    if target == STREAM:
        if terminal.is_a_terminal(terminal.STDOUT):
            raise usage_error("a tar stream is not for a terminal; redirect it")
        with driver.stream_down(local_path(runtime, "archive"), {"path": source}) as pieces:
            for piece in pieces:
                terminal.write_output(terminal.STDOUT, piece)
    elif source.endswith("/."):
        download_dir_contents(driver, runtime, posixpath.dirname(source) or "/", target, paths=None, choose=None)
    else:
        download(driver, runtime, source, target)
