"""Layers: captured upper dirs, plain ids, read-only ever after; the lower dirs of what is restored from them.

    layers/<id>/
    ├── tree/            the captured upper dir
    └── hardlinks.json   groups of names in it that are one file

An image's groups are found once and kept beside it, `images/<id>/hardlinks.json`.
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Collection, Sequence
from pathlib import Path

from runta.kernel.tree import find_hard_links
from runta.layout import Layout
from runta.store.flatten import flatten_trees
from runta.store.staging import commit, remove_tree, stage, sync_file_system

MAX_CHAIN = 15
"""Layers below an upper dir; with the image, a lookup passes 16 lower dirs at most."""
_HARD_LINKS = "hardlinks.json"
_FLAT = uuid.UUID("6f6e656c-6179-4572-8000-666c61740000")
"""Namespace of the ids of flat layers (RFC 9562, version 5): the same chain has the same flat layer."""
_MODE_PRIVATE = 0o700


class Layers:
    """What layers there are."""

    def __init__(self, layout: Layout) -> None:
        self._layout = layout

    def tree(self, layer_id: str) -> Path:
        """The lower dir of a layer."""
        return self._layout.layer(layer_id) / "tree"

    def lowers(self, image_id: str, layer_ids: Sequence[str]) -> list[Path]:
        """The lower dirs of a runtime, newest first."""
        return [*(self.tree(layer) for layer in layer_ids), self._layout.image_rootfs(image_id)]

    def shorten(self, layer_ids: tuple[str, ...]) -> tuple[str, ...]:
        """The same chain, or one flat layer that shows what a long one does; that is made at most once.

        An overlay takes a limited number of lower dirs, and looks a name up in each of them. Raises OSError.
        """
        if len(layer_ids) <= MAX_CHAIN:
            return layer_ids
        flat = str(uuid.uuid5(_FLAT, "".join(layer_ids)))
        if not self._layout.layer(flat).exists():
            with stage(self._layout.staging) as staged:
                (staged / "layer").mkdir(mode=_MODE_PRIVATE)
                flatten_trees([self.tree(layer) for layer in layer_ids], staged / "layer" / "tree")
                index_hard_links(staged / "layer", staged / "layer" / "tree")
                sync_file_system(staged)
                with contextlib.suppress(FileExistsError):  # somebody flattened the same chain meanwhile
                    commit(staged / "layer", self._layout.layer(flat))
        return (flat,)

    def keep(self, staged: Path, layer_id: str) -> None:
        """Give a staged layer its place."""
        commit(staged, self._layout.layer(layer_id))

    def sweep(self, needed: Collection[str]) -> None:
        """Remove layers that no runtime and no checkpoint needs."""
        for entry in self._layout.layers.iterdir():
            if entry.name not in needed:
                remove_tree(entry)

    def find_hard_links(self, image_id: str, layer_ids: Sequence[str]) -> list[list[str]]:
        """Groups of names that are one file in some lower dir of a runtime."""
        layers = [(self._layout.layer(layer), self.tree(layer)) for layer in layer_ids]
        places = [*layers, (self._layout.image(image_id), self._layout.image_rootfs(image_id))]
        groups: list[list[str]] = []
        for place, tree in places:
            groups.extend(_read_hard_links(place, tree))
        return groups


def _read_hard_links(place: Path, tree: Path) -> list[list[str]]:
    """What was found before; a file that is missing, or was torn when the host went down, is made anew."""
    try:
        groups: list[list[str]] = json.loads((place / _HARD_LINKS).read_text(errors="surrogateescape"))
    except (FileNotFoundError, ValueError):
        return index_hard_links(place, tree)
    return groups


def index_hard_links(place: Path, tree: Path) -> list[list[str]]:
    """Find a tree's groups, and keep them beside it."""
    groups = find_hard_links(tree)
    write_hard_links(place, groups)
    return groups


def write_hard_links(place: Path, groups: list[list[str]]) -> None:
    """Keep a tree's groups beside it, written whole or not at all."""
    temporary = place / f".{_HARD_LINKS}.{uuid.uuid4()}"
    temporary.write_text(json.dumps(groups, ensure_ascii=False), errors="surrogateescape")
    temporary.rename(place / _HARD_LINKS)
