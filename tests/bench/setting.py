"""One run's setting: the parties below a root of its own, whose turn it is, and how all of it ends."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

from runta.kernel.cgroups import Cgroups, find_cgroups
from runta.kernel.host import find_criu
from runta.kernel.mounts import mounts_below, unmount
from runta.kernel.process import identify, kill, wait_gone
from runta.layout import Layout
from runta.settings import load_settings
from tests.bench.clock import Readings
from tests.bench.parties import Party
from tests.bench.parties.ours import Ours
from tests.bench.parties.podman import Podman, require_podman
from tests.bench.parties.raw import Raw

_KILL_TIMEOUT = 10.0


@dataclass
class Bench:
    """What a suite works with."""

    root: Path
    ours: Ours
    runc: Raw
    podman: Podman | None
    rounds: int
    quick: bool
    readings: Readings = field(default_factory=Readings)
    notes: list[str] = field(default_factory=list)

    def turns(self, share: float = 1.0, *, warm_up: bool = True) -> Iterator[list[Party]]:
        """The parties, once for each round and another one first each time; before that a round that is not counted,
        but for cases so large that nothing is gained by it.

        `share` is how much of the rounds an expensive case gets.
        """
        parties: list[Party] = [self.ours, self.runc, *([self.podman] if self.podman else [])]
        for number in range(0 if warm_up else 1, max(1, round(self.rounds * share)) + 1):
            self.readings.counting = number > 0
            start = number % len(parties)
            yield parties[start:] + parties[:start]
        self.readings.counting = True

    def say(self, text: str) -> None:
        """Progress, to stderr."""
        print(f"bench: {text}", file=sys.stderr, flush=True)


@contextlib.contextmanager
def prepared(*, rounds: int, quick: bool, podman: bool) -> Iterator[Bench]:
    """A bench that leaves nothing behind, whatever happens and whichever signal ends it."""
    if os.geteuid() != 0:
        raise SystemExit("the bench makes containers: run it as root")
    if podman:
        require_podman()
    settings = load_settings()
    root = Path(f"/var/tmp/runta-bench-{os.getpid()}")
    signal.signal(signal.SIGTERM, _leave)
    with contextlib.ExitStack() as stack:
        stack.callback(_sweep, root)
        root.mkdir(mode=0o711)
        ours = Ours(root, settings)
        stack.callback(ours.close)
        raw = Raw(root, settings)
        stack.callback(raw.close)
        other = None
        if podman:
            other = Podman(root, find_criu(settings), raw.layout.image_rootfs(raw.image.id))
            stack.callback(other.close)
        yield Bench(root, ours, raw, other, rounds, quick)


def _leave(number: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + number)


def _sweep(root: Path) -> None:
    """Remove what is left of the runtimes below a root: processes, mounts, cgroups, directories."""
    cgroups = find_cgroups()
    for layout in (Layout(root / "state", root / "run"), Layout(root / "raw", root / "raw-run")):
        names = {
            entry.name for place in (layout.runtimes, layout.runc_root) if place.is_dir() for entry in place.iterdir()
        }
        for name in names:
            _end(cgroups, name)
    for _ in range(100):
        with contextlib.suppress(Exception):
            for point in mounts_below(root):
                unmount(point)
            break
        time.sleep(0.1)
    shutil.rmtree(root, ignore_errors=True)


def _end(cgroups: Cgroups, name: str) -> None:
    found = [one for pid in cgroups.processes(name) if (one := identify(pid))]
    for process in found:
        kill(process)
    cgroups.thaw(name)
    for process in found:
        wait_gone(process, _KILL_TIMEOUT)
    with contextlib.suppress(Exception):
        cgroups.remove(name)
