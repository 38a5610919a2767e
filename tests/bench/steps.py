"""Where the milliseconds go: the steps that the service's own events tell, as `steps_ms`, of each kind of call."""

from __future__ import annotations

import statistics
from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from tests.bench.parties.ours import label_of


def break_down(events: Iterable[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Load → kind of event → step → median milliseconds; `whole` is the call, `count` how many of them there were.

    Empty where no event tells its steps.
    """
    found: dict[tuple[str, str], dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    for event in events:
        payload = event["payload"]
        steps = payload.get("steps_ms")
        if isinstance(steps, Mapping) and payload.get("outcome") == "ok":
            readings = found[label_of(str(payload.get("runtime_name"))), event["kind"]]
            readings["whole"].append(float(payload["duration_ms"]))
            for step, spent in steps.items():
                readings[step].append(float(spent))
    tree: dict[str, dict[str, dict[str, float]]] = {}
    for (load, kind), readings in found.items():
        medians = {step: round(statistics.median(values), 2) for step, values in readings.items()}
        tree.setdefault(load, {})[kind] = {"count": len(readings["whole"]), **medians}
    return tree
