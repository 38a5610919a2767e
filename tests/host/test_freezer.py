"""Freezing processes that come and go."""

from __future__ import annotations

from runta.kernel.cgroups import _waits_for_vfork as waits_for_vfork
from runta.kernel.cgroups import find_cgroups

SPAWNER = (
    "for i in 1 2 3; do setsid sh -c 'while :; do date > /tmp/x; sleep 0.001; done' >/dev/null 2>&1 & done; sleep 0.2"
)


def test_a_runtime_whose_processes_come_and_go_can_be_frozen(bring_up) -> None:
    """Each round may catch one in the middle of a vfork."""
    box = bring_up(lambda source: source.exec(SPAWNER))
    cgroups = find_cgroups()
    for _ in range(100):
        cgroups.freeze(box.id)
        try:
            assert cgroups.is_frozen(box.id)
            assert not any(waits_for_vfork(pid) for pid in cgroups.processes(box.id)), "CRIU could not seize it"
        finally:
            cgroups.thaw(box.id)
    assert box.exec("echo alive").stdout_text == "alive\n"
