"""Readings and what is told of them. Times are milliseconds; every other verb's name ends in its unit."""

from __future__ import annotations

import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, TypeVar

T = TypeVar("T")
UNITS = ("mib_s", "files_s", "kb", "mb")
"""Units a verb's name may end in. A KB has 1024 bytes, an MB 1024 KB."""


def timed(call: Callable[[], T]) -> tuple[T, float]:
    """What a call returns, and how long it took, milliseconds."""
    started = time.perf_counter()
    result = call()
    return result, (time.perf_counter() - started) * 1000


@dataclass
class Readings:
    """Values by suite, case, verb and party. While `counting` is false they are dropped: a warm-up."""

    suite: str = ""
    counting: bool = True
    values: dict[tuple[str, str, str, str], list[float]] = field(default_factory=lambda: defaultdict(list))

    def add(self, case: str, verb: str, party: str, value: float | None) -> None:
        """Keep one value of the suite that runs; None: the party has no such figure."""
        if self.counting and value is not None:
            self.values[self.suite, case, verb, party].append(value)

    def add_all(self, case: str, verb: str, party: str, values: Iterable[float]) -> None:
        for value in values:
            self.add(case, verb, party, value)

    def summary(self) -> dict[str, Any]:
        """suite → case → verb → party → figures."""
        tree: dict[str, Any] = {}
        for (suite, case, verb, party), values in self.values.items():
            tree.setdefault(suite, {}).setdefault(case, {}).setdefault(verb, {})[party] = summarize(values)
        return tree


def summarize(values: list[float]) -> dict[str, float]:
    """Median, p99 (of fewer than 100 values the largest), smallest, largest and count."""
    ordered = sorted(values)
    return {
        "median": round(statistics.median(ordered), 2),
        "p99": round(ordered[min(len(ordered) - 1, int(len(ordered) * 0.99))], 2),
        "min": round(ordered[0], 2),
        "max": round(ordered[-1], 2),
        "n": len(ordered),
    }


def unit_of(verb: str) -> str:
    """A verb's unit, as it is written."""
    unit = next((unit for unit in UNITS if verb.endswith(f"_{unit}")), "ms")
    return {"mib_s": "MiB/s", "files_s": "files/s", "kb": "KB", "mb": "MB"}.get(unit, unit)


def ratios_of(readings: dict[str, Any]) -> dict[str, Any]:
    """suite → case → verb → other party → ours divided by it, of the medians. Below 1 ours is the smaller one."""
    found: dict[str, Any] = {}
    for suite, cases in readings.items():
        for case, verbs in cases.items():
            for verb, parties in verbs.items():
                others = {name: figures["median"] for name, figures in parties.items() if name != "ours"}
                if "ours" in parties and others:
                    row = {name: round(parties["ours"]["median"] / value, 3) for name, value in others.items() if value}
                    found.setdefault(suite, {}).setdefault(case, {})[verb] = row
    return found
