"""Images: base root file systems, immutable.

    images/<id>/
    ├── rootfs/          the tree, plain ids, mode 0755
    ├── hardlinks.json   groups of names in it that are one file
    └── image.json       what it is; written last

A name stands for the newest image of that name: building one anew makes a new id, and what was made from the old one
keeps it. Everything is made in staging and comes into being by one rename, so a reader sees an image whole or not at
all; deletion is the same backwards. `images/<id>` is 0700: the trees hold setuid programs with plain ids, which no user
of this host may reach. (An overlay reads its lower dirs as whoever mounted it; a sandbox's root needs no way to them.)
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import stat
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import BinaryIO, Protocol

from runta.errors import FailedPrecondition, InternalError, NotFound
from runta.kernel.tree import find_hard_links
from runta.layout import Layout
from runta.models import Image, new_id, now
from runta.recipes import Recipe, get_recipe, list_recipes
from runta.rules import check_name, suggest
from runta.store.codec import decode, encode
from runta.store.imports import Imported, import_archive
from runta.store.layers import write_hard_links
from runta.store.skeleton import complete
from runta.store.staging import commit, remove_tree, stage, sync_directory, sync_file_system
from runta.store.unpack import explain

logger = logging.getLogger(__name__)

_MODE_PASS = 0o711
_MODE_PRIVATE = 0o700
_MODE_ROOTFS = 0o755
_MODE_LOCK = 0o600
_BLOCK = 512
_MANIFEST = "image.json"


class RootfsRoom(Protocol):
    """What the host's programs do for images: `runta.kernel.rootfs.Rootfs`."""

    def build(self, recipe: Recipe, target: Path) -> None: ...

    def open_zstd(self, path: Path) -> contextlib.AbstractContextManager[BinaryIO]: ...


class Images:
    """The images of one state directory. Every method may block; none needs the service."""

    def __init__(self, layout: Layout, rootfs: RootfsRoom, recipes: Mapping[str, Recipe] | None = None) -> None:
        self._layout = layout
        self._rootfs = rootfs
        self._recipes = recipes

    def list(self) -> list[Image]:
        """Every image, oldest first."""
        found = [_read(place) for place in self._layout.images.glob("*/") if (place / _MANIFEST).exists()]
        return sorted((image for image in found if image), key=lambda image: (image.created_at, image.id))

    def get(self, ref: str) -> Image:
        """An image by its id, or the newest of a name. Raises NotFound."""
        image = self.find(ref)
        if image is not None:
            return image
        known = [known.name for known in self.list()]
        build = (
            f"build it: runta image build {ref}" if ref in self._known_recipes() else "`runta image build` makes one"
        )
        close = suggest(ref, known)
        raise NotFound(f"there is no image {ref!r}", hint="; ".join(filter(None, (close, build))))

    def find(self, ref: str) -> Image | None:
        """As `get`, or None."""
        images = self.list()
        by_id = next((image for image in images if image.id == ref), None)
        return by_id or next((image for image in reversed(images) if image.name == ref), None)

    def build(self, name: str) -> Image:
        """Build an image by its recipe. Raises InvalidArgument for an unknown one, KernelError where it failed."""
        recipe = get_recipe(name, self._known_recipes())

        def fill(place: Path) -> Imported:
            self._rootfs.build(recipe, place / "rootfs")
            return Imported(env=recipe.env)

        return self._make(name, f"recipe {name}", fill)

    def ensure(self, name: str) -> tuple[Image, bool]:
        """The image of this name, built if there is none, and whether it was; one builder at a time on this host."""
        with self._builders_lock():
            image = self.find(name)
            return (image, False) if image else (self.build(name), True)

    def import_archive(self, name: str, path: Path) -> Image:
        """Make an image of a root file system's tar, an OCI layout or the output of `docker save`.

        Raises InvalidArgument for what is refused; nothing is left behind then.
        """

        def fill(place: Path) -> Imported:
            rootfs = place / "rootfs"
            rootfs.mkdir()
            scratch = place / "scratch"
            scratch.mkdir()
            try:
                return import_archive(path, rootfs, scratch, self._rootfs)
            finally:
                remove_tree(scratch)

        check_name(name, "image")
        return self._make(name, path.name, fill)

    def remove(self, ref: str, users: Callable[[str], Sequence[str]]) -> None:
        """Delete an image. `users` names what stands on an id; raises FailedPrecondition while anything does."""
        image = self.get(ref)
        using = users(image.id)
        if using:
            shown = ", ".join(list(using)[:5]) + (" …" if len(using) > 5 else "")
            raise FailedPrecondition(
                f"image {image.name} is in use",
                cause=f"{shown} {'stand' if len(using) > 1 else 'stands'} on it",
                hint="delete those first",
            )
        self._ensure_directories()
        place = self._layout.image(image.id)
        with stage(self._layout.staging) as staged:
            place.rename(staged / image.id)
            sync_directory(self._layout.images)
        logger.info("image %s (%s) deleted", image.name, image.id)

    def _make(self, name: str, source: str, fill: Callable[[Path], Imported]) -> Image:
        self._ensure_directories()
        image_id = new_id()
        with stage(self._layout.staging) as staged:
            place = staged / image_id
            place.mkdir(mode=_MODE_PRIVATE)
            rootfs = place / "rootfs"
            try:
                imported = fill(place)
                complete(rootfs)
            except OSError as err:
                raise explain(err, name) from err
            rootfs.chmod(_MODE_ROOTFS)
            write_hard_links(place, find_hard_links(rootfs))
            image = Image(
                id=image_id,
                name=name,
                created_at=now(),
                size_bytes=measure(rootfs),
                source=source,
                env=dict(imported.env),
            )
            (place / _MANIFEST).write_text(json.dumps(encode(image), indent=2) + "\n")
            sync_file_system(place)
            commit(place, self._layout.image(image_id))
        if imported.skipped:
            logger.info(
                "image %s: left out %d device nodes, %s first", name, len(imported.skipped), imported.skipped[0]
            )
        logger.info("image %s (%s) made, %d bytes", name, image_id, image.size_bytes)
        return image

    def _known_recipes(self) -> Mapping[str, Recipe]:
        return list_recipes() if self._recipes is None else self._recipes

    def _ensure_directories(self) -> None:
        for path, mode in (
            (self._layout.state_dir, _MODE_PASS),
            (self._layout.images, _MODE_PASS),
            (self._layout.staging, _MODE_PRIVATE),
        ):
            if not path.is_dir():
                path.mkdir(mode=mode, parents=True)
                path.chmod(mode)

    @contextlib.contextmanager
    def _builders_lock(self) -> Iterator[None]:
        self._ensure_directories()
        fd = os.open(self._layout.images / ".lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE_LOCK)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX)
            yield
        finally:
            os.close(fd)


def _read(place: Path) -> Image | None:
    """An image's description; None if it was deleted meanwhile."""
    try:
        return decode(Image, json.loads((place / _MANIFEST).read_text()))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, TypeError) as err:
        raise InternalError(
            f"the image at {place} can't be read",
            cause=str(err),
            hint="move that directory away and build the image again",
        ) from err


def measure(tree: Path) -> int:
    """Bytes on disk of a tree; a file with several names counts once."""
    seen: set[int] = set()
    total = 0
    for folder, directories, names in os.walk(tree):
        for name in (*directories, *names):
            info = os.lstat(os.path.join(folder, name))  # noqa: PTH118
            if info.st_ino not in seen:
                total += info.st_blocks * _BLOCK
            if not stat.S_ISDIR(info.st_mode) and info.st_nlink > 1:
                seen.add(info.st_ino)
    return total
