"""`make bench`: ours against raw runc on the same bundle, in one run and taking turns. Prints JSON: milliseconds and ratios.

Ours is measured from the outside, through the SDK and a service of its own; raw runc is timed as the bare program, on a bundle
and an overlay that were made before the clock started. These machines are noisy: read the ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from runta import Runta
from runta.client.spawn import can_connect
from runta.engine.house import make_directories
from runta.engine.sandbox import Sandboxes
from runta.guest import Guest
from runta.kernel import hook
from runta.kernel.cgroups import find_cgroups
from runta.kernel.host import criu_version, find_criu, find_init_binary, find_subordinate_ids, runc_version
from runta.kernel.network import NetworkHelper
from runta.kernel.process import run
from runta.kernel.rootfs import Rootfs
from runta.kernel.runc import Runc
from runta.layout import Layout
from runta.models import Resources, Runtime, RuntimeSpec, RuntimeStatus, TaskSpec, new_id, now
from runta.settings import Settings, load_settings, tool_path
from runta.store.images import Images
from runta.store.inits import Inits
from runta.store.layers import Layers

WORKLOADS = {"idle": 0, "64MB": 64, "512MB": 512}
MEMORY_MIB = 2048
HOG = "import os, time; x = bytearray(os.urandom(1 << 20) * {mib}); open('/tmp/ready', 'w').write('1'); time.sleep(1e6)"


class Clock:
    """Readings by name, in milliseconds."""

    def __init__(self) -> None:
        self.readings: dict[str, list[float]] = defaultdict(list)

    @contextlib.contextmanager
    def timing(self, name: str) -> Iterator[None]:
        started = time.perf_counter()
        yield
        self.readings[name].append((time.perf_counter() - started) * 1000)

    def medians(self) -> dict[str, float]:
        return {name: round(statistics.median(values), 2) for name, values in sorted(self.readings.items())}


class TimedRunc(Runc):
    """runc with a clock on each verb: the bare program's time."""

    clock: Clock
    label: str = ""

    def _call(self, words, **options):  # type: ignore[no-untyped-def]
        with self.clock.timing(f"{self.label}.{words[0]}"):
            super()._call(words, **options)


class Raw:
    """Containers of raw runc, made from the same parts as ours."""

    def __init__(self, root: Path, clock: Clock, settings: Settings) -> None:
        self.layout = Layout(root / "raw", root / "raw-run")
        make_directories(self.layout)
        self.layout.images.rmdir()
        self.layout.images.symlink_to(settings.state_dir / "images")
        self.clock = clock
        self.network = NetworkHelper(self.layout.network_socket)
        self.network.start()
        inits = Inits(self.layout)
        self.init = inits.install(find_init_binary())
        self.runc = TimedRunc("runc", self.layout.runc_root, f"{find_criu(settings).parent}:{tool_path()}")
        object.__setattr__(self.runc, "clock", clock)
        self.boxes = Sandboxes(
            layout=self.layout,
            layers=Layers(self.layout),
            inits=inits,
            cgroups=find_cgroups(),
            runc=self.runc,
            python=str(Path(sys.executable).resolve()),
            hook=Path(hook.__file__),
        )
        self.image = Images(self.layout, Rootfs()).get("debian")

    def label(self, text: str) -> None:
        object.__setattr__(self.runc, "label", text)

    def compose(self, layers: tuple[str, ...] = ()) -> Runtime:
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

    def start_hog(self, runtime: Runtime, mib: int) -> None:
        asyncio.run(self._start_hog(self.layout.runtime(runtime.id).socket, mib))

    async def _start_hog(self, socket: Path, mib: int) -> None:
        guest = Guest(socket)
        await guest.wait_ready()
        if mib:
            argv = ("python3", "-c", HOG.format(mib=mib))
            stream = await guest.start(TaskSpec(argv=argv, stdin=False, detached=True), env={"PATH": "/usr/bin:/bin"})
            await stream.aclose()
            while (await self._exit(guest)) != 0:
                await asyncio.sleep(0.05)
        await guest.quiesce()
        await guest.aclose()

    async def _exit(self, guest: Guest) -> int:
        stream = await guest.start(
            TaskSpec(argv=("test", "-e", "/tmp/ready"), stdin=False), env={"PATH": "/usr/bin:/bin"}
        )
        code = 1
        async for event in stream:
            code = getattr(event, "code", code)
        await stream.aclose()
        return code

    def exec_true(self, runtime: Runtime) -> None:
        words = ("runc", "--root", self.layout.runc_root, "exec", runtime.id, "true")
        with self.clock.timing(f"{self.runc.label}.exec"):
            run(words, timeout=30, path=self.runc.path)

    def round(self, label: str, mib: int) -> None:
        """One of each verb."""
        self.label(label)
        runtime = self.compose()
        self.boxes.boot(runtime)
        try:
            self.start_hog(runtime, mib)
            self.exec_true(runtime)
            dump = self.layout.staging / new_id()
            (dump / "work").mkdir(parents=True)
            place = self.layout.runtime(runtime.id)
            self.runc.checkpoint(runtime.id, dump=dump, work=dump / "work", log=place.log / "runc.log")
            shutil.rmtree(dump / "work")
            layer = new_id()
            (self.layout.layers / layer).mkdir()
            shutil.copytree(place.upper, self.layout.layers / layer / "tree", symlinks=True)
            fork = self.compose((layer,))
            try:
                self.boxes.restore(fork, dump)
            finally:
                self.boxes.destroy(fork.id)
                shutil.rmtree(dump)
        finally:
            self.boxes.destroy(runtime.id)

    def close(self) -> None:
        self.network.close()
        self.boxes.close()


