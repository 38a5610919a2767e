"""Control groups of runtimes: freeze, limits, members, removal; cgroup v2, v1 and the hybrid of both.

runc makes them (`cgroupsPath` in config.json). Sources: the kernel's Documentation/admin-guide/cgroup-v1 and
cgroup-v2.rst.
"""

from __future__ import annotations

import contextlib
import errno
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.process import wait_until
from runta.models import DEFAULT_PIDS_MAX, Resources

PARENT = "runta"
"""Every runtime's cgroup lies below this one."""

_CPU_PERIOD_US = 100_000
_FREEZE_TIMEOUT = 10.0
_FREEZE_STEP = 0.0005
_VFORK_TIMEOUT = 5.0
_VFORK_PAUSE = (0.0005, 0.003)
_VFORK_WAITS = frozenset({"kernel_clone", "wait_for_vfork_done"})
_REMOVE_TIMEOUT = 5.0
_MIB = 1 << 20


@dataclass(frozen=True, slots=True)
class Cgroups:
    """The host's cgroup hierarchies: `v1` maps a controller to its mount point, `v2` is the unified mount point or
    None."""

    v1: Mapping[str, Path]
    v2: Path | None

    @property
    def unified(self) -> bool:
        """Whether the controllers we need are cgroup v2's."""
        return "freezer" not in self.v1

    def path(self, runtime_id: str) -> str:
        """`cgroupsPath` for config.json."""
        return f"/{PARENT}/{runtime_id}"

    def freeze(self, runtime_id: str) -> None:
        """Stop every process of the runtime, and wait until each stands still, none of them in the middle of a vfork.

        CRIU can't seize a parent that waits for its vforked child (criu, test/zdtm, vfork00), and gives up after 10 s;
        such a wait lasts a fraction of a millisecond, so the runtime is let go on for a moment. Raises KernelError if
        the processes can't be frozen within 10 s; the runtime is thawed then.
        """
        deadline = time.monotonic() + _VFORK_TIMEOUT
        self._freeze_once(runtime_id)
        while self._waits_for_vfork(runtime_id) and time.monotonic() < deadline:
            self.thaw(runtime_id)
            # By chance: an even pause would bring programs into step, and catch the same one each time. And not before
            # a moment that looks right: where the runtime has used up its share of CPU, nothing moves for a while.
            time.sleep(random.uniform(*_VFORK_PAUSE))
            while self._waits_for_vfork(runtime_id) and time.monotonic() < deadline:
                time.sleep(_FREEZE_STEP)
            self._freeze_once(runtime_id)

    def _waits_for_vfork(self, runtime_id: str) -> bool:
        return any(_waits_for_vfork(pid) for pid in self.processes(runtime_id))

    def _freeze_once(self, runtime_id: str) -> None:
        try:
            deadline = time.monotonic() + _FREEZE_TIMEOUT
            self._write_freezer(runtime_id, frozen=True)
            while not self.is_frozen(runtime_id):
                if not wait_until(deadline, _FREEZE_STEP):
                    raise KernelError("the runtime's processes could not be frozen within 10 s")
                if not self.unified:
                    # The v1 freezer looks at each process once: one that was just on its way into a sleep it may be
                    # frozen in (a vfork, for one) is missed, and stays FREEZING until it is asked again.
                    self._write_freezer(runtime_id, frozen=True)
        except BaseException:
            self.thaw(runtime_id)
            raise

    def thaw(self, runtime_id: str) -> None:
        """Let the processes go on; a thawed or missing cgroup is no error."""
        with contextlib.suppress(FileNotFoundError):
            self._write_freezer(runtime_id, frozen=False)

    def is_frozen(self, runtime_id: str) -> bool:
        """Whether every process of the runtime stands still."""
        if not self.unified:
            return self._read("freezer", runtime_id, "freezer.state") == "FROZEN"
        events = self._read("freezer", runtime_id, "cgroup.events")
        return "frozen 1" in events.splitlines()

    def _write_freezer(self, runtime_id: str, *, frozen: bool) -> None:
        if self.unified:
            self._write("freezer", runtime_id, "cgroup.freeze", "1" if frozen else "0")
        else:
            self._write("freezer", runtime_id, "freezer.state", "FROZEN" if frozen else "THAWED")

    def set_limits(self, runtime_id: str, resources: Resources) -> None:
        """Give a runtime its limits, now. Raises KernelError naming the limit the kernel refuses."""
        quota = resources.vcpus * _CPU_PERIOD_US
        memory = resources.memory_limit_mib * _MIB
        if self.unified:
            self._limit("cpu", runtime_id, "cpu.max", f"{quota} {_CPU_PERIOD_US}")
            self._limit("memory", runtime_id, "memory.max", str(memory))
            self._limit("pids", runtime_id, "pids.max", str(DEFAULT_PIDS_MAX))
        else:
            self._limit("cpu", runtime_id, "cpu.cfs_period_us", str(_CPU_PERIOD_US))
            self._limit("cpu", runtime_id, "cpu.cfs_quota_us", str(quota))
            self._limit("memory", runtime_id, "memory.limit_in_bytes", str(memory))
            self._limit("pids", runtime_id, "pids.max", str(DEFAULT_PIDS_MAX))

    def _limit(self, controller: str, runtime_id: str, name: str, value: str) -> None:
        try:
            self._write(controller, runtime_id, name, value)
        except OSError as err:
            hint = "the runtime uses more memory than that already" if err.errno == errno.EBUSY else None
            raise KernelError(f"the kernel refuses {name} = {value}", cause=err.strerror, hint=hint) from err

    def processes(self, runtime_id: str) -> list[int]:
        """Host pids of the runtime's processes."""
        text = self._read("freezer", runtime_id, "cgroup.procs")
        return [int(line) for line in text.split()]

    def memory_bytes(self, runtime_id: str) -> int:
        """What the runtime's memory amounts to now, page cache included."""
        name = "memory.current" if self.unified else "memory.usage_in_bytes"
        return int(self._read("memory", runtime_id, name) or 0)

    def remove(self, runtime_id: str) -> None:
        """Remove what runc left of the runtime's cgroups, in every hierarchy. Raises KernelError if processes
        remain."""
        for mount in {*self.v1.values(), *([self.v2] if self.v2 else [])}:
            _remove_tree(mount / PARENT / runtime_id)

    def left_over(self) -> set[str]:
        """Ids of runtimes that have a cgroup in some hierarchy."""
        mounts = {*self.v1.values(), *([self.v2] if self.v2 else [])}
        return {
            entry.name
            for mount in mounts
            if (mount / PARENT).is_dir()
            for entry in (mount / PARENT).iterdir()
            if entry.is_dir()
        }

    def _dir(self, controller: str, runtime_id: str) -> Path:
        mount = self.v2 if self.unified else self.v1.get(controller)
        if mount is None:
            raise KernelError(f"this host has no {controller} cgroup controller", hint="`runta doctor` tells more")
        return mount / PARENT / runtime_id

    def _read(self, controller: str, runtime_id: str, name: str) -> str:
        try:
            return (self._dir(controller, runtime_id) / name).read_text().strip()
        except (FileNotFoundError, OSError):
            return ""

    def _write(self, controller: str, runtime_id: str, name: str, value: str) -> None:
        (self._dir(controller, runtime_id) / name).write_text(value)


