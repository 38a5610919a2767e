"""The README's table of figures, from a run's results: `python -m tests.bench.table < results.json`."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from typing import Any

WORKLOADS = ("idle", "64MB", "512MB")
ROWS = (
    ("create", "create a runtime", "run"),
    ("exec", "exec of `true`", "exec"),
    ("checkpoint", "checkpoint, until it is ready", "checkpoint"),
    ("pause", "of it: the source stands still", "checkpoint"),
    ("restore_to_first_exec", "restore, until the first exec is done", "restore"),
)


def render(results: Mapping[str, Any]) -> str:
    """Markdown: milliseconds of ours, and the ratio to raw runc's verb."""
    medians, ratios = results["medians_ms"], results["ratios_to_raw_runc"]
    lines = ["| | raw runc's verb | idle | process of 64 MB | process of 512 MB |", "|---|---|---|---|---|"]
    for verb, text, peer in ROWS:
        cells = " | ".join(
            f"{medians[f'ours.{load}.{verb}']:.0f} ({ratios[f'{load}.{verb}']:.2f}×)" for load in WORKLOADS
        )
        lines.append(f"| {text} | `{peer}` | {cells} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(render(json.load(sys.stdin)))
