"""What the SDK's calls take and give: values with their wire form."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, Self

from runta.models import CheckpointState, RuntimeStatus

__all__ = [
    "CheckpointInfo",
    "CheckpointState",
    "CommandResult",
    "CreateRuntimeResourceRequests",
    "CreateRuntimeResources",
    "EgressMode",
    "EgressPolicy",
    "IngressSpec",
    "PatchRuntimeResourceRequests",
    "PatchRuntimeResources",
    "RuntimeInfo",
    "RuntimeResourceLimits",
    "RuntimeResourceRequests",
    "RuntimeResources",
    "RuntimeStatus",
    "SecretInfo",
]

Json = Mapping[str, Any]


class EgressMode(StrEnum):
    """`denylist`: all hosts but the denied ones; `allowlist`: no hosts but the allowed ones."""

    DENYLIST = "denylist"
    ALLOWLIST = "allowlist"


@dataclass(frozen=True, slots=True)
class IngressSpec:
    """A port of the runtime that others may reach; protocol `http` or `https`."""

    protocol: str
    runtime_port: int

    def to_json(self) -> dict[str, Any]:
        return {"protocol": self.protocol, "runtime_port": self.runtime_port}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        return cls(str(data["protocol"]), int(data["runtime_port"]))


@dataclass(frozen=True, slots=True)
class EgressPolicy:
    """Hosts a runtime may talk to: names, `*.` wildcards, addresses or networks.

    Raises ValueError for an unknown mode.
    """

    mode: EgressMode | str = EgressMode.DENYLIST
    allowed_hosts: list[str] = field(default_factory=list)
    denied_hosts: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        object.__setattr__(self, "mode", EgressMode(self.mode))

    def normalized(self) -> EgressPolicy:
        """Hosts in lower case, without a trailing dot, sorted, each once."""
        return EgressPolicy(self.mode, _normalize_hosts(self.allowed_hosts), _normalize_hosts(self.denied_hosts))

    def to_json(self) -> dict[str, Any]:
        """The mode and the one list that belongs to it."""
        if self.mode == EgressMode.ALLOWLIST:
            return {"mode": "allowlist", "allowed_hosts": list(self.allowed_hosts)}
        return {"mode": "denylist", "denied_hosts": list(self.denied_hosts)}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        return cls(
            data.get("mode", "denylist"), list(data.get("allowed_hosts") or ()), list(data.get("denied_hosts") or ())
        )


@dataclass(frozen=True, slots=True)
class RuntimeResourceRequests:
    """What a runtime asked for: memory in MiB, and virtual CPUs."""

    memory_mib: int
    vcpus: int

    def to_json(self) -> dict[str, Any]:
        return {"memory_mib": self.memory_mib, "vcpus": self.vcpus}


@dataclass(frozen=True, slots=True)
class RuntimeResourceLimits:
    """The most memory a runtime may use, in MiB."""

    memory_mib: int

    def to_json(self) -> dict[str, Any]:
        return {"memory_mib": self.memory_mib}


@dataclass(frozen=True, slots=True)
class RuntimeResources:
    """What a runtime has."""

    requests: RuntimeResourceRequests
    limits: RuntimeResourceLimits

    def to_json(self) -> dict[str, Any]:
        return {"requests": self.requests.to_json(), "limits": self.limits.to_json()}

    @classmethod
    def from_json(cls, data: Json) -> Self:
        requests, limits = data["requests"], data["limits"]
        return cls(
            RuntimeResourceRequests(int(requests["memory_mib"]), int(requests["vcpus"])),
            RuntimeResourceLimits(int(limits["memory_mib"])),
        )


@dataclass(frozen=True, slots=True)
class CreateRuntimeResourceRequests:
    """What a new runtime asks for: memory in MiB, and virtual CPUs."""

    memory_mib: int = 1024
    vcpus: int = 1

    def to_json(self) -> dict[str, Any]:
        return {"memory_mib": self.memory_mib, "vcpus": self.vcpus}


@dataclass(frozen=True, slots=True)
class CreateRuntimeResources:
    """What a new runtime gets; without limits the request is the limit."""

    requests: CreateRuntimeResourceRequests = field(default_factory=CreateRuntimeResourceRequests)
    limits: RuntimeResourceLimits | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {"requests": self.requests.to_json()}
        return data if self.limits is None else {**data, "limits": self.limits.to_json()}


@dataclass(frozen=True, slots=True)
class PatchRuntimeResourceRequests:
    """A change of what was asked for; None leaves it."""

    memory_mib: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {} if self.memory_mib is None else {"memory_mib": self.memory_mib}


@dataclass(frozen=True, slots=True)
class PatchRuntimeResources:
    """A change of a runtime's resources; None leaves a part as it is."""

    requests: PatchRuntimeResourceRequests | None = None
    limits: RuntimeResourceLimits | None = None

    def to_json(self) -> dict[str, Any]:
        data: dict[str, Any] = {}
        if self.requests is not None:
            data["requests"] = self.requests.to_json()
        if self.limits is not None:
            data["limits"] = self.limits.to_json()
        return data


