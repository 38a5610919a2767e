"""Raw `runc` on the same bundle: overlay, directories and bundle are made before the clock starts, by the engine's own
parts; the clock runs around the bare program."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from runta.engine.house import make_directories
from runta.engine.sandbox import Sandboxes
from runta.guest import Guest
from runta.kernel import criu
from runta.kernel.cgroups import find_cgroups
from runta.kernel.host import find_criu, find_init_binary, find_subordinate_ids
from runta.kernel.network import NetworkHelper
from runta.kernel.process import run
from runta.kernel.rootfs import Rootfs
from runta.kernel.runc import Runc
from runta.layout import Layout, RuntimeDir
from runta.models import Resources, Runtime, RuntimeSpec, RuntimeStatus, TaskSpec, new_id, now
from runta.settings import Settings, tool_path
from runta.store.images import Images
from runta.store.inits import Inits
from runta.store.layers import Layers
from tests.bench.clock import timed
from tests.bench.parties import MEMORY_MIB, Restored, Taken
from tests.bench.workload import READY, Load

_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}
_TASK_TIMEOUT = 300.0


class Gate:
    """Lets calls in only when all `count` of them have come, and then `width` at a time."""

    def __init__(self, count: int, width: int) -> None:
        self._all = threading.Barrier(count, action=self._open)
        self._few = threading.Semaphore(width)
        self._lock = threading.Lock()
        self._opened = self._closed = 0.0

    def _open(self) -> None:
        self._opened = time.perf_counter()

    @contextlib.contextmanager
    def passage(self) -> Iterator[None]:
        self._all.wait(timeout=120)
        with self._few:
            yield
        with self._lock:
            self._closed = time.perf_counter()

    @property
    def span_ms(self) -> float:
        """From the moment the first could go in until the last was out."""
        return (self._closed - self._opened) * 1000


@dataclass(frozen=True)
class TimedRunc(Runc):
    """runc with a clock on each verb: the bare program's time, milliseconds, of the last call."""

    spent: dict[str, float] = field(default_factory=dict)
    gates: list[Gate] = field(default_factory=list)
    """At most one: what restores wait at."""

    def _call(self, words: tuple[str | Path, ...], **options: Any) -> None:
        verb = str(words[0])
        with self.gates[0].passage() if self.gates and verb == "restore" else contextlib.nullcontext():
            self.spent[verb] = timed(lambda: Runc._call(self, words, **options))[1]


class PlainSandboxes(Sandboxes):
    """The same bundle, with the options that a user of runc has to give CRIU and no more."""

    def _write_bundle(self, runtime: Runtime, place: RuntimeDir, *, limited: bool) -> None:
        super()._write_bundle(runtime, place, limited=limited)
        config = json.loads((place.bundle / "config.json").read_text())
        (place.bundle / "config.json").write_text(json.dumps({**config, "hooks": {}}))
        place.criu_conf.write_text("network-lock nftables\nlink-remap\nfile-locks\ntcp-established\n")


