"""What an image can be built from: the recipes in the package (`rootfs/images/*.toml` in the source tree)."""

from __future__ import annotations

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib import resources
from importlib.resources.abc import Traversable
from typing import Any

from runta.errors import InternalError, InvalidArgument
from runta.rules import suggest

BUILDERS = frozenset({"mmdebstrap", "busybox"})


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How to build one image."""

    name: str
    description: str
    builder: str
    """`mmdebstrap` or `busybox`."""
    suite: str = ""
    sources: tuple[str, ...] = ()
    """Lines of sources.list; they stay in the image."""
    packages: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    """Paths no package may install (dpkg's path-exclude)."""
    env: Mapping[str, str] = field(default_factory=dict)


def list_recipes(directory: Traversable | None = None) -> Mapping[str, Recipe]:
    """Every recipe by its name, sorted; empty where the package has no data."""
    folder = directory if directory is not None else resources.files("runta") / "data" / "images"
    if not folder.is_dir():
        return {}
    texts = [entry.read_text(encoding="utf-8") for entry in folder.iterdir() if entry.name.endswith(".toml")]
    recipes = [parse_recipe(text) for text in texts]
    return {recipe.name: recipe for recipe in sorted(recipes, key=lambda recipe: recipe.name)}


def get_recipe(name: str, recipes: Mapping[str, Recipe]) -> Recipe:
    """The recipe of this name. Raises InvalidArgument naming the ones there are."""
    if name in recipes:
        return recipes[name]
    if not recipes:
        raise InvalidArgument(
            f"there is no recipe for an image {name!r}",
            cause="this installation came without recipes",
            hint="`make setup` copies them into the package; `runta image import` needs none",
        )
    raise InvalidArgument(
        f"there is no recipe for an image {name!r}",
        cause=f"recipes: {', '.join(recipes)}",
        hint=suggest(name, recipes),
    )


def parse_recipe(text: str) -> Recipe:
    """Read one recipe. Raises InternalError: recipes are part of the package."""
    try:
        table: dict[str, Any] = tomllib.loads(text)
        values: dict[str, Any] = {key: tuple(item) if isinstance(item, list) else item for key, item in table.items()}
        recipe = Recipe(**values)
    except (ValueError, TypeError) as err:
        raise InternalError("a recipe can't be read", cause=str(err), hint="install runta again") from err
    if recipe.builder not in BUILDERS:
        raise InternalError(
            f"recipe {recipe.name} names an unknown builder {recipe.builder!r}", hint="install runta again"
        )
    return recipe
