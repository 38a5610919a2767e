"""`make bench`: ours through the SDK, raw runc on the same bundle, and podman, in one run and taking turns.

Writes `latest.json` and `latest.md`; a run without some suite or without podman writes `partial.*`. Machines are noisy:
read the ratios.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tests.bench import host, steps
from tests.bench.aims import judge
from tests.bench.clock import ratios_of
from tests.bench.report import render_report
from tests.bench.setting import Bench, prepared
from tests.bench.suites import SUITES
from tests.bench.table import RESULTS

_ROUNDS, _QUICK_ROUNDS = 11, 2


def main(argv: Sequence[str] | None = None) -> None:
    args = _parse(argv)
    chosen = [name for name in SUITES if name in (args.only or SUITES)]
    rounds = args.rounds or (_QUICK_ROUNDS if args.quick else _ROUNDS)
    with prepared(rounds=rounds, quick=args.quick, podman="podman" not in args.without) as bench:
        results = measure(bench, chosen)
    complete = len(chosen) == len(SUITES) and not args.without
    write(results, args.out, "latest" if complete else "partial")


def _parse(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description=__doc__)
    parser.add_argument("--rounds", type=int, help=f"rounds of each suite (default {_ROUNDS}, quick {_QUICK_ROUNDS})")
    parser.add_argument("--only", nargs="+", choices=list(SUITES), metavar="NAME", help=f"of {', '.join(SUITES)}")
    parser.add_argument("--quick", action="store_true", help="few rounds, and less of what takes long")
    parser.add_argument("--without", nargs="+", choices=["podman"], default=[], help="leave a party out")
    parser.add_argument("--out", type=Path, default=RESULTS.parent, help="where the results go")
    return parser.parse_args(argv)


def measure(bench: Bench, chosen: Sequence[str]) -> dict[str, Any]:
    """Run the suites, one after the other."""
    seconds: dict[str, float] = {}
    where: dict[str, Any] = {}
    last = None
    for name in chosen:
        bench.say(name)
        bench.readings.suite = name
        started = time.monotonic()
        SUITES[name](bench)
        seconds[name] = round(time.monotonic() - started, 1)
        events = bench.ours.events_after(last)
        last = events[-1]["id"] if events else last
        where[name] = steps.break_down(events)
    readings = bench.readings.summary()
    return {
        "when": datetime.now(UTC).date().isoformat(),
        "host": host.describe(bench.root, podman=bench.podman is not None),
        "rounds": bench.rounds,
        "quick": bench.quick,
        "notes": list(dict.fromkeys(bench.notes)),
        "seconds": seconds,
        "aims": judge(readings, where),
        "where_ms": {name: found for name, found in where.items() if found},
        "readings": readings,
        "ours_divided_by": ratios_of(readings),
    }


def write(results: dict[str, Any], directory: Path, name: str) -> None:
    """`<name>.json` and `<name>.md`; the report goes to stdout too."""
    directory.mkdir(parents=True, exist_ok=True)
    (directory / f"{name}.json").write_text(json.dumps(results, indent=1, ensure_ascii=False) + "\n")
    text = render_report(results)
    (directory / f"{name}.md").write_text(text)
    print(text)
    print(f"bench: {directory / name}.json and .md are written", file=sys.stderr)


if __name__ == "__main__":
    main()