class Raw:
    """Containers of raw runc, made from the same parts as ours."""

    name = "runc"

    def __init__(self, root: Path, settings: Settings) -> None:
        self.layout = Layout(root / "raw", root / "raw-run")
        make_directories(self.layout)
        self.layout.images.rmdir()
        self.layout.images.symlink_to(settings.state_dir / "images")
        self.network = NetworkHelper(self.layout.network_fifo)
        self.network.start()
        inits = Inits(self.layout)
        self.init = inits.install(find_init_binary())
        self.runc = TimedRunc("runc", self.layout.runc_root, f"{find_criu(settings).parent}:{tool_path()}")
        self.boxes = PlainSandboxes(
            layout=self.layout,
            layers=Layers(self.layout),
            inits=inits,
            cgroups=find_cgroups(),
            runc=self.runc,
        )
        self.image = Images(self.layout, Rootfs()).get("debian")

    def create(self, load: Load) -> tuple[Runtime, float]:
        runtime = self._compose()
        self.boxes.boot(runtime)
        spent = self.runc.spent["run"]
        if load.argv:
            self._task(runtime, load.argv, detached=True)
            ready = self.layout.runtime(runtime.id).merged / READY.lstrip("/")
            while not ready.exists():
                time.sleep(0.02)
        else:
            self._task(runtime, ("true",))
        return runtime, spent

    def _compose(self, layers: tuple[str, ...] = ()) -> Runtime:
        ids = find_subordinate_ids()
        if ids is None:
            raise SystemExit("no subordinate ids: run `make setup`")
        resources = Resources(vcpus=os.cpu_count() or 1, memory_mib=MEMORY_MIB)
        spec = RuntimeSpec(image=self.image.id, ids=ids, init=self.init, layers=layers, resources=resources)
        status, moment = RuntimeStatus.RUNNING, now()
        return Runtime(
            id=new_id(),
            name="raw",
            status=status,
            desired_status=status,
            spec=spec,
            created_at=moment,
            updated_at=moment,
        )

    def run(self, box: Runtime, argv: Sequence[str]) -> None:
        code = self._task(box, argv)
        if code != 0:
            raise RuntimeError(f"{argv[0]} ended with code {code} in a container of raw runc")

    def _task(self, box: Runtime, argv: Sequence[str], *, detached: bool = False) -> int:
        """Run a task of the guest init, whose processes are in a dump; those of `runc exec` are not."""
        return asyncio.run(self._drive(self.layout.runtime(box.id).socket, tuple(argv), detached))

    async def _drive(self, socket: Path, argv: tuple[str, ...], detached: bool) -> int:
        guest, code = Guest(socket), 0
        await guest.wait_ready()
        stream = await guest.start(TaskSpec(argv=argv, stdin=False, detached=detached), env=_ENV)
        if not detached:
            async with asyncio.timeout(_TASK_TIMEOUT):
                async for event in stream:
                    code = getattr(event, "code", code)
        await stream.aclose()
        await guest.quiesce()
        await guest.aclose()
        return code

    def exec_true(self, box: Runtime) -> float:
        words = ("runc", "--root", self.layout.runc_root, "exec", box.id, "true")
        return timed(lambda: run(words, timeout=60, path=self.runc.path))[1]

    def checkpoint(self, box: Runtime) -> Taken:
        """The dump alone is timed: runc captures no files. They are copied afterwards, for a restore."""
        dump, place, layer = self.layout.staging / new_id(), self.layout.runtime(box.id), new_id()
        (dump / "work").mkdir(parents=True)
        self.runc.checkpoint(box.id, dump=dump, work=dump / "work", log=place.log / "runc.log")
        frozen_us = criu.read_image(dump / "work" / "stats-dump")[0]["dump"]["frozen_time"]
        shutil.rmtree(dump / "work")
        (self.layout.layers / layer).mkdir()
        shutil.copytree(place.upper, self.layout.layers / layer / "tree", symlinks=True)
        return Taken((dump, layer), self.runc.spent["checkpoint"], int(frozen_us) / 1000)

    def restore(self, taken: Taken) -> Restored:
        dump, layer = taken.handle
        fork = self._compose((layer,))
        self.boxes.restore(fork, dump)
        spent = self.runc.spent["restore"]
        return Restored(fork, spent, spent + self.exec_true(fork))

    def restore_many(self, taken: Taken, count: int, width: int) -> tuple[list[Runtime], float]:
        """So many restores of one dump, `width` at a time: milliseconds from the first one's begin to the last one's
        end, all overlays and bundles being ready before."""
        dump, layer = taken.handle
        forks = [self._compose((layer,)) for _ in range(count)]
        gate = Gate(count, width)
        self.runc.gates.append(gate)
        try:
            with ThreadPoolExecutor(count) as pool:
                list(pool.map(lambda fork: self.boxes.restore(fork, dump), forks))
        finally:
            self.runc.gates.clear()
        return forks, gate.span_ms

    def read(self, box: Runtime, path: str) -> str:
        return (self.layout.runtime(box.id).merged / path.lstrip("/")).read_text()

    def delete(self, box: Runtime) -> float:
        self.runc.delete(box.id, log=self.layout.runtime(box.id).log / "runc.log")
        spent = self.runc.spent["delete"]
        self.boxes.destroy(box.id)
        return spent

    def forget(self, taken: Taken) -> None:
        dump, layer = taken.handle
        shutil.rmtree(dump)
        shutil.rmtree(self.layout.layers / layer)

    def close(self) -> None:
        for entry in list(self.layout.runtimes.iterdir()):
            with contextlib.suppress(Exception):
                self.boxes.destroy(entry.name)
        self.network.close()
        self.boxes.close()
