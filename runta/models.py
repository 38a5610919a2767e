"""What things are, and which state may follow which. Frozen values; no effects."""

from __future__ import annotations

import difflib
import re
import secrets
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from enum import StrEnum
from uuid import UUID

from runta.errors import FailedPrecondition, InvalidArgument

DEFAULT_IMAGE = "debian"
DEFAULT_PIDS_MAX = 4096
EXIT_TIMEOUT = 124
EXIT_NOT_EXECUTABLE = 126
EXIT_NOT_FOUND = 127
NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


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
    env: Mapping[str, str] = field(default_factory=dict)
    ingress: tuple[IngressSpec, ...] = ()
    egress: EgressPolicy = field(default_factory=EgressPolicy)
    idle: IdlePolicy = field(default_factory=IdlePolicy)


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


def new_id() -> str:
    """A UUID v7 (RFC 9562): sorts by time of creation."""
    millis = time.time_ns() // 1_000_000
    value = (millis << 80) | (0x7 << 76) | (secrets.randbits(12) << 64) | (0b10 << 62) | secrets.randbits(62)
    return str(UUID(int=value))


def now() -> str:
    """This moment, RFC 3339 in UTC with milliseconds."""
    return datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


def check_name(name: str, what: str) -> str:
    """Return the name, or raise InvalidArgument where it has characters a shell or a path would stumble over."""
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not a name for a {what}",
            cause="names have 1 to 63 letters, digits, dots, dashes and underscores, a letter or digit first",
            hint="choose another name, for instance "
            + (re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:63] or "box-1"),
        )
    return name


def check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables, or raise InvalidArgument naming the one that breaks the API's rules."""
    for name, value in env.items():
        if not ENV_NAME_PATTERN.fullmatch(name):
            raise InvalidArgument(
                f"{name!r} is not an environment variable's name", hint="use letters, digits and underscores"
            )
        if name.startswith("RUNTA_"):
            raise InvalidArgument(
                f"the environment variable {name} is reserved", hint="names that begin with RUNTA_ are the service's"
            )
        if "\0" in value or len(value.encode()) > 8192:
            raise InvalidArgument(f"the value of {name} is too long or holds a NUL byte", hint="8192 bytes at most")
    if len(env) > 64 or sum(len(name.encode()) + len(value.encode()) for name, value in env.items()) > 65536:
        raise InvalidArgument("too many environment variables", hint="64 variables and 65536 bytes at most")
    return env


def require_revision(runtime: Runtime, expected: int | None) -> None:
    """Raise FailedPrecondition unless the runtime is still at the revision the caller has seen."""
    if expected is not None and expected != runtime.revision:
        raise FailedPrecondition(
            f"runtime revision conflict: expected {expected}, current {runtime.revision}",
            hint="read the runtime again and repeat the request with its revision",
        )


_REMEDIES: Mapping[RuntimeStatus, str] = {
    RuntimeStatus.CREATING: "wait until it runs",
    RuntimeStatus.PAUSED: "`runta resume {name}`",
    RuntimeStatus.SUSPENDED: "`runta resume {name}`",
    RuntimeStatus.SHUTDOWN: "`runta boot {name}`",
    RuntimeStatus.CRASHED: "`runta boot {name}`",
}


def require_running(runtime: Runtime) -> None:
    """Raise FailedPrecondition, saying what would make it run, unless the runtime accepts work."""
    if runtime.status is not RuntimeStatus.RUNNING:
        raise FailedPrecondition(
            f"runtime {runtime.name} is not running",
            cause=f"it is {runtime.status}",
            hint=_REMEDIES.get(runtime.status, "`runta inspect {name}` tells more").format(name=runtime.name),
        )


def suggest(wanted: str, known: Iterable[str]) -> str | None:
    """A hint naming what exists under a similar name, or None."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there is: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else None
