"""What things are, and which state may follow which. Frozen values; no effects."""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from typing import Any
from uuid import UUID

DEFAULT_IMAGE = "debian"
DEFAULT_PIDS_MAX = 4096
EXIT_TIMEOUT = 124
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127


class RuntimeStatus(StrEnum):
    """The public API's runtime states."""

    CREATING = "creating"
    RUNNING = "running"
    PAUSED = "paused"
    SUSPENDED = "suspended"
    SHUTDOWN = "shutdown"
    DELETING = "deleting"
    ERROR = "error"
    CRASHED = "crashed"
    UNAVAILABLE = "unavailable"


_FOLLOWERS: Mapping[RuntimeStatus, frozenset[RuntimeStatus]] = {
    RuntimeStatus.CREATING: frozenset(
        {RuntimeStatus.RUNNING, RuntimeStatus.SHUTDOWN, RuntimeStatus.ERROR, RuntimeStatus.DELETING}
    ),
    RuntimeStatus.RUNNING: frozenset(
        {
            RuntimeStatus.PAUSED,
            RuntimeStatus.SUSPENDED,
            RuntimeStatus.SHUTDOWN,
            RuntimeStatus.CRASHED,
            RuntimeStatus.DELETING,
        }
    ),
    RuntimeStatus.PAUSED: frozenset(
        {RuntimeStatus.RUNNING, RuntimeStatus.SHUTDOWN, RuntimeStatus.CRASHED, RuntimeStatus.DELETING}
    ),
    RuntimeStatus.SUSPENDED: frozenset(
        {RuntimeStatus.RUNNING, RuntimeStatus.SHUTDOWN, RuntimeStatus.CRASHED, RuntimeStatus.DELETING}
    ),
    RuntimeStatus.SHUTDOWN: frozenset({RuntimeStatus.CREATING, RuntimeStatus.RUNNING, RuntimeStatus.DELETING}),
    RuntimeStatus.CRASHED: frozenset(
        {RuntimeStatus.CREATING, RuntimeStatus.RUNNING, RuntimeStatus.SHUTDOWN, RuntimeStatus.DELETING}
    ),
    RuntimeStatus.ERROR: frozenset({RuntimeStatus.DELETING}),
    RuntimeStatus.UNAVAILABLE: frozenset({RuntimeStatus.RUNNING, RuntimeStatus.CRASHED, RuntimeStatus.DELETING}),
    RuntimeStatus.DELETING: frozenset(),
}


LIVE = frozenset({RuntimeStatus.RUNNING, RuntimeStatus.PAUSED, RuntimeStatus.SUSPENDED})
"""States in which a runtime has processes."""


def may_follow(now: RuntimeStatus, then: RuntimeStatus) -> bool:
    """Whether a runtime in state `now` may enter `then`."""
    return then in _FOLLOWERS[now]


class CheckpointState(StrEnum):
    CREATING = "creating"
    READY = "ready"
    FAILED = "failed"


class CheckpointKind(StrEnum):
    """`full` = files and processes (requests may say `live`); `cold` = files only, of a shut-down runtime."""

    FULL = "full"
    COLD = "cold"


@dataclass(frozen=True, slots=True, kw_only=True)
class Resources:
    """What a runtime may use. `memory_max_mib` is the hard limit, `memory_mib` what was asked for."""

    vcpus: int = 1
    memory_mib: int = 1024
    memory_max_mib: int | None = None
    disk_gib: int = 32

    @property
    def memory_limit_mib(self) -> int:
        return self.memory_max_mib or self.memory_mib


@dataclass(frozen=True, slots=True, kw_only=True)
class IngressSpec:
    protocol: str
    runtime_port: int


