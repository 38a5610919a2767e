"""Each verb once a round, for containers with nothing to do, 64 MB and 512 MB of memory."""

from __future__ import annotations

from tests.bench.parties import Party
from tests.bench.setting import Bench
from tests.bench.workload import IDLE, Load, hog

LOADS = (IDLE, hog(64), hog(512))
_EXECS = 5


def measure(bench: Bench) -> None:
    for parties in bench.turns():
        for load in LOADS:
            for party in parties:
                measure_round(bench, party, load)


def measure_round(bench: Bench, party: Party, load: Load) -> None:
    """create, exec, checkpoint, restore, first exec, delete."""

    def add(verb: str, value: float) -> None:
        bench.readings.add(load.name, verb, party.name, value)

    box, spent = party.create(load)
    add("create", spent)
    for _ in range(_EXECS):
        add("exec", party.exec_true(box))
    taken = party.checkpoint(box)
    add("checkpoint", taken.total_ms)
    add("pause", taken.pause_ms)
    restored = party.restore(taken)
    add("restore", restored.restore_ms)
    add("restore_to_first_exec", restored.first_exec_ms)
    add("delete", party.delete(restored.box))
    party.delete(box)
    party.forget(taken)
