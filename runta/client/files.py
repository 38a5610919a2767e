"""Files of a runtime: small ones as steps, everything else as tar streams through the blocking driver."""

from __future__ import annotations

import posixpath
import tarfile
from collections.abc import Iterable, Sequence
from pathlib import Path

from runta.client.answers import raise_for_status
from runta.client.archive import Filter, first_member, pack_bytes, pack_tree, settle, staging, unpack
from runta.client.blocking import Driver
from runta.client.local import local_path
from runta.client.steps import BUSY, Reply, Request, Steps
from runta.errors import ApiError

EXECUTABLE = 0o755


def read_file(ref: str, path: str, max_bytes: int | None) -> Steps[bytes]:
    """A file's content, of any size; cut after `max_bytes`."""
    reply: Reply = yield Request(method="GET", path=local_path(ref, "content"), query={"path": path}, retry_on=BUSY)
    raise_for_status(reply)
    return reply.body if max_bytes is None else reply.body[:max_bytes]


def write_file(ref: str, path: str, content: bytes | str, executable: bool) -> Steps[None]:
    """Replace a file's content; an executable one gets mode 755, another keeps the mode it has."""
    data = content.encode() if isinstance(content, str) else bytes(content)
    place, query = local_path(ref, "content"), {"path": path}
    if executable:
        directory, name = split_target(path)
        place, query = local_path(ref, "archive"), {"path": directory}
        data = b"".join(pack_bytes(data, name, EXECUTABLE))
    raise_for_status((yield Request(method="PUT", path=place, query=query, content=data)))


def upload(driver: Driver, ref: str, source: str | Path, target: str) -> None:
    """Copy a local file or directory into the runtime.

    A file goes to `target`, or below it if that ends in `/`; a directory's contents go into the directory `target`.
    Raises FileNotFoundError, or ApiError.
    """
    path = Path(source)
    if path.is_dir():
        put_archive(driver, ref, target, pack_tree(path, "."))
        return
    path = path.resolve(strict=True)
    directory, name = split_target(target + Path(source).name if target.endswith("/") else target)
    put_archive(driver, ref, directory, pack_tree(path, name))


def download(driver: Driver, ref: str, source: str, target: str | Path) -> None:
    """Copy a file or directory of the runtime to `target`, or below it if that ends in `/` or is a directory."""
    place = Path(target)
    if str(target).endswith("/") or place.is_dir():
        place = place / (posixpath.basename(source.rstrip("/")) or "root")
    with staging(place.parent) as content:
        _unpack_from(driver, ref, source, content)
        settle(content, place)


def download_dir_contents(
    driver: Driver,
    ref: str,
    source: str,
    target: str | Path,
    *,
    paths: Sequence[str] | None,
    choose: Filter | None,
) -> None:
    """Merge a directory of the runtime into a local one; `paths` (relative) are taken without what lies below them.

    Raises NotADirectoryError if `source` is none, ApiError for what is missing, before anything is merged.
    """
    if paths is not None and not paths:
        return
    place = Path(target)
    with staging(place.parent) as content:
        if paths is None:
            _unpack_from(driver, ref, source, content, choose=choose)
        else:
            _unpack_selected(driver, ref, source, content, paths, _without_links(choose))
        if not content.is_dir():
            raise NotADirectoryError(f"{source} is not a directory of the runtime")
        place.mkdir(parents=True, exist_ok=True)
        settle(content, place)


def is_directory(driver: Driver, ref: str, path: str) -> bool:
    """Whether the runtime has a directory there; False for a file, and for nothing."""
    try:
        with driver.stream_down(local_path(ref, "archive"), {"path": path}) as pieces:
            member = first_member(pieces)
    except ApiError as err:
        if err.status_code != 404:
            raise
        return False
    return member is not None and member.isdir()


def put_archive(driver: Driver, ref: str, directory: str, pieces: Iterable[bytes]) -> None:
    """Unpack a tar stream into a directory of the runtime."""
    raise_for_status(driver.stream_up("PUT", local_path(ref, "archive"), {"path": directory}, pieces))


def split_target(path: str) -> tuple[str, str]:
    """Directory and name; `.` is the home directory inside.

    Raises ValueError where no name is left.
    """
    directory, name = posixpath.split(path)
    if name in ("", ".", ".."):
        raise ValueError(f"{path!r} is not a file's path")
    return directory or ".", name


def _unpack_from(
    driver: Driver, ref: str, source: str, content: Path, *, only: str | None = None, choose: Filter | None = None
) -> None:
    with driver.stream_down(local_path(ref, "archive"), {"path": source}) as pieces:
        unpack(pieces, content, only=only, choose=choose)


def _unpack_selected(
    driver: Driver, ref: str, source: str, content: Path, paths: Sequence[str], choose: Filter
) -> None:
    content.mkdir()
    for path in paths:
        if posixpath.isabs(path) or ".." in path.split("/"):
            raise ValueError(f"{path!r} must be relative, without '..'")
        _unpack_from(driver, ref, posixpath.join(source, path), content, only=path, choose=choose)


def _without_links(choose: Filter | None) -> Filter:
    """A selected symbolic link is left out."""

    def take(member: tarfile.TarInfo, destination: str) -> tarfile.TarInfo | None:
        if member.issym():
            return None
        return member if choose is None else choose(member, destination)

    return take