@dataclass(frozen=True, slots=True, kw_only=True)
class EgressPolicy:
    """Hosts the runtime may talk to: `denylist` names the refused, `allowlist` the allowed ones."""

    mode: str = "denylist"
    hosts: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IdlePolicy:
    """`disabled`, `suspend_only` or `suspend_and_wakeup` after so many seconds without activity."""

    mode: str = "disabled"
    suspend_after_secs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class IdMap:
    """One range of subordinate ids: inside id 0 is host id `start`."""

    start: int
    size: int = 65536


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeSpec:
    """What a runtime is made from; it goes into checkpoints, and a restore starts from it."""

    image: str
    """The image's immutable id."""
    image_name: str = DEFAULT_IMAGE
    resources: Resources = field(default_factory=Resources)
    ids: IdMap
    init: str
    """Digest of the guest init binary."""
    layers: tuple[str, ...] = ()
    """Layer ids, newest first."""
    env: Mapping[str, str] = field(default_factory=dict)
    mounts: tuple[str, ...] = ()
    """Destinations of the mounts of config.json, in order; a restore must make the same ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """One runtime, as the store keeps it."""

    id: str
    name: str
    status: RuntimeStatus
    desired_status: RuntimeStatus
    spec: RuntimeSpec
    revision: int = 1
    created_at: str
    updated_at: str
    parent_checkpoint: str | None = None
    """The checkpoint it was restored from."""
    parent_runtime: str | None = None
    """The runtime it was forked from, without a checkpoint between."""
    generation: int = 0
    """How many restores lie between a first boot and this runtime."""
    ingress: tuple[IngressSpec, ...] = ()
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    idle: IdlePolicy = field(default_factory=IdlePolicy)
    error_code: str | None = None
    error_message: str | None = None
    init_pid: int | None = None
    """Host pid of the guest init; with `init_start` it names one process."""
    init_start: int | None = None
    """Start time of the guest init, clock ticks since boot (proc(5), field 22 of /proc/pid/stat)."""
    boot_id: str | None = None
    """The host's boot the process belongs to."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DumpedProcess:
    """A process in a dump, by its pids inside."""

    pid: int
    parent: int
    command: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkpoint:
    """One checkpoint, as the store keeps it."""

    id: str
    name: str
    state: CheckpointState
    kind: CheckpointKind
    spec: RuntimeSpec
    """Of the source, with the new layer first: what a restore is made from."""
    source_id: str
    source_name: str
    source_gone: bool = False
    parent: str | None = None
    """The checkpoint its source was restored from: the lineage."""
    generation: int = 0
    created_at: str
    error_code: str | None = None
    error_message: str | None = None
    size_bytes: int = 0
    """Dump and tarball on disk."""
    memory_bytes: int = 0
    """Pages in the dump."""
    pause_ms: float | None = None
    """How long the source stood still."""
    processes: tuple[DumpedProcess, ...] = ()
    """Who is in the dump, parents first."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CreateRuntime:
    """A request for a new runtime; with `checkpoint` a restore."""

    name: str | None = None
    image: str = DEFAULT_IMAGE
    resources: Resources | None = None
    checkpoint: str | None = None
    lazy: bool = False
    """A restore that answers before the memory is in."""
    env: Mapping[str, str] = field(default_factory=dict)
    ingress: tuple[IngressSpec, ...] = ()
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    idle: IdlePolicy = field(default_factory=IdlePolicy)


@dataclass(frozen=True, slots=True, kw_only=True)
class MemoryUse:
    """The memory of a live runtime's processes, at one moment."""

    usage_bytes: int
    """As its cgroup counts it, page cache included."""
    ksm_saved_bytes: int
    """What it would take more if the kernel merged nothing of it."""
    complete: bool = True
    """False while a lazy restore goes on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchRuntime:
    """Changes to a runtime; None leaves a thing as it is."""

    name: str | None = None
    memory_mib: int | None = None
    memory_max_mib: int | None = None
    disk_gib: int | None = None
    env: Mapping[str, str] | None = None
    ingress: tuple[IngressSpec, ...] | None = None
    egress: EgressPolicy | None = None
    idle: IdlePolicy | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskSpec:
    """One command to run by the guest init."""

    argv: tuple[str, ...]
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the runtime's own environment."""
    cwd: str | None = None
    """None: the user's home directory, else `/`."""
    user: str | None = None
    """`name`, `uid`, `name:group` or `uid:gid`, resolved inside; None: root."""
    tty: bool = False
    rows: int = 24
    cols: int = 80
    stdin: bool = True
    """False: /dev/null."""
    detached: bool = False
    """True: no client's end ends it, and it never blocks on output."""
    timeout: float | None = None
    """Seconds until TERM to the process group, KILL five seconds later; the exit code is then 124."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TaskInfo:
    """One task of a runtime, as the guest init knows it."""

    id: int
    pid: int
    """In the runtime's pid namespace."""
    argv: tuple[str, ...]
    detached: bool
    tty: bool
    attached: bool = False
    exit_code: int | None = None
    """As a shell would say it: 128 + signal for a killed one; None while it runs."""
    stdout_offset: int = 0
    """Bytes written so far."""
    stderr_offset: int = 0
    stdout_lost: int = 0
    """Bytes a detached task wrote that nobody took in time."""
    stderr_lost: int = 0


@dataclass(frozen=True, slots=True)
class Output:
    """A piece of a task's output."""

    stream: str
    """`stdout` or `stderr`; a task with a tty has stdout only."""
    offset: int
    """Absolute position of the first byte in the stream."""
    data: bytes


@dataclass(frozen=True, slots=True)
class Exit:
    """The end of a task: all of its output came before."""

    code: int
    """As a shell would say it; 124 after a timeout."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Image:
    """A base root file system."""

    id: str
    name: str
    created_at: str
    size_bytes: int
    source: str
    """The recipe, or the imported file's name."""
    env: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Secret:
    """A stored secret, without its value."""

    id: str
    name: str
    cache_ttl_secs: int = 0
    """How long who uses it may keep the value, seconds."""
    preview: str
    """The value, masked."""
    created_at: str
    updated_at: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened on this host."""

    id: str
    kind: str
    """`runtime.create`, `exec`, `checkpoint.create` …"""
    runtime_id: str | None = None
    runtime_name: str | None = None
    caller: str | None = None
    """Who asked; None: the service did it by itself."""
    occurred_at_ms: int
    """When it began, milliseconds since 1970."""
    duration_ms: float
    outcome: str = "ok"
    """`ok`, else the error's code."""
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class EventFilter:
    """Which events a reader wants."""

    runtime: str | None = None
    """Id or name."""
    kind: str | None = None
    after: str | None = None
    """The id of the last event read: go on behind it."""
    oldest_first: bool = False
    limit: int = 50


def new_id() -> str:
    """A UUID v7 (RFC 9562): sorts by time of creation."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return str(UUID(int=value))


def now() -> str:
    """This moment, RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
