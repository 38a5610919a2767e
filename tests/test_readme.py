"""README tells the truth: every command, option, setting, target and figure in it exists."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from dataclasses import fields
from functools import lru_cache
from pathlib import Path

import pytest

from runta.settings import Settings, load_settings
from tests.bench.table import RESULTS, render

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
GROUPS = {"snapshot", "image", "secret"}


def commands() -> list[tuple[str, ...]]:
    """Every `runta …` in the text, as far as it names a command."""
    found = set()
    for line in re.findall(r"`(runta [^`]+)`", README) + re.findall(r"^    (runta .+)$", README, re.M):
        words = shlex.split(line, comments=True)[1:]
        found.add(tuple(words[:2]) if words[0] in GROUPS else (words[0],))
    return sorted(found)


@lru_cache
def help_of(*words: str) -> str:
    done = subprocess.run([sys.executable, "-m", "runta", *words, "--help"], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, f"runta {' '.join(words)} does not exist: {done.stderr}"
    return done.stdout


@pytest.mark.parametrize("words", commands(), ids=" ".join)
def test_commands_exist_with_their_options(words: tuple[str, ...]) -> None:
    text = help_of(*words)
    assert "--json" in text or (words[0] in GROUPS and len(words) == 1)
    for line in re.findall(rf"runta {' '.join(words)} ([^`\n]*)", README):
        for option in re.findall(r"(?:^| )(--[a-z-]+|-[a-z])(?= |$)", line.split(" -- ")[0]):
            assert option in text, f"runta {' '.join(words)} has no {option}"


def test_every_command_is_in_the_readme() -> None:
    listed = re.findall(r"^  ([a-z]+)  ", help_of().split("Commands:")[1], re.M)
    assert listed
    for name in listed:
        assert f"runta {name}" in README, f"README does not tell of runta {name}"


def test_settings_exist() -> None:
    names = set(re.findall(r"`RUNTA_([A-Z_]+)`", README))
    assert names == {field.name.upper() for field in fields(Settings)} - {"CONFIG_FILE"} | {"CONFIG"}


@pytest.mark.parametrize(("name", "default"), re.findall(r"\| `RUNTA_([A-Z_]+)` \| `([^`]+)` \|", README))
def test_defaults(name: str, default: str) -> None:
    assert str(getattr(load_settings({}), name.lower())) == default


def test_targets_exist() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|^    )make ([a-z-]+)", README, re.M)):
        assert re.search(rf"^{target}:", makefile, re.M), f"there is no make {target}"


def test_files_exist() -> None:
    for path in set(re.findall(r"`((?:rootfs|tests|systemd)/[^`]+)`", README)):
        assert (ROOT / path).exists(), f"there is no {path}"


def test_figures_are_those_of_the_committed_run() -> None:
    assert render(json.loads(RESULTS.read_text())) in README