def find_cgroups(mountinfo: str | None = None) -> Cgroups:
    """The hierarchies that are mounted on this host (proc(5), mountinfo).

    Of each the first mount counts: CRIU mounts them once more, in a directory of its own, while it restores.
    """
    text = Path("/proc/self/mountinfo").read_text() if mountinfo is None else mountinfo
    v1: dict[str, Path] = {}
    v2: Path | None = None
    for line in text.splitlines():
        left, _, right = line.partition(" - ")
        point, (fstype, _, options) = Path(left.split()[4]), right.split()[:3]
        if fstype == "cgroup2":
            v2 = v2 or point
        elif fstype == "cgroup":
            for name in set(options.split(",")) - {"rw", "ro", "xattr"}:
                v1.setdefault(name, point)
    return Cgroups(v1, v2)


def _waits_for_vfork(pid: int) -> bool:
    """Whether a thread of a frozen process waits for its vforked child (proc(5), wchan)."""
    try:
        threads = list(Path(f"/proc/{pid}/task").iterdir())
        return any((thread / "wchan").read_text() in _VFORK_WAITS for thread in threads)
    except OSError:
        return False


def _remove_tree(path: Path) -> None:
    """Remove a cgroup and those below it. A process that is just ending keeps it busy for a moment."""
    if not path.is_dir():
        return
    for child in path.iterdir():
        if child.is_dir():
            _remove_tree(child)
    deadline = time.monotonic() + _REMOVE_TIMEOUT
    while True:
        try:
            path.rmdir()
        except FileNotFoundError:
            return
        except OSError as err:
            if err.errno != errno.EBUSY or not wait_until(deadline):
                raise KernelError(f"can't remove the cgroup {path}", cause=err.strerror) from err
        else:
            return
