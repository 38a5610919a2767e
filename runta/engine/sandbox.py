"""One runtime's effects on the host, each next to its undo: directories, overlay, bundle, container, limits.

Blocking code: the engine runs it in worker threads, one call at a time for each runtime.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

from runta.engine.ahead import Ahead
from runta.engine.bundle import compose_config, compose_criu_options, compose_hook, compose_post_dump
from runta.engine.dumps import Dumps, place_links
from runta.engine.lazy import Pagers, require_lazy
from runta.engine.steps import step
from runta.engine.undo import Undo
from runta.errors import CheckpointFailed, KernelError, RestoreFailed
from runta.kernel import criu
from runta.kernel.cgroups import Cgroups
from runta.kernel.files import open_inside, write_text
from runta.kernel.mappings import find_shared_mappings
from runta.kernel.merging import read_saved_bytes
from runta.kernel.mounts import mount_overlay, mounts_below, open_user_namespace, unmount
from runta.kernel.process import ProcessId, identify, kill, wait_gone
from runta.kernel.runc import Runc
from runta.kernel.tree import copy_metadata
from runta.layout import Layout, RuntimeDir
from runta.models import DumpedProcess, IdMap, MemoryUse, Runtime
from runta.store.capture import Capture, read_previous
from runta.store.hidden import HiddenNames
from runta.store.inits import Inits
from runta.store.layers import Layers
from runta.store.staging import remove_tree

_MODE_PASS = 0o711
_MODE_INSIDE = 0o755
_MODE_PRIVATE = 0o700
_MODE_RESTORER = 0o710
_MODE_FIFO = 0o600
_KILL_TIMEOUT = 10.0
_IN_FLIGHT_TRIES = 4
_IN_FLIGHT_PAUSE = 0.05
_PASSES = re.compile("in-flight|Timeout reached")
"""Refusals that pass by themselves: a TCP connection being made, a process that could not be seized at that moment."""
_OF_SUCCESS = ("restore.log", "stats-restore")  # of interest after a failure only
_NOT_OVERLAY = ("/dev/", "/proc/", "/sys/", "/run/runta/")


@dataclass(frozen=True, slots=True, kw_only=True)
class Dumped:
    """What a dump left in its staging directory, and what it cost."""

    pause_ms: float
    memory_bytes: int
    processes: tuple[DumpedProcess, ...]


@dataclass(slots=True, kw_only=True)
class Sandboxes:
    """The kernel rooms and the store's places, as one runtime needs them."""

    layout: Layout
    layers: Layers
    inits: Inits
    cgroups: Cgroups
    runc: Runc
    dumps: Dumps = field(default_factory=Dumps)
    ahead: Ahead = field(default_factory=Ahead)
    pagers: Pagers = field(init=False)
    """What brings the memory of lazily restored runtimes in."""
    _user_namespaces: dict[IdMap, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.pagers = Pagers(layout=self.layout, path=self.runc.path, lose=self._end_processes)

    def close(self) -> None:
        """Close the user namespaces kept for idmapped mounts."""
        while self._user_namespaces:
            os.close(self._user_namespaces.popitem()[1])

    # ---- coming into being

    def boot(self, runtime: Runtime) -> ProcessId:
        """Start a runtime's container from its disk, which is made if it is not there. Raises KernelError."""
        place = self.layout.runtime(runtime.id)
        with Undo() as undo:
            with step("disk and bundle"):
                self._ensure_disk(runtime, place, undo)
                self._write_bundle(runtime, place, limited=True)
                self._ensure_run(runtime, place)
            with step("overlay"):
                self._mount(runtime, place, undo)
            undo.push("the container", lambda: self._delete_container(runtime.id, place))
            with step("runc run"):
                pid = self.runc.run(
                    runtime.id, bundle=place.bundle, log=place.log / "runc.log", pid_file=place.bundle / "pid"
                )
            return _require_alive(pid)

    def restore(self, runtime: Runtime, dump: Path, *, lazy: bool = False) -> ProcessId:
        """Start a runtime's container from a dump, on an empty upper dir. Raises RestoreFailed with CRIU's cause.

        `lazy` lets it run before its memory is in. Raises FailedPrecondition where the host can't do that.
        """
        place = self.layout.runtime(runtime.id)
        if lazy:
            require_lazy()
        with Undo() as undo:
            with step("disk and bundle"):
                self._ensure_disk(runtime, place, undo)
                self._write_bundle(runtime, place, limited=False)
                self._ensure_run(runtime, place)
            with step("overlay"):
                self._mount(runtime, place, undo)
            with step("copy up"):
                copy_up(place.merged, dump)
            with step("link dump"):
                links = place_links(dump, place.dump, runtime.id)
                links.mkdir(mode=_MODE_PRIVATE)
                criu.link_dump(dump, links, runtime.name)
                _admit_restorer(links, runtime.spec.ids)
            if lazy:
                undo.push("the pager", lambda: self.pagers.stop(runtime.id))
                self.pagers.start(runtime.id)
            undo.push("the container", lambda: self._delete_container(runtime.id, place))
            with step("runc restore"):
                process = self._restore_container(runtime.id, place, links, lazy=lazy)
            self.cgroups.set_limits(runtime.id, runtime.spec.resources)
            if lazy:
                self.pagers.watch(runtime.id)
            else:
                remove_tree(links)
            for name in _OF_SUCCESS:
                (place.log / name).unlink(missing_ok=True)
            return process

    def _restore_container(self, runtime_id: str, place: RuntimeDir, links: Path, *, lazy: bool = False) -> ProcessId:
        log = place.log / "restore.log"
        try:
            pid = self.runc.restore(
                runtime_id,
                bundle=place.bundle,
                dump=links,
                work=place.log,
                log=place.log / "runc.log",
                pid_file=place.bundle / "pid",
                lazy=lazy,
            )
        except KernelError as err:
            reason = criu.explain(criu.read_log([log])) if log.exists() else None
            if reason is None:
                raise RestoreFailed("the restore failed before CRIU began", cause=err.cause) from err
            raise RestoreFailed(f"CRIU can't restore: {reason.what}", cause=reason.line, hint=reason.hint) from err
        return _require_alive(pid)

    def _ensure_disk(self, runtime: Runtime, place: RuntimeDir, undo: Undo) -> None:
        if place.root.exists():
            return
        undo.push("its directory", lambda: remove_tree(place.root))
        place.root.mkdir(mode=_MODE_PASS)
        for directory in (place.upper, place.work, place.merged, place.bundle, place.log):
            directory.mkdir(mode=_MODE_INSIDE)
        place.log.chmod(_MODE_PRIVATE)
        # The overlay shows the upper dir's own owner, mode and attributes for the root directory, whatever lies below.
        newest = self.layers.lowers(runtime.spec.image, runtime.spec.layers)[0]
        copy_metadata(newest, place.upper, shift=-runtime.spec.ids.start)

    def _mount(self, runtime: Runtime, place: RuntimeDir, undo: Undo) -> None:
        undo.push("the overlay", lambda: unmount(place.merged))
        mount_overlay(
            self.layers.lowers(runtime.spec.image, runtime.spec.layers),
            upper=place.upper,
            work=place.work,
            merged=place.merged,
            attach=place.lower,
            userns=self._user_namespace(runtime.spec.ids),
        )

    def _user_namespace(self, ids: IdMap) -> int:
        if ids not in self._user_namespaces:
            self._user_namespaces[ids] = open_user_namespace(ids)
        return self._user_namespaces[ids]

    def _ensure_run(self, runtime: Runtime, place: RuntimeDir) -> None:
        """A fresh `run` directory. The inside's root owns it while the init makes its socket; see `seal_run`."""
        remove_tree(place.run)
        place.run.mkdir(mode=_MODE_INSIDE)
        self.inits.link(runtime.spec.init, place.run / "init")
        write_text(place.run / "generation", f"{runtime.generation} {runtime.id}\n")
        os.chown(place.run, runtime.spec.ids.start, runtime.spec.ids.start)

    def seal_run(self, runtime_id: str) -> None:
        """Take the `run` directory from the inside's root, so that no task can remove or replace the init's socket."""
        os.chown(self.layout.runtime(runtime_id).run, 0, 0)

    def _write_bundle(self, runtime: Runtime, place: RuntimeDir, *, limited: bool) -> None:
        config = compose_config(
            runtime_id=runtime.id,
            name=runtime.name,
            runtime_dir=place,
            resources=runtime.spec.resources,
            ids=runtime.spec.ids,
            cgroups_path=self.cgroups.path(runtime.id),
            hook=None if limited else compose_hook(self.layout.network_fifo, place.hook_fifo),
            limited=limited,
        )
        write_text(place.bundle / "config.json", json.dumps(config))
        write_text(place.criu_conf, compose_criu_options(self.layout.empty))
        if not limited:
            place.hook_fifo.unlink(missing_ok=True)
            os.mkfifo(place.hook_fifo, _MODE_FIFO)

    # ---- capture

    def begin_capture(self, runtime: Runtime, staged: Path) -> Capture:
        """The capture of a runtime's upper dir into `staged`/layer, with nothing in it yet.

        Waits until the memory of a lazily restored runtime is in. Raises FailedPrecondition if that takes too long.
        """
        self.pagers.wait(runtime.id)
        place = self.layout.runtime(runtime.id)
        return Capture(
            place.upper,
            staged / "layer",
            shift=runtime.spec.ids.start,
            previous=read_previous(place.captured, self.layers.tree),
            find_mapped=lambda: find_shared_mappings(
                self.cgroups.processes(runtime.id), merged=place.merged, upper=place.upper
            ),
        )

    def dump(self, runtime: Runtime, staged: Path, capture: Capture, *, frozen: bool) -> Dumped:
        """Dump the processes and settle the capture of the upper dir, in one frozen window, side by side.

        `staged` gets `checkpoint/dump`, `checkpoint/log` and `layer/tree`. `frozen` says that the runtime stands still
        already (it is paused), and stays so. Raises CheckpointFailed with CRIU's cause; the runtime goes on as it was.
        """
        for attempt in range(1, _IN_FLIGHT_TRIES + 1):
            try:
                return self._dump_once(runtime, staged, capture, frozen=frozen)
            except CheckpointFailed as err:
                if attempt == _IN_FLIGHT_TRIES or frozen or not _PASSES.search(err.cause or ""):
                    raise
                remove_tree(staged / "checkpoint")
                remove_tree(staged / "remaps")
                time.sleep(_IN_FLIGHT_PAUSE * attempt)
        raise AssertionError("unreachable")

    def _dump_once(self, runtime: Runtime, staged: Path, capture: Capture, *, frozen: bool) -> Dumped:
        place = self.layout.runtime(runtime.id)
        work = staged / "checkpoint" / "log"
        for directory in (work.parent, work):
            directory.mkdir(mode=_MODE_PRIVATE)
        dump = self.dumps.prepare(staged, self.cgroups.memory_bytes(runtime.id))
        remaps = staged / "remaps"
        script = compose_post_dump(place.upper, remaps)
        write_text(place.bundle / "post-dump", script, mode=_MODE_PRIVATE)
        write_text(place.criu_conf, compose_criu_options(self.layout.empty, action_script=place.bundle / "post-dump"))
        groups = self.layers.find_hard_links(runtime.spec.image, runtime.spec.layers)
        lowers = self.layers.lowers(runtime.spec.image, runtime.spec.layers)
        hidden = HiddenNames(capture, upper=place.upper, merged=place.merged, shift=runtime.spec.ids.start)
        log_file = place.log / "runc.log"
        parent = None if frozen else self.ahead.dump(self.runc, runtime.id, dump=dump, work=work, log_file=log_file)
        started = time.monotonic()
        if not frozen:
            with step("freeze"):
                self.cgroups.freeze(runtime.id)
        try:
            with ThreadPoolExecutor(1) as pool:
                settling = pool.submit(capture.settle)
                with step("runc checkpoint"):
                    self._dump_processes(runtime.id, place, dump, work, parent)
                with step("wait for the capture"):
                    settling.result()
            with step("hidden names"):
                hidden.add_link_remaps(remaps)
                hidden.add_aliases(lowers, groups)
        finally:
            if not frozen:
                self.cgroups.thaw(runtime.id)
        pause = (time.monotonic() - started) * 1000
        return Dumped(
            pause_ms=round(pause, 1),
            memory_bytes=criu.read_memory_bytes(dump),
            processes=criu.read_processes(dump),
        )

    def _dump_processes(self, runtime_id: str, place: RuntimeDir, dump: Path, work: Path, parent: str | None) -> None:
        try:
            self.runc.checkpoint(runtime_id, dump=dump, work=work, log=place.log / "runc.log", parent=parent)
        except KernelError as err:
            log = work / "dump.log"
            if not log.exists():
                raise CheckpointFailed("the checkpoint failed before CRIU began", cause=err.cause or str(err)) from err
            reason = criu.explain(criu.read_log([log]))
            raise CheckpointFailed(f"CRIU can't dump: {reason.what}", cause=reason.line, hint=reason.hint) from err

    def capture_disk(self, runtime: Runtime, staged: Path) -> Capture:
        """Capture the upper dir of a runtime without processes. The overlay is mounted for it: names must be found."""
        place = self.layout.runtime(runtime.id)
        capture = self.begin_capture(runtime, staged)
        (staged / "checkpoint").mkdir(mode=_MODE_PRIVATE)
        with Undo() as undo:
            self._mount(runtime, place, undo)
            capture.settle()
            HiddenNames(capture, upper=place.upper, merged=place.merged, shift=runtime.spec.ids.start).add_aliases(
                self.layers.lowers(runtime.spec.image, runtime.spec.layers),
                self.layers.find_hard_links(runtime.spec.image, runtime.spec.layers),
            )
        unmount(place.merged)
        return capture

    def remember_capture(self, runtime_id: str, capture: Capture, layer_id: str) -> None:
        """Let the runtime's next capture link to this one's layer. A runtime that is gone has none."""
        with contextlib.suppress(FileNotFoundError):
            capture.remember(self.layout.runtime(runtime_id).captured, layer_id)

    # ---- end

    def stop(self, runtime_id: str) -> None:
        """End what runs and undo what was mounted; the disk stays. Whatever is gone already is no error."""
        place = self.layout.runtime(runtime_id)
        self._delete_container(runtime_id, place)
        self.pagers.stop(runtime_id)
        for point in mounts_below(place.root):
            unmount(point)
        remove_tree(place.run)
        remove_tree(place.dump)

    def destroy(self, runtime_id: str) -> None:
        """Leave nothing of a runtime on the host."""
        self.stop(runtime_id)
        with step("remove files"):
            remove_tree(self.layout.runtime(runtime_id).root)

    def set_aside(self, runtime: Runtime) -> None:
        """Keep the directory of a stopped runtime while another is made in its place."""
        self.layout.runtime(runtime.id).root.rename(self._aside(runtime))

    def put_back(self, runtime: Runtime) -> None:
        """Undo `set_aside`, if it was done: what is in its place goes."""
        if self._aside(runtime).exists():
            self.destroy(runtime.id)
            self._aside(runtime).rename(self.layout.runtime(runtime.id).root)

    def drop_aside(self, runtime: Runtime) -> None:
        """Forget what was set aside."""
        remove_tree(self._aside(runtime))

    def _aside(self, runtime: Runtime) -> Path:
        """The revision tells whether the runtime's record is of before or after."""
        return self.layout.replaced / f"{runtime.id}@{runtime.revision}"

    def _delete_container(self, runtime_id: str, place: RuntimeDir) -> None:
        with step("end processes"):
            for process in self._end_processes(runtime_id):
                if not wait_gone(process, _KILL_TIMEOUT):
                    raise KernelError(f"process {process.pid} of runtime {runtime_id} does not die")
        log = place.log / "runc.log" if place.log.exists() else self.layout.run_dir / "runc.log"
        with step("runc delete"):
            self.runc.delete(runtime_id, log=log)
        with step("remove cgroup"):
            self.cgroups.remove(runtime_id)

    def _end_processes(self, runtime_id: str) -> list[ProcessId]:
        """Kill every process: SIGKILL reaches a frozen one once it is thawed, and it does nothing before it dies."""
        processes = [found for pid in self.cgroups.processes(runtime_id) if (found := identify(pid))]
        for process in processes:
            kill(process)
        self.cgroups.thaw(runtime_id)
        return processes

    def measure_memory(self, runtime_id: str) -> MemoryUse:
        """What a live runtime's processes take now."""
        return MemoryUse(
            usage_bytes=self.cgroups.memory_bytes(runtime_id),
            ksm_saved_bytes=read_saved_bytes(self.cgroups.processes(runtime_id)),
            complete=not self.pagers.is_busy(runtime_id),
        )

    def reap(self, process: ProcessId) -> int | None:
        """Collect the exit status of a container's first process, if it is this service's to collect."""
        try:
            _, status = os.waitpid(process.pid, os.WNOHANG)
        except ChildProcessError:
            return None
        return os.waitstatus_to_exitcode(status)


def copy_up(merged: Path, dump: Path) -> None:
    """Bring the files that a dump holds open for writing or mapped shared into the upper dir, before CRIU opens them.

    Opening for writing copies a file up (overlayfs.rst, "Non-standard behavior"). A name that is gone has a link remap.
    """
    for name in sorted(criu.read_writable_paths(dump)):
        if not name.startswith(_NOT_OVERLAY):
            fd = open_inside(merged, name, os.O_WRONLY | os.O_NONBLOCK | os.O_NOFOLLOW)
            if fd is not None:
                os.close(fd)


def _admit_restorer(dump: Path, ids: IdMap) -> None:
    """CRIU opens a dump's files as the host's root without privileges, and later as the inside's root; nobody else
    may."""
    for directory, _, _ in os.walk(dump):
        os.chown(directory, ids.start, 0)
        Path(directory).chmod(_MODE_RESTORER)


def _require_alive(pid: int) -> ProcessId:
    process = identify(pid)
    if process is None:
        raise KernelError("the guest init ended at once", hint="the runtime's log directory holds runc's log")
    return process
