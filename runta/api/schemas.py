"""Request bodies, and the models they become (API reference, sections 3.3, 4.1 and 4.2)."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Discriminator, Field, Tag

from runta.errors import InvalidArgument, Unimplemented
from runta.models import (
    DEFAULT_IMAGE,
    CheckpointKind,
    CreateRuntime,
    EgressPolicy,
    IdlePolicy,
    IngressSpec,
    PatchRuntime,
    Resources,
)
from runta.rules import MAX_SECRET_BYTES, check_env

MAX_INGRESS = 16
MAX_CACHE_SECS = 3600
MAX_HOSTS = 128
MAX_FORKS = 100
_HOST = re.compile(r"(\*\.)?[a-z0-9_]([a-z0-9_-]{0,62})(\.[a-z0-9_]([a-z0-9_-]{0,62}))*")


class Body(BaseModel):
    """A body or a part of one; unknown fields are refused, as SPEC's additionalProperties says."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)


class Requests(Body):
    memory_mib: int = Field(default=1024, ge=1)
    vcpus: int = Field(default=1, ge=1, le=2147483647)
    disk_gib: int | None = Field(default=None, ge=1)


class Limits(Body):
    memory_mib: int | None = Field(default=None, ge=1)


class CreateResources(Body):
    requests: Requests = Requests()
    limits: Limits | None = None

    def to_model(self) -> Resources:
        limit = self.limits.memory_mib if self.limits else None
        _check_limit(self.requests.memory_mib, limit)
        disk = Resources().disk_gib if self.requests.disk_gib is None else self.requests.disk_gib
        return Resources(
            vcpus=self.requests.vcpus, memory_mib=self.requests.memory_mib, memory_max_mib=limit, disk_gib=disk
        )


class PatchRequests(Body):
    memory_mib: int | None = Field(default=None, ge=1)
    disk_gib: int | None = Field(default=None, ge=1)


class PatchResources(Body):
    requests: PatchRequests = PatchRequests()
    limits: Limits = Limits()


class Denylist(Body):
    mode: Literal["denylist"] = "denylist"
    denied_hosts: list[str] = Field(default_factory=list, max_length=MAX_HOSTS)

    def to_model(self) -> EgressPolicy:
        return EgressPolicy(mode=self.mode, hosts=tuple(check_host(host) for host in self.denied_hosts))


class Allowlist(Body):
    mode: Literal["allowlist"]
    allowed_hosts: list[str] = Field(default_factory=list, max_length=MAX_HOSTS)

    def to_model(self) -> EgressPolicy:
        return EgressPolicy(mode=self.mode, hosts=tuple(check_host(host) for host in self.allowed_hosts))


Egress = Annotated[Denylist | Allowlist, Field(discriminator="mode")]


class Ingress(Body):
    protocol: Literal["http", "https"]
    runtime_port: int = Field(ge=1, le=65535)

    def to_model(self) -> IngressSpec:
        return IngressSpec(protocol=self.protocol, runtime_port=self.runtime_port)


class Idle(Body):
    mode: Literal["disabled", "suspend_only", "suspend_and_wakeup"]
    suspend_after_secs: int | None = Field(default=None, ge=1)

    def to_model(self) -> IdlePolicy:
        if (self.mode == "disabled") is not (self.suspend_after_secs is None):
            raise InvalidArgument(
                "idle_policy.suspend_after_secs belongs to suspend_only and suspend_and_wakeup, and to them alone"
            )
        return IdlePolicy(mode=self.mode, suspend_after_secs=self.suspend_after_secs)


class ImageRef(BaseModel):
    """An image by id or name; the public object has more fields, which say nothing here."""

    id: str = Field(min_length=1)


class Hosted(Body):
    """Fields of what only the hosted service has: known, and refused where they ask for something."""

    vnc_enabled: bool | None = None
    llm_tool_io_capture_enabled: bool | None = None
    llm_session_content_capture_enabled: bool | None = None
    llm_token_saving_policy: dict[str, bool] | None = None
    tls_passthrough_hosts: list[Any] | None = None
    secret_configuration: list[Any] | None = None

    def refuse_hosted(self) -> None:
        """Raise Unimplemented naming the first field that asks for something a local host lacks."""
        for name in (*Hosted.model_fields, "ssh_key_ids", "repositories"):
            value = getattr(self, name, None)
            if any(value.values()) if isinstance(value, dict) else bool(value):
                raise Unimplemented(
                    f"{name} is a feature of the hosted service; this local one has none", hint=f"leave {name} out"
                )


class NewRuntime(Hosted):
    """What both shapes of POST /v2/runtimes have."""

    name: str | None = None
    resources: CreateResources | None = None
    egress_policy: Egress = Denylist()
    ingress_specs: list[Ingress] = Field(default_factory=list, max_length=MAX_INGRESS)
    idle_policy: Idle = Idle(mode="disabled")
    ssh_key_ids: list[Any] | None = None
    repositories: list[Any] | None = None

    def _to_request(self, **more: Any) -> CreateRuntime:
        self.refuse_hosted()
        return CreateRuntime(
            name=self.name,
            resources=self.resources.to_model() if self.resources else None,
            egress=self.egress_policy.to_model(),
            ingress=tuple(spec.to_model() for spec in self.ingress_specs),
            idle=self.idle_policy.to_model(),
            **more,
        )


