"""exec of `true`: through the SDK, through the exec stream itself, and by `runc exec` and `podman exec`."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

from websockets.asyncio.client import unix_connect
from websockets.exceptions import ConnectionClosed

from tests.bench.parties.ours import Ours
from tests.bench.setting import Bench
from tests.bench.workload import IDLE

_WIDTHS = (1, 16)
_OURS, _OTHERS, _QUICK = 300, 100, 20
"""Executions at least: of ours, of the others, and of the others in a quick run."""
_SLICES = 5
"""Parts the executions are split into, so that the parties take turns."""


def measure(bench: Bench) -> None:
    parties = [party for party in (bench.ours, bench.runc, bench.podman) if party]
    boxes = {party.name: party.create(IDLE)[0] for party in parties}
    others = (_QUICK if bench.quick else _OTHERS) // _SLICES
    for width in _WIDTHS:
        case = f"{width} at once"
        for party in parties:
            party.exec_true(boxes[party.name])
        for _ in range(_SLICES):
            for party in parties:
                count = _OURS // _SLICES if party is bench.ours else others
                box = boxes[party.name]
                values = call_many(lambda party=party, box=box: party.exec_true(box), max(count, width), width)
                bench.readings.add_all(case, "exec", party.name, values)
            values = asyncio.run(stream_many(bench.ours, boxes["ours"].id, _OURS // _SLICES, width))
            bench.readings.add_all(case, "exec by the stream alone", "ours", values)
    for party in parties:
        party.delete(boxes[party.name])


def call_many(call: Callable[[], float], count: int, width: int) -> list[float]:
    """What `count` calls return, `width` of them at a time."""
    with ThreadPoolExecutor(width) as pool:
        return list(pool.map(lambda _: call(), range(count)))


async def stream_many(ours: Ours, runtime_id: str, count: int, width: int) -> list[float]:
    """Milliseconds of each of `count` exec streams, from the connection to its close."""
    turns = asyncio.Semaphore(width)

    async def one() -> float:
        async with turns:
            started = time.perf_counter()
            await run_true(ours, runtime_id)
            return (time.perf_counter() - started) * 1000

    return await asyncio.gather(*(one() for _ in range(count)))


async def run_true(ours: Ours, runtime_id: str) -> None:
    """One exec WebSocket. Raises RuntimeError where it does not end with `true`'s exit."""
    url, last = f"ws://localhost/v2/runtimes/{runtime_id}/exec/stream", {}
    async with unix_connect(str(ours.layout.socket), url, compression=None) as socket:
        await socket.send(json.dumps({"type": "start", "command": "true", "args": []}))
        await socket.send(json.dumps({"type": "close_stdin"}))
        try:
            while True:
                last = json.loads(await socket.recv())
        except ConnectionClosed:
            pass
    if last.get("type") != "exit" or last["code"] != 0:
        raise RuntimeError(f"the exec stream ended with {last}")
