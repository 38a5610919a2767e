"""The house's rules: arrows point down, doors are where they belong."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "runta"
MODULES = sorted(PACKAGE.rglob("*.py"))

FOUNDATION = {"errors", "models", "rules", "layout", "settings", "recipes"}
MAY_IMPORT = {
    "errors": set(),
    "models": set(),
    "rules": {"errors", "models"},
    "layout": set(),
    "settings": {"errors"},
    "recipes": {"errors", "models", "rules"},
    "kernel": FOUNDATION | {"kernel"},
    "store": FOUNDATION | {"kernel", "store"},
    "guest": FOUNDATION | {"guest"},
    "engine": FOUNDATION | {"kernel", "store", "guest", "engine"},
    "api": FOUNDATION | {"api", "engine.port"},
    "client": FOUNDATION | {"client"},
    "prepare": FOUNDATION | {"kernel", "store"},
    "cli": FOUNDATION | {"client", "cli", "kernel.host", "engine.house", "api.serve"},
}
DOORS = {
    "subprocess": {"kernel", "client.spawn", "cli.demo"},
    "ctypes": {"kernel", "store.staging"},
    "pycriu": {"kernel"},
    "pyroute2": {"kernel"},
    "prctl": {"kernel"},
    "fastapi": {"api"},
    "uvicorn": {"api"},
    "typer": {"cli"},
    "httpx": {"client"},
    "sqlite3": {"store"},
}


def name_of(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return ".".join(part for part in parts if part != "__init__")


def room_of(name: str) -> str:
    return name.split(".")[0]


def imports_of(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            if node.module == "runta" or node.module.startswith("runta."):
                yield from (f"{node.module}.{alias.name}" for alias in node.names)
            else:
                yield node.module


def is_allowed(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(f"{one}.") for one in allowed)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_arrows_point_down(path: Path) -> None:
    module = name_of(path)
    if module in ("", "__main__"):
        return
    for imported in imports_of(path):
        if imported.startswith("runta."):
            target = imported.removeprefix("runta.")
            if target.split(".")[0] == "__version__":
                continue
            assert is_allowed(target, MAY_IMPORT[room_of(module)]), f"{module} may not import {target}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_doors(path: Path) -> None:
    module = name_of(path)
    for imported in imports_of(path):
        top = imported.split(".")[0]
        if top in DOORS:
            assert is_allowed(module, DOORS[top]), f"{module} may not import {top}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_habits(path: Path) -> None:
    module, tree = name_of(path), ast.parse(path.read_text())
    assert len(path.read_text().splitlines()) <= 420, f"{module} holds more than one idea"
    for node in ast.walk(tree):
        assert not isinstance(node, ast.Assert), f"{module}: assert disappears with -O"
        assert not (isinstance(node, ast.ExceptHandler) and node.type is None), f"{module}: bare except"
        if isinstance(node, ast.Attribute) and node.attr == "environ" and getattr(node.value, "id", "") == "os":
            assert module == "settings", f"{module} reads the environment"
        if isinstance(node, ast.Attribute) and node.attr == "fork" and getattr(node.value, "id", "") == "os":
            raise AssertionError(f"{module} forks")