class Ours:
    """The service, reached through the SDK."""

    def __init__(self, root: Path, clock: Clock, settings: Settings) -> None:
        self.clock = clock
        self.settings = replace(settings, state_dir=root / "state", run_dir=root / "run", listen="")
        for path in (self.settings.state_dir, self.settings.run_dir):
            path.mkdir(mode=0o711)
        (self.settings.state_dir / "images").symlink_to(settings.state_dir / "images")
        env = {
            **os.environ,
            "RUNTA_STATE_DIR": str(self.settings.state_dir),
            "RUNTA_RUN_DIR": str(self.settings.run_dir),
            "RUNTA_LISTEN": "",
        }
        with (root / "serve.log").open("wb") as log:
            self.service = subprocess.Popen([sys.executable, "-m", "runta", "serve"], env=env, stdout=log, stderr=log)
        self.client = Runta(endpoint=f"unix:{self.settings.socket}", retry_max_attempts=1)
        self._await_service()

    def _await_service(self) -> None:
        for _ in range(1000):
            if can_connect(self.settings.socket):
                return
            time.sleep(0.02)
        raise SystemExit("the service did not start")

    def round(self, label: str, mib: int) -> None:
        clock, client = self.clock, self.client
        with clock.timing(f"{label}.create"):
            runtime = client.runtimes.create(
                f"bench-{time.monotonic_ns()}", memory_mib=MEMORY_MIB, vcpus=os.cpu_count() or 1
            )
        if mib:
            # Until it has its own session, the end of the shell would end it too.
            hog = f'setsid python3 -c "{HOG.format(mib=mib)}" >/dev/null 2>&1 & until [ -e /tmp/ready ]; do sleep 0.05; done'
            runtime.exec(["sh", "-c", hog], timeout=60)
        for _ in range(10):
            with clock.timing(f"{label}.exec"):
                runtime.exec(["true"])
        with clock.timing(f"{label}.checkpoint"):
            checkpoint = runtime.checkpoints.create(name=f"{runtime.name}-ck")
        clock.readings[f"{label}.pause"].append(self._pause(checkpoint.id))
        with clock.timing(f"{label}.restore_to_first_exec"):
            fork = client.runtimes.create(f"{runtime.name}-fork", checkpoint_id=checkpoint.id)
            fork.exec(["true"])
        with clock.timing(f"{label}.delete"):
            fork.delete()
        runtime.delete()
        client.checkpoints.delete(checkpoint.id)

    def _pause(self, checkpoint_id: str) -> float:
        manifest = self.settings.state_dir / "checkpoints" / checkpoint_id / "manifest.json"
        return float(json.loads(manifest.read_text())["checkpoint"]["pause_ms"])

    def close(self) -> None:
        self.client.close()
        self.service.terminate()
        self.service.wait()


PAIRS = {
    "create": "run",
    "exec": "exec",
    "checkpoint": "checkpoint",
    "pause": "checkpoint",
    "restore_to_first_exec": "restore",
}


def measure(rounds: int) -> dict[str, object]:
    """Take turns, after one round of each that is not counted."""
    settings = load_settings()
    root = Path(f"/var/tmp/runta-bench-{os.getpid()}")
    root.mkdir(mode=0o711)
    clock = Clock()
    raw, ours = Raw(root, clock, settings), Ours(root, clock, settings)
    try:
        for count in range(rounds + 1):
            for workload, mib in WORKLOADS.items():
                ours.round(f"ours.{workload}", mib)
                raw.round(f"runc.{workload}", mib)
            if count == 0:
                clock.readings.clear()
    finally:
        ours.close()
        raw.close()
        shutil.rmtree(root, ignore_errors=True)
    medians = clock.medians()
    ratios = {
        f"{workload}.{verb}": round(medians[f"ours.{workload}.{verb}"] / medians[f"runc.{workload}.{peer}"], 2)
        for workload in WORKLOADS
        for verb, peer in PAIRS.items()
    }
    host = {
        "cpus": os.cpu_count(),
        "kernel": platform.release(),
        "criu": ".".join(map(str, criu_version(find_criu(settings)))),
        "runc": runc_version("runc"),
    }
    return {"host": host, "rounds": rounds, "medians_ms": medians, "ratios_to_raw_runc": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(prog="make bench", description=__doc__)
    parser.add_argument("--rounds", type=int, default=5)
    print(json.dumps(measure(parser.parse_args().rounds), indent=1))


if __name__ == "__main__":
    main()
