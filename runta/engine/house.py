"""Puts the house together: the engine with its real kernel rooms and store, for `runta serve`."""

from __future__ import annotations

import asyncio
import fcntl
import hashlib
import os
import platform
import sys
import time
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from runta.engine.ahead import find_tracking
from runta.engine.checkpoints import CheckpointMaker
from runta.engine.core import Core
from runta.engine.dumps import Dumps
from runta.engine.files import Files
from runta.engine.forks import Forks
from runta.engine.idle import Idle
from runta.engine.journal import Journal, shorten
from runta.engine.recovery import recover
from runta.engine.runtimes import Runtimes
from runta.engine.sandbox import Sandboxes
from runta.engine.tasks import Attachment, Tasks
from runta.errors import AlreadyExists, FailedPrecondition, NotFound, ServiceError
from runta.kernel.cgroups import find_cgroups
from runta.kernel.criu_cache import drop_cache, provide_cache
from runta.kernel.files import spread_directories
from runta.kernel.host import criu_version, find_criu, find_init_binary, find_subordinate_ids, runc_version
from runta.kernel.merging import launcher_of, start_merging
from runta.kernel.network import NetworkHelper
from runta.kernel.privileges import adopt_orphans, name_process, require_root
from runta.kernel.process import ProcessId, identify, is_alive, wait_until
from runta.kernel.rootfs import Rootfs
from runta.kernel.runc import Runc
from runta.layout import Layout
from runta.models import (
    LIVE,
    Checkpoint,
    CheckpointKind,
    CreateRuntime,
    Event,
    EventFilter,
    IdMap,
    Image,
    MemoryUse,
    PatchRuntime,
    Runtime,
    Secret,
    TaskInfo,
    TaskSpec,
)
from runta.settings import Settings, tool_path
from runta.store.checkpoints import Checkpoints, HostFacts
from runta.store.database import Database
from runta.store.events import EventLog
from runta.store.images import Images
from runta.store.inits import Inits
from runta.store.layers import Layers
from runta.store.secrets import Secrets
from runta.store.staging import stage

_MODE_PASS = 0o711
_MODE_PRIVATE = 0o700
_MODE_EMPTY = 0o555
_MODE_LOCK = 0o600
_LOCK_TIMEOUT = 60.0
_THREADS = 64
"""Most of them wait for the kernel: for a disk, a pipe, the end of a process."""
MINIMUM_CRIU = (4, 2)


