"""Forkable sandboxes for one Linux host.

The names below are imported when they are first used, so that `import runta` costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from runta.client.aio import AsyncRunta, AsyncRuntime, AsyncRuntimeManager
    from runta.client.aio_parts import (
        AsyncCheckpointManager,
        AsyncEgressManager,
        AsyncFileManager,
        AsyncRuntimeCheckpointManager,
        AsyncSecretManager,
    )
    from runta.client.forks import Fork
    from runta.client.sync import Runta, Runtime, RuntimeManager
    from runta.client.sync_parts import (
        CheckpointManager,
        EgressManager,
        FileManager,
        RuntimeCheckpointManager,
        SecretManager,
    )
    from runta.client.types import (
        CheckpointInfo,
        CheckpointState,
        CommandResult,
        CreateRuntimeResourceRequests,
        CreateRuntimeResources,
        EgressMode,
        EgressPolicy,
        IngressSpec,
        PatchRuntimeResourceRequests,
        PatchRuntimeResources,
        RuntimeInfo,
        RuntimeResourceLimits,
        RuntimeResourceRequests,
        RuntimeResources,
        RuntimeStatus,
        SecretInfo,
    )
    from runta.errors import ApiError, CommandError, ConfigError, ExecutionError, RuntaError

__all__ = [
    "ApiError",
    "AsyncCheckpointManager",
    "AsyncEgressManager",
    "AsyncFileManager",
    "AsyncRunta",
    "AsyncRuntime",
    "AsyncRuntimeCheckpointManager",
    "AsyncRuntimeManager",
    "AsyncSecretManager",
    "CheckpointInfo",
    "CheckpointManager",
    "CheckpointState",
    "CommandError",
    "CommandResult",
    "ConfigError",
    "CreateRuntimeResourceRequests",
    "CreateRuntimeResources",
    "EgressManager",
    "EgressMode",
    "EgressPolicy",
    "ExecutionError",
    "FileManager",
    "Fork",
    "IngressSpec",
    "PatchRuntimeResourceRequests",
    "PatchRuntimeResources",
    "Runta",
    "RuntaError",
    "Runtime",
    "RuntimeCheckpointManager",
    "RuntimeInfo",
    "RuntimeManager",
    "RuntimeResourceLimits",
    "RuntimeResourceRequests",
    "RuntimeResources",
    "RuntimeStatus",
    "SecretInfo",
    "SecretManager",
]

_HOMES = {
    "runta.client.aio": {"AsyncRunta", "AsyncRuntime", "AsyncRuntimeManager"},
    "runta.client.aio_parts": {
        "AsyncCheckpointManager",
        "AsyncEgressManager",
        "AsyncFileManager",
        "AsyncRuntimeCheckpointManager",
        "AsyncSecretManager",
    },
    "runta.client.forks": {"Fork"},
    "runta.client.sync": {"Runta", "Runtime", "RuntimeManager"},
    "runta.client.sync_parts": {
        "CheckpointManager",
        "EgressManager",
        "FileManager",
        "RuntimeCheckpointManager",
        "SecretManager",
    },
    "runta.errors": {"ApiError", "CommandError", "ConfigError", "ExecutionError", "RuntaError"},
}
"""Where the names are; the others are in `runta.client.types`."""


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'runta' has no attribute {name!r}")
    home = next((module for module, names in _HOMES.items() if name in names), "runta.client.types")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
