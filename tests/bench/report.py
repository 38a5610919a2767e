"""A run as Markdown: the machine, the aims, every reading."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from tests.bench.clock import unit_of

PARTIES = ("ours", "runc", "podman")


def render_report(results: Mapping[str, Any]) -> str:
    """The whole report."""
    host = ", ".join(f"{name} {value}" for name, value in results["host"].items() if value is not None)
    rounds = f"{results['rounds']} rounds" + (" (a quick run)" if results["quick"] else "")
    parts = [f"# Figures of {results['when']}", f"{host}. {rounds}; medians, p99 in brackets."]
    parts += [f"- {note}" for note in results["notes"]]
    parts += ["## Aims", _aims(results["aims"])]
    for suite, cases in results["readings"].items():
        parts += [f"## {suite} ({results['seconds'][suite]} s)", _readings(cases)]
    if results["where_ms"]:
        parts += ["## Where the milliseconds go", _steps(results["where_ms"])]
    return "\n\n".join(parts) + "\n"


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """A Markdown table."""
    names = list(head)
    lines = [names, ["---"] * len(names), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _aims(aims: Iterable[Mapping[str, Any]]) -> str:
    return table(("aim", "measured", "met"), ([one["aim"], _measured(one), _met(one)] for one in aims))


def _measured(aim: Mapping[str, Any]) -> str:
    if aim["measured"] is None:
        return "not in this run"
    return f"{number(aim['measured'])} {aim['unit']}"


def _met(aim: Mapping[str, Any]) -> str:
    if aim["met"] is None:
        return ""
    if aim["met"]:
        return "yes"
    bound = f"; {aim['bound']}" if aim.get("bound") else ""
    return f"no, missed by {aim['missed_by_percent']:.0f} %{bound}"


def _readings(cases: Mapping[str, Any]) -> str:
    others = sorted({name for verbs in cases.values() for one in verbs.values() for name in one} - set(PARTIES))
    columns = (*PARTIES, *others)
    rows = (
        [case, verb, unit_of(verb), *(_figures(parties.get(name)) for name in columns), *_ratios(parties)]
        for case, verbs in cases.items()
        for verb, parties in verbs.items()
    )
    return table(("case", "verb", "unit", *columns, "ours to runc", "ours to podman"), rows)


def _figures(figures: Mapping[str, float] | None) -> str:
    return "" if figures is None else f"{number(figures['median'])} ({number(figures['p99'])})"


def _ratios(parties: Mapping[str, Mapping[str, float]]) -> list[str]:
    """Ours divided by the others', of the medians."""
    found = []
    for name in PARTIES[1:]:
        both = "ours" in parties and name in parties and parties[name]["median"]
        found.append(f"{parties['ours']['median'] / parties[name]['median']:.2f}×" if both else "")
    return found


def _steps(suites: Mapping[str, Any]) -> str:
    rows = (
        [suite, load, kind, str(steps["count"]), name, number(spent)]
        for suite, loads in suites.items()
        for load, kinds in loads.items()
        for kind, steps in kinds.items()
        for name, spent in steps.items()
        if name != "count"
    )
    return table(("suite", "load", "call", "count", "step", "ms"), rows)


def number(value: float) -> str:
    """Three digits at least, and none that noise has long eaten."""
    if abs(value) >= 100:
        return f"{value:.0f}"
    return f"{value:.1f}" if abs(value) >= 10 else f"{value:.2f}"