class LocalEngine:
    """This host's engine: `runta.engine.port.Engine` on runc and CRIU. Its life is `start` to `close`."""

    def __init__(self, core: Core, events: EventLog, network: NetworkHelper, lock: int) -> None:
        self._core = core
        self._events = events
        self._network = network
        self._lock = lock
        self._idle = Idle(core)
        self._tasks = Tasks(core, self._idle)
        self._runtimes = Runtimes(core, self._tasks)
        self._checkpoints = CheckpointMaker(core)
        self._forks = Forks(core, self._runtimes)
        self._files = Files(core, self._idle)

    async def start(self) -> None:
        """Bring records and host together. Raises KernelError if the network helper can't start."""
        self._network.start()
        with self._core.journal.recording("service.start"):
            await recover(self._core, self._runtimes)
        self._idle.start()

    async def close(self) -> None:
        """Let go of everything; runtimes and their tasks go on."""
        await self._idle.stop()
        for job in list(self._core.jobs):
            if job.get_name().startswith("expiry"):
                job.cancel()
        await asyncio.gather(*self._core.jobs, return_exceptions=True)
        for box in list(self._core.boxes.values()):
            await box.close()
        self._core.boxes.clear()
        self._network.close()
        self._core.sandboxes.close()
        drop_cache(self._core.layout.run_dir)
        self._core.database.close()
        self._events.close()
        os.close(self._lock)

    async def create_runtime(self, request: CreateRuntime, *, idempotency_key: str | None = None) -> Runtime:
        return await self._runtimes.create(request, idempotency_key=idempotency_key)

    async def list_runtimes(self) -> Sequence[Runtime]:
        return self._core.database.runtimes()

    async def get_runtime(self, ref: str) -> Runtime:
        return self._core.find_runtime(ref)

    async def measure_memory(self, ref: str) -> MemoryUse | None:
        runtime = self._core.find_runtime(ref)
        if runtime.status not in LIVE:
            return None
        return await asyncio.to_thread(self._core.sandboxes.measure_memory, runtime.id)

    async def delete_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime | None:
        return await self._runtimes.delete(ref, expected_revision=expected_revision)

    async def start_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return await self._runtimes.start(ref, expected_revision=expected_revision)

    async def stop_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return await self._runtimes.stop(ref, expected_revision=expected_revision)

    async def pause_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return await self._runtimes.pause(ref, expected_revision=expected_revision)

    async def resume_runtime(self, ref: str, *, expected_revision: int | None = None) -> Runtime:
        return await self._runtimes.resume(ref, expected_revision=expected_revision)

    async def patch_runtime(self, ref: str, changes: PatchRuntime, *, expected_revision: int | None = None) -> Runtime:
        return await self._runtimes.patch(ref, changes, expected_revision=expected_revision)

    async def fork_runtime(self, ref: str, names: Sequence[str | None]) -> Sequence[Runtime | ServiceError]:
        return await self._forks.fork(ref, names)

    async def roll_back_runtime(self, ref: str, checkpoint: str) -> Runtime:
        return await self._forks.roll_back(ref, checkpoint)

    async def start_task(self, ref: str, spec: TaskSpec) -> Attachment:
        return await self._tasks.start(ref, spec)

    async def list_tasks(self, ref: str) -> Sequence[TaskInfo]:
        return await self._tasks.list(ref)

    async def attach_task(
        self, ref: str, task_id: int, *, stdout_offset: int | None = None, stderr_offset: int | None = None
    ) -> Attachment:
        return await self._tasks.attach(ref, task_id, stdout_offset=stdout_offset, stderr_offset=stderr_offset)

    async def signal_task(self, ref: str, task_id: int, number: int) -> None:
        await self._tasks.signal(ref, task_id, number)

    async def read_file(self, ref: str, path: str) -> AsyncIterator[bytes]:
        return await _primed(self._files.read(ref, path))

    async def write_file(self, ref: str, path: str, content: AsyncIterator[bytes], *, mode: int = 0o644) -> None:
        await self._files.write(ref, path, content, mode=mode)

    async def read_archive(self, ref: str, path: str) -> AsyncIterator[bytes]:
        return await _primed(self._files.read_archive(ref, path))

    async def write_archive(self, ref: str, path: str, archive: AsyncIterator[bytes]) -> None:
        await self._files.write_archive(ref, path, archive)

    async def create_checkpoint(self, ref: str, *, name: str | None, kind: CheckpointKind) -> Checkpoint:
        return await self._checkpoints.create(ref, name=name, kind=kind)

    async def list_checkpoints(self) -> Sequence[Checkpoint]:
        return self._core.database.checkpoints()

    async def get_checkpoint(self, ref: str) -> Checkpoint:
        return self._core.find_checkpoint(ref)

    async def delete_checkpoint(self, ref: str) -> None:
        await self._checkpoints.delete(ref)

    async def put_secret(self, ref: str, value: str, *, cache_ttl_secs: int) -> Secret:
        with self._core.journal.recording("secret.set", secret=shorten(ref)):
            return await asyncio.to_thread(self._core.secrets.put, ref, value, cache_ttl_secs)

    async def list_secrets(self) -> Sequence[Secret]:
        return self._core.secrets.list()

    async def get_secret(self, ref: str) -> Secret:
        return self._core.secrets.get(ref)

    async def delete_secret(self, ref: str) -> None:
        with self._core.journal.recording("secret.delete", secret=shorten(ref)):
            self._core.secrets.remove(ref)

    async def list_events(self, wanted: EventFilter) -> Sequence[Event]:
        return await asyncio.to_thread(self._events.select, wanted)

    async def get_event(self, event_id: str) -> Event:
        found = await asyncio.to_thread(self._events.find, event_id)
        if found is None:
            raise NotFound(f"there is no event {event_id!r}", hint="old events are dropped; `runta events` lists them")
        return found

    async def list_images(self) -> Sequence[Image]:
        return await asyncio.to_thread(self._core.images.list)

    async def build_image(self, name: str) -> Image:
        return await asyncio.to_thread(self._core.images.build, name)

    async def import_image(self, name: str, archive: AsyncIterator[bytes]) -> Image:
        with stage(self._core.layout.staging) as place:
            path = place / "archive"
            with path.open("wb") as file:
                async for piece in archive:
                    await asyncio.to_thread(file.write, piece)
            return await asyncio.to_thread(self._core.images.import_archive, name, path)

    async def delete_image(self, ref: str) -> None:
        await asyncio.to_thread(self._core.images.remove, ref, self._core.image_users)


async def _primed(pieces: AsyncIterator[bytes]) -> AsyncIterator[bytes]:
    """The same pieces, but the first is fetched now: what can't be opened is an error before the answer begins."""
    try:
        first = await anext(pieces)
    except StopAsyncIteration:
        first = b""

    async def replay() -> AsyncIterator[bytes]:
        yield first
        async for piece in pieces:
            yield piece

    return replay()


async def build_engine(settings: Settings) -> LocalEngine:
    """The engine of this host, started.

    Raises PermissionDenied without root, FailedPrecondition where something the house stands on is missing.
    """
    require_root()
    name_process("runta")
    adopt_orphans()
    layout = Layout(settings.state_dir.resolve(), settings.run_dir.resolve())
    make_directories(layout)
    lock = acquire_lock(layout.lock)
    try:
        asyncio.get_running_loop().set_default_executor(ThreadPoolExecutor(_THREADS, thread_name_prefix="runta"))
        events = EventLog(layout.events)
        events.open()
        if settings.ksm:
            start_merging()
        core = _build_core(settings, layout, lock, Journal(events))
        engine = LocalEngine(core, events, NetworkHelper(layout.network_fifo), lock)
        await engine.start()
    except BaseException:
        with suppress(OSError):
            os.close(lock)
        raise
    return engine


