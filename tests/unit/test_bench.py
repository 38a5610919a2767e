"""The bench's arithmetic: what is made of readings."""

from __future__ import annotations

import pytest

from tests.bench.aims import AIMS, judge
from tests.bench.clock import Readings, ratios_of, summarize, unit_of
from tests.bench.parties.podman import require_podman
from tests.bench.steps import break_down
from tests.bench.table import put_into, render
from tests.bench.workload import longest_gap


def readings(**medians: float) -> dict:
    """Readings of the suite `verbs`, one case: `verb__party=median`."""
    made = Readings(suite="verbs")
    for name, value in medians.items():
        verb, _, party = name.rpartition("__")
        for case in ("idle", "64MB", "512MB"):
            made.add(case, verb, party, value)
    return made.summary()


ALL = {
    f"{verb}__{party}": float(number)
    for verb in ("create", "exec", "checkpoint", "pause", "restore", "restore_to_first_exec", "delete")
    for number, party in enumerate(("ours", "runc", "podman"), start=1)
}


def test_summary() -> None:
    assert summarize([float(number) for number in range(1, 201)]) == {
        "median": 100.5,
        "p99": 199,
        "min": 1,
        "max": 200,
        "n": 200,
    }
    assert summarize([3.0])["p99"] == 3.0


def test_a_warm_up_is_not_counted() -> None:
    made = Readings(suite="verbs", counting=False)
    made.add("idle", "create", "ours", 1.0)
    assert made.summary() == {}


def test_units() -> None:
    assert [unit_of(verb) for verb in ("create", "upload_mib_s", "disk_kb")] == ["ms", "MiB/s", "KB"]


def test_ratios() -> None:
    found = ratios_of(readings(create__ours=3, create__runc=2, exec__runc=1))
    assert found["verbs"]["idle"] == {"create": {"runc": 1.5}}


def test_aims() -> None:
    judged = {one["aim"].split(":")[0]: one for one in judge(readings(create__ours=3, create__runc=1), {})}
    assert len(judge({}, {})) == len(AIMS)
    assert judged["create"]["met"] is False
    assert judged["create"]["missed_by_percent"] == 100
    assert judged["50 idle runtimes"]["met"] is None


def test_longest_gap_is_one_that_touches_the_interval() -> None:
    assert longest_gap("1.0 9.0\n10.0 10.5\n11 \n", 10.2, 11) == pytest.approx(500)
    assert longest_gap("", 0, 1) == 0


def test_steps() -> None:
    payload = {"outcome": "ok", "duration_ms": 5.0, "steps_ms": {"dump": 3.0}, "runtime_name": "64mb-7"}
    events = [{"kind": "checkpoint.create", "payload": payload}, {"kind": "runtime.create", "payload": {}}]
    assert break_down(events) == {"64mb": {"checkpoint.create": {"count": 1, "whole": 5.0, "dump": 3.0}}}


def test_the_readme_gets_a_new_table() -> None:
    old, new = ({"readings": readings(**{**ALL, "create__ours": value})} for value in (1.0, 5.0))
    text = f"before\n\n{render(old)}\n\nafter\n"
    assert put_into(text, new) == f"before\n\n{render(new)}\n\nafter\n"


def test_without_podman_the_run_says_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda *args, **options: None)
    with pytest.raises(SystemExit, match=r"make bench-setup.*--without podman"):
        require_podman()


def test_a_missed_aim_says_what_bounds_it() -> None:
    found = {"verbs": {"64MB": {"checkpoint": {"podman": {"median": 300}, "ours": {"median": 100}}}}}
    steps = {"whole": 100, "count": 3, "runc checkpoint": 70, "seal": 25, "freeze": 1, "quiesce": 0}
    judged = judge(found, {"verbs": {"64mb": {"checkpoint.create": steps}}})
    (missed,) = (one for one in judged if one["met"] is False)
    assert missed["bound"] == "of our 100 ms: `runc checkpoint` 70, `seal` 25, `freeze` 1"
