"""The README's table of figures, from a run's results. `python -m tests.bench.table` puts the committed run's into
README.md."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.bench import report

ROOT = Path(__file__).parent.parent.parent
RESULTS = ROOT / "tests/bench/results/latest.json"
_LOADS = {"idle": "idle", "64MB": "64 MB", "512MB": "512 MB"}
_HEAD = ("", "ours", "runc", "podman")
_TEXTS = {
    "create": "create a runtime",
    "exec": "exec of `true`",
    "checkpoint": "checkpoint",
    "pause": "of it: the source stands still",
    "restore_to_first_exec": "restore, until the first exec is done",
    "delete": "delete",
}
_ONCE = ("create", "exec")
"""Verbs whose time does not depend on what the container holds."""


def render(results: Mapping[str, Any]) -> str:
    """Markdown: medians in milliseconds, and in brackets how many times ours that is."""
    cases = results["readings"]["verbs"]
    rows = []
    for verb, text in _TEXTS.items():
        for case, name in _LOADS.items():
            if verb not in _ONCE:
                rows.append([f"{text}, {name}", *_cells(cases[case][verb])])
            elif case == "idle":
                rows.append([text, *_cells(cases[case][verb])])
    return report.table(_HEAD, rows)


def _cells(parties: Mapping[str, Mapping[str, float]]) -> list[str]:
    ours = parties["ours"]["median"]
    others = (parties.get(name, {}).get("median") for name in _HEAD[2:])
    return [f"{ours:.0f}", *("" if one is None else f"{one:.0f} ({one / ours:.1f}×)" for one in others)]


def put_into(readme: str, results: Mapping[str, Any]) -> str:
    """The README with its table of figures replaced."""
    head = re.escape(report.table(_HEAD, []).splitlines()[0])
    text, count = re.subn(rf"^{head}\n(\|.*\n)*", render(results) + "\n", readme, flags=re.M)
    if count != 1:
        raise SystemExit("README.md has no table of figures")
    return text


if __name__ == "__main__":
    README = ROOT / "README.md"
    README.write_text(put_into(README.read_text(), json.loads(RESULTS.read_text())))
