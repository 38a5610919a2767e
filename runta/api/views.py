"""What the engine's records look like on the wire (API reference, section 3)."""

from __future__ import annotations

import platform
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from runta.errors import ServiceError
from runta.models import (
    DEFAULT_IMAGE,
    Checkpoint,
    EgressPolicy,
    Event,
    IdlePolicy,
    Image,
    MemoryUse,
    Resources,
    Runtime,
    Secret,
    TaskInfo,
)

Json = dict[str, Any]

OWNER = "local"
MAX_ERROR_MESSAGE = 4096
_DISK: Mapping[str, int] = {"minimum_gib": 1, "maximum_gib": 65536, "default_gib": Resources().disk_gib, "step_gib": 1}


def view_runtime(runtime: Runtime) -> Json:
    """The public Runtime object, complete: the official SDK's parser wants every field (section 3.1)."""
    return {
        "id": runtime.id,
        "display_name": runtime.name,
        "status": runtime.status,
        "desired_status": runtime.desired_status,
        "degraded": False,
        "revision": runtime.revision,
        "created_at": runtime.created_at,
        "updated_at": runtime.updated_at,
        "image_id": runtime.spec.image,
        "resources": view_resources(runtime.spec.resources),
        "ingress_specs": [asdict(spec) for spec in runtime.ingress],
        "egress_policy": view_egress(runtime.egress),
        "idle_policy": view_idle(runtime.idle),
        "environment_variables": dict(runtime.spec.env),
        "error_code": runtime.error_code,
        "error_message": _shorten(runtime.error_message),
        **_view_hosted(),
    }


def view_fork(result: Runtime | ServiceError) -> Json:
    """One fork of several: the runtime, or its own error as the envelope would tell it."""
    if isinstance(result, Runtime):
        return {"runtime": view_runtime(result), "error": None}
    return {"runtime": None, "error": {"code": result.code, "message": str(result), "status": result.http_status}}


def _view_hosted() -> Json:
    """Fields of what a local host has not: required by the public parser, and constant."""
    return {
        "llm_tool_io_capture_enabled": False,
        "llm_session_content_capture_enabled": False,
        "llm_token_saving_policy": {
            "json_array_enabled": False,
            "log_enabled": False,
            "search_results_enabled": False,
            "git_diff_enabled": False,
        },
        "ssh_enabled": False,
        "vnc_enabled": False,
        "vnc_ready": False,
        "vnc_error_code": None,
        "vnc_connection": {"hostname": "localhost", "port": 5900, "username": "runta", "security_type": "X509Plain"},
        "can_manage": True,
        "owner_user_id": OWNER,
        "secret_configuration": [],
        "tls_passthrough_hosts": [],
    }


def view_resources(resources: Resources) -> Json:
    """RuntimeResources (section 3.3). What is in use now is not measured here: `current` repeats the request."""
    return {
        "requests": {
            "memory_mib": resources.memory_mib,
            "vcpus": resources.vcpus,
            "disk_gib": resources.disk_gib,
        },
        "limits": {"memory_mib": resources.memory_limit_mib},
        "current": {"memory_mib": resources.memory_mib, "observed_disk_gib": resources.disk_gib},
    }


def view_egress(policy: EgressPolicy) -> Json:
    """Exactly the list that belongs to the mode."""
    return {"mode": policy.mode, "allowed_hosts" if policy.mode == "allowlist" else "denied_hosts": list(policy.hosts)}


def view_idle(policy: IdlePolicy) -> Json:
    if policy.suspend_after_secs is None:
        return {"mode": "disabled"}
    return {"mode": policy.mode, "suspend_after_secs": policy.suspend_after_secs}


def view_checkpoint(checkpoint: Checkpoint) -> Json:
    """The public Checkpoint object (section 3.4)."""
    return {
        "id": checkpoint.id,
        "display_name": checkpoint.name,
        "created_at": checkpoint.created_at,
        "state": checkpoint.state,
        "kind": checkpoint.kind,
        "resources": view_resources(checkpoint.spec.resources),
        "safe_error_code": checkpoint.error_code,
        "source_runtime": {
            "id": None if checkpoint.source_gone else checkpoint.source_id,
            "name": checkpoint.source_name,
        },
    }


def view_image(image: Image) -> Json:
    """The public Image object (section 4.4)."""
    default = Resources()
    return {
        "id": image.id,
        "name": image.name,
        "description": image.source,
        "icon_key": "linux",
        "architectures": [platform.machine()],
        "disk": dict(_DISK),
        "recommended_resources": {"vcpus": default.vcpus, "memory_mib": default.memory_mib},
        "is_default": image.name == DEFAULT_IMAGE,
        "is_custom": image.name != DEFAULT_IMAGE,
        "exposed_ports": [],
        "created_at": image.created_at,
    }


def view_secret(secret: Secret) -> Json:
    """The public Secret object (section 3.5)."""
    return {
        "id": secret.id,
        "display_name": secret.name,
        "cache_ttl_secs": secret.cache_ttl_secs,
        "value_preview": secret.preview,
        "created_at": secret.created_at,
        "updated_at": secret.updated_at,
    }


def view_event(event: Event) -> Json:
    """The public Event object (section 4.4); what is ours is in its payload."""
    return {
        "id": event.id,
        "runtime_id": event.runtime_id,
        "kind": event.kind,
        "payload": {
            "runtime_name": event.runtime_name,
            "caller": event.caller,
            "duration_ms": event.duration_ms,
            "outcome": event.outcome,
            **event.details,
        },
        "occurred_at_unix_millis": event.occurred_at_ms,
    }


def view_me() -> Json:
    """GET /v2/me: a local host has one user."""
    return {"user_id": OWNER, "email": "root@localhost", "display_name": OWNER}


def view_local(thing: Runtime | Checkpoint | Image | TaskInfo | MemoryUse) -> Json:
    """Everything known, under the names of `runta.models`: ours, beside the public API."""
    return asdict(thing)


def _shorten(text: str | None) -> str | None:
    """Within the 4096 bytes that SPEC allows."""
    return None if text is None else text.encode()[:MAX_ERROR_MESSAGE].decode(errors="ignore")