def _build_core(settings: Settings, layout: Layout, lock: int, journal: Journal) -> Core:
    criu = require_criu(settings)
    inits, layers = Inits(layout), Layers(layout)
    database = Database(layout.database)
    database.open()
    programs = provide_cache(criu, layout.run_dir)
    path = f"{programs}:{tool_path()}"
    python = str(Path(sys.executable).resolve())
    launcher = launcher_of(python) if settings.ksm else ()
    sandboxes = Sandboxes(
        layout=layout,
        layers=layers,
        inits=inits,
        cgroups=find_cgroups(),
        runc=Runc(settings.runtime, layout.runc_root, path, held=(lock,), launcher=launcher),
        dumps=Dumps(settings.dump_dir),
        ahead=find_tracking(programs / criu.name),  # which fills the cache, before the first dump,
    )
    return Core(
        layout=layout,
        database=database,
        sandboxes=sandboxes,
        images=Images(layout, Rootfs()),
        layers=layers,
        inits=inits,
        checkpoints=Checkpoints(layout),
        secrets=Secrets(database, layout.secrets_key),
        journal=journal,
        facts=collect_facts(settings, criu),
        ids=require_ids(),
        init_digest=inits.install(find_init_binary()),
    )


def make_directories(layout: Layout) -> None:
    """The state and run directories. The way to a rootfs can be passed by the sandbox's root; the rest is private."""
    for path in (layout.state_dir, layout.run_dir, layout.runtimes, layout.images, layout.inits):
        path.mkdir(mode=_MODE_PASS, parents=True, exist_ok=True)
        path.chmod(_MODE_PASS)
    layout.empty.mkdir(mode=_MODE_EMPTY, exist_ok=True)
    for path in (layout.layers, layout.checkpoints, layout.staging, layout.replaced, layout.runc_root):
        path.mkdir(mode=_MODE_PRIVATE, parents=True, exist_ok=True)
    spread_directories(layout.staging)


def acquire_lock(path: Path) -> int:
    """Own the state directory until the descriptor is closed.

    The file names its owner. If that is gone, what it started may still hold the lock, and is waited for. Raises
    AlreadyExists if another service owns the directory.
    """
    fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, _MODE_LOCK)
    deadline = time.monotonic() + _LOCK_TIMEOUT
    while not _try_lock(fd):
        if _owner_lives(fd) or not wait_until(deadline, 0.02):
            os.close(fd)
            raise AlreadyExists(
                f"another service owns {path.parent}",
                hint="use that one, or give this one a RUNTA_STATE_DIR of its own",
            )
    os.ftruncate(fd, 0)
    os.pwrite(fd, f"{os.getpid()} {_own_start()}\n".encode(), 0)
    return fd


def _try_lock(fd: int) -> bool:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _owner_lives(fd: int) -> bool:
    words = os.pread(fd, 64, 0).split()
    return len(words) == 2 and is_alive(ProcessId(int(words[0]), int(words[1])))


def _own_start() -> int:
    own = identify(os.getpid())
    return own.start if own else 0


def require_criu(settings: Settings) -> Path:
    """CRIU's program. Raises FailedPrecondition where it is missing or not safe to fork with."""
    criu = find_criu(settings)
    version = criu_version(criu)
    if version < MINIMUM_CRIU:
        raise FailedPrecondition(
            f"CRIU {'.'.join(map(str, version))} is too old",
            cause="before 4.2, forks share the kernel's random number state: both would draw the same bytes",
            hint="run `make setup`, which installs a private CRIU beside the host's",
        )
    return criu


def require_ids() -> IdMap:
    """The host's range of subordinate ids. Raises FailedPrecondition if there is none."""
    ids = find_subordinate_ids()
    if ids is None:
        raise FailedPrecondition(
            "this host has no subordinate ids for runtimes",
            cause="no `runta` line in /etc/subuid and /etc/subgid",
            hint="run `make setup`",
        )
    return ids


def collect_facts(settings: Settings, criu: Path) -> HostFacts:
    """What a dump is made with and on."""
    cpuinfo = Path("/proc/cpuinfo").read_text()
    flags = next((line for line in cpuinfo.splitlines() if line.startswith(("flags", "Features"))), "")
    return HostFacts(
        criu=".".join(map(str, criu_version(criu))),
        runc=runc_version(settings.runtime),
        kernel=platform.release(),
        architecture=platform.machine(),
        cpu_flags=hashlib.sha256(flags.encode()).hexdigest(),
    )
