"""What we want to reach, and how far a run is from it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

Value = Callable[[str, str, str, str], float]
"""suite, case, verb, party → the median. Raises KeyError where it was not measured."""


@dataclass(frozen=True)
class Aim:
    """`measure` of the medians must not be above `limit`; `at_least`: not below it."""

    text: str
    limit: float
    measure: Callable[[Value], float]
    unit: str = "×"
    at_least: bool = False
    event: str | None = None
    """Our call that it is about, with 64 MB in the suite `verbs`: its longest step bounds it."""


def _worst_pause(value: Value) -> float:
    """Our pause to raw runc's whole checkpoint, where it is worst, up to 1,000 changed files."""
    cases = (("verbs", "idle"), ("verbs", "64MB"), ("files", "1 files"), ("files", "1000 files"))
    return max(value(suite, case, "pause", "ours") / value(suite, case, "checkpoint", "runc") for suite, case in cases)


def _verb(case: str, verb: str, top: str, bottom: str, of: str | None = None) -> Callable[[Value], float]:
    """One party's verb divided by another's, `of` if that has another name there, in the suite `verbs`."""
    return lambda value: value("verbs", case, verb, top) / value("verbs", case, of or verb, bottom)


def _exec(other: str) -> Callable[[Value], float]:
    return lambda value: value("exec", "1 at once", "exec", other) / value("exec", "1 at once", "exec", "ours")


_FORKS, _RAW = "10 at once, per fork", "10 restores, 1 at a time, per restore"
_BIG, _EMPTY = "fork of 20,000 files, 500 MB", "fork of an empty runtime"

AIMS = (
    Aim(
        "restore to first exec, 64 MB: at most 1.1 × raw `runc restore`",
        1.1,
        _verb("64MB", "restore_to_first_exec", "ours", "runc", "restore"),
    ),
    Aim(
        "restore to first exec, 64 MB: at least 8 × faster than podman's",
        8,
        _verb("64MB", "restore_to_first_exec", "podman", "ours"),
        at_least=True,
        event="runtime.restore",
    ),
    Aim(
        "checkpoint, 64 MB: at least 4 × faster than podman's",
        4,
        _verb("64MB", "checkpoint", "podman", "ours"),
        at_least=True,
        event="checkpoint.create",
    ),
    Aim("pause, up to 1,000 changed files: at most raw `runc checkpoint`", 1, _worst_pause),
    Aim(
        "10 forks at once, each: at most 0.6 × a raw `runc restore`, one after the other",
        0.6,
        lambda value: value("forks", "idle", _FORKS, "ours") / value("forks", "idle", _RAW, "runc"),
    ),
    Aim("create: at most 1.5 × `runc run -d`", 1.5, _verb("idle", "create", "ours", "runc")),
    Aim("exec: at least 5 × faster than `runc exec`", 5, _exec("runc"), at_least=True),
    Aim("exec: at least 20 × faster than `podman exec`", 20, _exec("podman"), at_least=True),
    Aim(
        "50 idle runtimes: at most 3 MB each",
        3,
        lambda value: value("memory", "50 idle", "total_per_runtime_mb", "ours"),
        unit=" MB",
    ),
    Aim(
        "create of the 101st runtime: at most 1.2 × the first",
        1.2,
        lambda value: value("growth", "100 running", "create", "ours") / value("growth", "0 running", "create", "ours"),
    ),
    Aim(
        "fork of 20,000 files and 500 MB of changes: at most 50 ms more than of an empty runtime",
        50,
        lambda value: value("forks", _BIG, "restore", "ours") - value("forks", _EMPTY, "restore", "ours"),
        unit=" ms",
    ),
    Aim(
        "disk of that fork before it writes: at most 200 KB",
        200,
        lambda value: value("forks", _BIG, "disk_kb", "ours"),
        unit=" KB",
    ),
)


def judge(readings: Mapping[str, Any], where_ms: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Each aim with what was measured, by how many percent it is missed (None: not measured in this run), and which
    steps of ours bound it then."""

    def value(suite: str, case: str, verb: str, party: str) -> float:
        return float(readings[suite][case][verb][party]["median"])

    judged = [_judge_one(aim, value) for aim in AIMS]
    calls = where_ms.get("verbs", {}).get("64mb", {})
    for aim, one in zip(AIMS, judged, strict=True):
        if one["met"] is False and aim.event in calls:
            one["bound"] = _bound(calls[aim.event])
    return judged


def _bound(steps: Mapping[str, float]) -> str:
    """The longest steps, which make up most of a call."""
    spent = sorted(((ms, name) for name, ms in steps.items() if name not in ("whole", "count")), reverse=True)
    told = ", ".join(f"`{name}` {ms:.0f}" for ms, name in spent[:3])
    return f"of our {steps['whole']:.0f} ms: {told}"


def _judge_one(aim: Aim, value: Value) -> dict[str, Any]:
    judged = {"aim": aim.text, "limit": aim.limit, "unit": aim.unit.strip(), "at_least": aim.at_least}
    try:
        measured = aim.measure(value)
    except KeyError:
        return {**judged, "measured": None, "met": None, "missed_by_percent": None}
    met = measured >= aim.limit if aim.at_least else measured <= aim.limit
    missed = 0.0 if met else round(100 * abs(measured - aim.limit) / aim.limit, 1)
    return {**judged, "measured": round(measured, 3), "met": met, "missed_by_percent": missed}