@dataclass(frozen=True, slots=True)
class RuntimeInfo:
    """A runtime as the service told it at one moment."""

    id: str
    display_name: str
    resources: RuntimeResources
    ingress_specs: list[IngressSpec]
    status: RuntimeStatus
    egress_policy: EgressPolicy = field(default_factory=EgressPolicy)
    revision: int = 1
    error_message: str | None = None
    raw: Json = field(default_factory=dict, repr=False, compare=False)
    """The whole answer, with the fields that have no attribute here."""

    @classmethod
    def from_json(cls, data: Json) -> Self:
        return cls(
            id=str(data["id"]),
            display_name=str(data["display_name"]),
            resources=RuntimeResources.from_json(data["resources"]),
            ingress_specs=[IngressSpec.from_json(item) for item in data.get("ingress_specs", ())],
            status=RuntimeStatus(data["status"]),
            egress_policy=EgressPolicy.from_json(data.get("egress_policy") or {}),
            revision=int(data.get("revision", 1)),
            error_message=data.get("error_message"),
            raw=data,
        )


@dataclass(frozen=True, slots=True)
class CheckpointInfo:
    """A checkpoint as the service told it at one moment."""

    id: str
    display_name: str
    resources: RuntimeResources
    state: CheckpointState
    kind: str | None = None
    """`full` or `cold`."""
    safe_error_code: str | None = None
    """Why it failed."""
    raw: Json = field(default_factory=dict, repr=False, compare=False)
    """The whole answer, with the fields that have no attribute here."""

    @classmethod
    def from_json(cls, data: Json) -> Self:
        return cls(
            id=str(data["id"]),
            display_name=str(data["display_name"]),
            resources=RuntimeResources.from_json(data["resources"]),
            state=CheckpointState(data["state"]),
            kind=data.get("kind"),
            safe_error_code=data.get("safe_error_code"),
            raw=data,
        )


@dataclass(frozen=True, slots=True)
class SecretInfo:
    """A stored secret, without its value."""

    id: str
    display_name: str
    cache_ttl_secs: int
    """How long an injected value may be kept, seconds."""
    value_preview: str | None = None

    @classmethod
    def from_json(cls, data: Json) -> Self:
        return cls(
            str(data["id"]), str(data["display_name"]), int(data.get("cache_ttl_secs", 0)), data.get("value_preview")
        )


@dataclass(frozen=True, slots=True)
class CommandResult:
    """What a command left: its exit code (124 after a timeout, 127 not found) and its output."""

    exit_code: int
    stdout: bytes
    stderr: bytes
    duration: float
    """Seconds."""
    stdout_truncated: bool = False
    stderr_truncated: bool = False

    @property
    def stdout_text(self) -> str:
        """Standard output as text; what is not UTF-8 is replaced."""
        return self.stdout.decode(errors="replace")

    @property
    def stderr_text(self) -> str:
        """Standard error as text; what is not UTF-8 is replaced."""
        return self.stderr.decode(errors="replace")


def _normalize_hosts(hosts: list[str]) -> list[str]:
    return sorted({host.strip().rstrip(".").lower() for host in hosts})
