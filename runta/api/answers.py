"""The answers' shapes, for the API's description: what `runta.api.views` makes (API reference, section 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any, Generic, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field

from runta.errors import API_CODES
from runta.models import CheckpointKind, CheckpointState, MemoryUse, Runtime, RuntimeStatus

T = TypeVar("T")
Responses = dict[int | str, dict[str, Any]]


class Answer(BaseModel):
    """Only described, never built: the views are."""

    model_config = ConfigDict(extra="forbid")


@dataclass(frozen=True, slots=True, kw_only=True)
class InspectedRuntime(Runtime):
    """All fields of a runtime, and what it takes now; null where it has no processes."""

    memory: MemoryUse | None


class Pagination(Answer):
    has_more: bool
    next_cursor: str | None


class Single(Answer, Generic[T]):
    data: T


class Listed(Answer, Generic[T]):
    data: list[T]


class Paged(Answer, Generic[T]):
    data: list[T]
    pagination: Pagination


class Nothing(Answer):
    pass


class Done(Answer):
    data: Nothing


class ErrorView(Answer):
    code: Annotated[str, Field(json_schema_extra={"enum": sorted(API_CODES)})]
    message: str


class ErrorEnvelope(Answer):
    error: ErrorView
    request_id: str


class RequestsView(Answer):
    memory_mib: int
    vcpus: int
    disk_gib: int


class LimitsView(Answer):
    memory_mib: int


class CurrentView(Answer):
    memory_mib: int
    observed_disk_gib: int


class ResourcesView(Answer):
    requests: RequestsView
    limits: LimitsView
    current: CurrentView


class IngressView(Answer):
    protocol: Literal["http", "https"]
    runtime_port: int


class DenylistView(Answer):
    mode: Literal["denylist"]
    denied_hosts: list[str]


class AllowlistView(Answer):
    mode: Literal["allowlist"]
    allowed_hosts: list[str]


class NeverIdleView(Answer):
    mode: Literal["disabled"]


class IdleView(Answer):
    mode: Literal["suspend_only", "suspend_and_wakeup"]
    suspend_after_secs: int


class TokenSavingView(Answer):
    json_array_enabled: bool
    log_enabled: bool
    search_results_enabled: bool
    git_diff_enabled: bool


class VncView(Answer):
    hostname: str
    port: int
    username: Literal["runta"]
    security_type: Literal["X509Plain"]


class RuntimeView(Answer):
    id: str
    display_name: str
    status: RuntimeStatus
    desired_status: RuntimeStatus
    degraded: bool
    revision: int
    created_at: str
    updated_at: str
    image_id: str
    resources: ResourcesView
    ingress_specs: list[IngressView]
    egress_policy: DenylistView | AllowlistView
    idle_policy: NeverIdleView | IdleView
    environment_variables: dict[str, str]
    error_code: str | None
    error_message: str | None
    llm_tool_io_capture_enabled: bool
    llm_session_content_capture_enabled: bool
    llm_token_saving_policy: TokenSavingView
    ssh_enabled: bool
    vnc_enabled: bool
    vnc_ready: bool
    vnc_error_code: str | None
    vnc_connection: VncView
    can_manage: bool
    owner_user_id: str
    secret_configuration: list[Any]
    tls_passthrough_hosts: list[str]


class ForkErrorView(ErrorView):
    status: int


class ForkView(Answer):
    runtime: RuntimeView | None
    error: ForkErrorView | None


class SourceView(Answer):
    id: str | None
    name: str


class CheckpointView(Answer):
    id: str
    display_name: str
    created_at: str
    state: CheckpointState
    kind: CheckpointKind
    resources: ResourcesView
    safe_error_code: str | None
    source_runtime: SourceView


class SecretView(Answer):
    id: str
    display_name: str
    cache_ttl_secs: int
    value_preview: str
    created_at: str
    updated_at: str


class EventView(Answer):
    id: str
    runtime_id: str | None
    kind: str
    payload: dict[str, Any]
    occurred_at_unix_millis: int


class EventPage(Answer):
    events: list[EventView]
    next_page_token: str | None


class DiskView(Answer):
    minimum_gib: int
    maximum_gib: int
    default_gib: int
    step_gib: int


class RecommendedView(Answer):
    vcpus: int
    memory_mib: int


class ImageView(Answer):
    id: str
    name: str
    description: str
    icon_key: str
    architectures: list[str]
    disk: DiskView
    recommended_resources: RecommendedView
    is_default: bool
    is_custom: bool
    exposed_ports: list[int]
    created_at: str


class UserView(Answer):
    user_id: str
    email: str
    display_name: str


def answers(status: int, shape: Any, **more: Any) -> Responses:
    """The success of an operation, and the envelope that every other status has."""
    return {status: {"model": shape, "description": "Success", **more}, **refusals()}


def refusals() -> Responses:
    """What every operation may answer instead."""
    return {"default": {"model": ErrorEnvelope, "description": "Refused: what happened, why and what to do"}}


def empty(status: int) -> Responses:
    """A success without a body."""
    return {status: {"description": "Success"}, **refusals()}


def binary(status: int, media_type: str) -> Responses:
    """A success that is bytes."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {status: {"description": "Success", "content": content}, **refusals()}


def takes_bytes(media_type: str) -> dict[str, Any]:
    """For `openapi_extra`: a body that is a stream."""
    content = {media_type: {"schema": {"type": "string", "format": "binary"}}}
    return {"requestBody": {"required": True, "content": content}}
