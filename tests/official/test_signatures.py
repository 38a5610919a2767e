"""Ours offers the official names with the official parameters, order and defaults; what it adds may be left out."""

from __future__ import annotations

import json
import subprocess
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest

from .service import PYTHONS

CATCH_ALL = {"VAR_POSITIONAL", "VAR_KEYWORD"}


@lru_cache
def offered(package: str) -> dict[str, Any]:
    script = Path(__file__).parent / "names.py"
    done = subprocess.run([PYTHONS[package], script], capture_output=True, text=True, check=True, timeout=60)
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def calls() -> list[tuple[str, str]]:
    return [
        (name, member)
        for name, described in offered("official").items()
        for member, kind in described["members"].items()
        if isinstance(kind, dict)
    ]


def test_same_names() -> None:
    assert set(offered("official")) <= set(offered("ours"))
    assert len(offered("official")) == 37


@pytest.mark.parametrize(("name", "member"), calls(), ids=".".join)
def test_call(name: str, member: str) -> None:
    theirs, ours = (offered(package)[name]["members"].get(member) for package in ("official", "ours"))
    assert ours is not None
    assert ours["async"] == theirs["async"]
    check_parameters(theirs["parameters"], ours["parameters"])


def check_parameters(theirs: list[list[Any]], ours: list[list[Any]]) -> None:
    named = [parameter for parameter in theirs if parameter[1] not in CATCH_ALL]
    assert ours[: len(named)] == named
    if len(named) < len(theirs):
        assert ours[-1][1] in CATCH_ALL
    for added in ours[len(named) :]:
        assert added[1] in CATCH_ALL or (added[1] == "KEYWORD_ONLY" and added[2] is not None)


@pytest.mark.parametrize("name", sorted(offered("official")))
def test_thing(name: str) -> None:
    theirs, ours = offered("official")[name], offered("ours")[name]
    properties = {member for member, kind in theirs["members"].items() if kind == "property"}
    assert properties <= {member for member, kind in ours["members"].items() if kind == "property"}
    assert set(theirs) == set(ours)
    if "values" in theirs:
        assert theirs["values"].items() <= ours["values"].items()
    if "fields" in theirs:
        assert ours["fields"][: len(theirs["fields"])] == theirs["fields"]
        assert all(default is not None for _, default in ours["fields"][len(theirs["fields"]) :])
    if "bases" in theirs:
        assert ours["bases"] == theirs["bases"]
    if name in ("Runta", "AsyncRunta"):
        assert ours["init"] == theirs["init"]