class FreshRuntime(NewRuntime):
    image: ImageRef | None = None
    environment_variables: dict[str, str] = Field(default_factory=dict)

    def to_model(self) -> CreateRuntime:
        image = self.image.id if self.image else DEFAULT_IMAGE
        return self._to_request(image=image, env=check_env(self.environment_variables))


class RestoredRuntime(NewRuntime):
    checkpoint_id: str = Field(min_length=1)

    def to_model(self) -> CreateRuntime:
        return self._to_request(checkpoint=self.checkpoint_id)


class LocalRestore(NewRuntime):
    """POST /v2/local/checkpoints/{id}/restore: a restore's body, and how."""

    lazy: bool = False

    def to_model(self, checkpoint: str) -> CreateRuntime:
        return self._to_request(checkpoint=checkpoint, lazy=self.lazy)


def _tell_shape(value: object) -> str:
    return "restore" if isinstance(value, dict) and value.get("checkpoint_id") is not None else "fresh"


CreateBody = Annotated[
    Annotated[FreshRuntime, Tag("fresh")] | Annotated[RestoredRuntime, Tag("restore")], Discriminator(_tell_shape)
]


class PatchBody(Hosted):
    """PATCH /v2/runtimes/{id}: what is left out stays as it is (section 4.2)."""

    display_name: str | None = Field(default=None, min_length=1, max_length=63)
    resources: PatchResources | None = None
    egress_policy: Egress | None = None
    ingress_specs: list[Ingress] | None = Field(default=None, max_length=MAX_INGRESS)
    idle_policy: Idle | None = None
    environment_variables: dict[str, str] | None = None

    def to_model(self) -> PatchRuntime:
        self.refuse_hosted()
        resources = self.resources or PatchResources()
        if resources.requests.memory_mib is not None:
            _check_limit(resources.requests.memory_mib, resources.limits.memory_mib)
        return PatchRuntime(
            name=self.display_name,
            memory_mib=resources.requests.memory_mib,
            memory_max_mib=resources.limits.memory_mib,
            disk_gib=resources.requests.disk_gib,
            env=None if self.environment_variables is None else check_env(self.environment_variables),
            ingress=None if self.ingress_specs is None else tuple(spec.to_model() for spec in self.ingress_specs),
            egress=self.egress_policy.to_model() if self.egress_policy else None,
            idle=self.idle_policy.to_model() if self.idle_policy else None,
        )


class CheckpointBody(Body):
    """POST /v2/runtimes/{id}/checkpoints; `live` is another word for `full` (section 10)."""

    kind: Literal["full", "live", "cold"] = "full"
    name: str | None = None

    def to_kind(self) -> CheckpointKind:
        return CheckpointKind.COLD if self.kind == "cold" else CheckpointKind.FULL


class SecretBody(Body):
    """PUT /v2/secrets/{id or name}."""

    value: str = Field(min_length=1, max_length=MAX_SECRET_BYTES)
    cache_ttl_secs: int = Field(default=0, ge=0, le=MAX_CACHE_SECS)


class NewSecretBody(SecretBody):
    """POST /v2/secrets."""

    name: str = Field(min_length=1, max_length=128)


class ForkBody(Body):
    """POST /v2/local/runtimes/{id}/fork: a name for each fork, null for one that is made up."""

    names: list[str | None] = Field(min_length=1, max_length=MAX_FORKS)


class RollbackBody(Body):
    checkpoint: str = Field(min_length=1)


class SignalBody(Body):
    signal: str


class BuildBody(Body):
    name: str = Field(min_length=1)


def check_host(host: str) -> str:
    """The host in one spelling; raise InvalidArgument unless it is a name, a `*.` wildcard, an address or a network."""
    plain = host.strip().lower().removesuffix(".")
    if _HOST.fullmatch(plain) and len(plain) <= 253:
        return plain
    try:
        ipaddress.ip_network(plain, strict=False)
    except ValueError:
        raise InvalidArgument(
            f"invalid egress host '{host}'", hint="name a host, *.domain, an IP address or a network, not a URL"
        ) from None
    return plain


def parse_choices(text: str | None, known: Sequence[str], what: str) -> frozenset[str]:
    """A comma list of known words; none given means no restriction: the empty set."""
    chosen = frozenset(part.strip() for part in (text or "").split(",") if part.strip())
    if unknown := sorted(chosen - set(known)):
        raise InvalidArgument(f"{', '.join(unknown)}: no such {what}", hint=f"known are {', '.join(known)}")
    return chosen


def _check_limit(memory: int, limit: int | None) -> None:
    if limit is not None and limit < memory:
        raise InvalidArgument("resources.limits.memory_mib must be >= resources.requests.memory_mib")
