"""A real service on the real kernel, runtimes in each of the three ways they come to life, and a leak check after each test."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from runta import Runta
from runta.client.spawn import can_connect
from runta.kernel.cgroups import find_cgroups
from runta.kernel.mounts import mounts_below
from runta.layout import Layout

IMAGES = Path("/var/lib/runta/images")
START_TIMEOUT = 30.0


@dataclass
class House:
    """One service with a state directory of its own; images are the host's."""

    root: Path
    service: subprocess.Popen[bytes] | None = None
    extra_env: dict[str, str] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        return Layout(self.root / "state", self.root / "run")

    @property
    def env(self) -> dict[str, str]:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNTA_")}
        ours = {
            "RUNTA_STATE_DIR": str(self.layout.state_dir),
            "RUNTA_RUN_DIR": str(self.layout.run_dir),
            "RUNTA_LISTEN": "",
        }
        return {**kept, **ours, **self.extra_env}

    def make(self) -> None:
        for path in (self.root, self.layout.state_dir, self.layout.run_dir):
            path.mkdir(mode=0o711, exist_ok=True)
        if not self.layout.images.exists():
            self.layout.images.symlink_to(IMAGES)

    def start(self) -> None:
        log = (self.root / "serve.log").open("ab")
        self.service = subprocess.Popen(
            [sys.executable, "-m", "runta", "serve"], env=self.env, stdin=subprocess.DEVNULL, stdout=log, stderr=log
        )
        log.close()
        deadline = time.monotonic() + START_TIMEOUT
        while time.monotonic() < deadline and self.service.poll() is None:
            if can_connect(self.layout.socket):
                return
            time.sleep(0.01)
        raise AssertionError(f"the service did not start:\n{self.log()[-4000:]}")

    def stop(self, number: int = signal.SIGTERM) -> None:
        if self.service is not None:
            self.service.send_signal(number)
            self.service.wait(timeout=30)
            self.service = None

    def log(self) -> str:
        path = self.root / "serve.log"
        return path.read_text(errors="replace") if path.exists() else ""

    def connect(self) -> Runta:
        return Runta(endpoint=f"unix:{self.layout.socket}", retry_max_attempts=1)

    def cli(
        self, *words: str, check: bool = True, stdin: str | None = None, timeout: float = 120
    ) -> subprocess.CompletedProcess[str]:
        done = subprocess.run(
            [sys.executable, "-m", "runta", *words],
            env=self.env,
            input=stdin,
            capture_output=True,
            text=True,
            timeout=timeout,
        )
        if check and done.returncode != 0:
            raise AssertionError(
                f"runta {' '.join(words)} -> {done.returncode}\n{done.stdout}{done.stderr}\n{self.log()[-3000:]}"
            )
        return done

    def leaks(self) -> dict[str, list[str]]:
        """What is on the host that belongs to this house and to no record."""
        client = self.connect()
        known = {runtime.id for runtime in client.runtimes.list()}
        kept = len(client.checkpoints.list())
        client.close()
        cgroups = find_cgroups()
        strays = self.runtime_dirs() - known
        found = {
            "mounts": [str(path) for path in mounts_below(self.layout.runtimes) if path.parent.name not in known],
            "directories": sorted(strays),
            "staging": [entry.name for entry in self.layout.staging.iterdir()],
            "runc": sorted({entry.name for entry in self.layout.runc_root.iterdir()} - known),
            "layers": [] if kept or known else [entry.name for entry in self.layout.layers.iterdir()],
            "cgroups": sorted((cgroups.left_over() - known) & self.seen),
            "network namespaces": sorted(namespaces_of(self.seen - known)),
            "processes": [
                line for line in guest_processes() if str(self.root) in line and not any(one in line for one in known)
            ],
        }
        return {what: items for what, items in found.items() if items}

    seen: set[str] = field(default_factory=set)

    def runtime_dirs(self) -> set[str]:
        names = {entry.name for entry in self.layout.runtimes.iterdir()} if self.layout.runtimes.exists() else set()
        self.seen |= names
        return names

    def clear(self) -> None:
        with self.connect() as client:
            for runtime in client.runtimes.list():
                self.seen.add(runtime.id)
                runtime.delete()
            for checkpoint in client.checkpoints.list():
                client.checkpoints.delete(checkpoint.id)


def namespaces_of(runtime_ids: set[str]) -> set[str]:
    """Network namespaces of the processes in these runtimes' cgroups."""
    found = set()
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                if any(one in (entry / "cgroup").read_text() for one in runtime_ids):
                    found.add(str((entry / "ns/net").readlink()))
    return found


def guest_processes() -> list[str]:
    """Guest inits that run, each with the mount it has its binary from."""
    found = []
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            if (entry / "cmdline").read_bytes().startswith(b"/run/runta/init"):
                mounts = (entry / "mountinfo").read_text()
                source = next((line.split()[3] for line in mounts.splitlines() if line.split()[4] == "/run/runta"), "")
                found.append(f"{entry.name} {source}")
    return found


@pytest.fixture(scope="session")
def house_root() -> Iterator[Path]:
    root = Path(f"/var/tmp/runta-tests-{os.getpid()}")
    yield root
    for point in mounts_below(root):
        subprocess.run(["umount", str(point)], check=False)
    shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="session")
def shared_house(house_root: Path) -> Iterator[House]:
    house = House(house_root)
    house.make()
    house.start()
    yield house
    with contextlib.suppress(Exception):
        house.clear()
    house.stop()


@pytest.fixture
def house(shared_house: House, request: pytest.FixtureRequest) -> Iterator[House]:
    """The shared service; after the test nothing of it may be left."""
    yield shared_house
    if shared_house.service is None or shared_house.service.poll() is not None:
        shared_house.start()
    shared_house.clear()
    deadline = time.monotonic() + 5
    while (leaks := shared_house.leaks()) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not leaks, json.dumps(leaks, indent=1)


@pytest.fixture
def runta(house: House) -> Iterator[Runta]:
    with house.connect() as client:
        yield client


WAYS = ("started", "restored", "forked")


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> str:
    """How the runtime of a behaviour test comes to life."""
    return str(request.param)


@pytest.fixture
def bring_up(runta: Runta, way: str) -> Callable[..., object]:
    """A runtime made in this test's way: booted, restored after its source is gone, or forked beside its source.

    `before` prepares the source, so that what it started has lived through the checkpoint.
    """

    def make(before: Callable[[object], object] | None = None, **options: object) -> object:
        source = runta.runtimes.create(f"src-{way}", **options)
        if before:
            before(source)
        if way == "started":
            return source
        checkpoint = source.checkpoints.create(name=f"ck-{way}")
        if way == "restored":
            source.delete()
        return runta.runtimes.create(f"box-{way}", checkpoint_id=checkpoint.id)

    return make
