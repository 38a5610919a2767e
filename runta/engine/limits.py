"""What this host can give a runtime, and what a runtime may still be given."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from runta.errors import FailedPrecondition, InternalError, InvalidArgument, NoSpace
from runta.models import LIVE, PatchRuntime, Resources, Runtime

_MIN_FREE = 64 << 20
_MIB = 1 << 20
_MAKE_ROOM = "remove runtimes or checkpoints, or move RUNTA_STATE_DIR to a larger disk"


def check_resources(resources: Resources) -> Resources:
    """Return the resources, or raise InvalidArgument where this host could never give them."""
    cpus, memory = os.cpu_count() or 1, os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // _MIB
    if resources.vcpus < 1 or resources.vcpus > cpus:
        raise InvalidArgument(
            f"{resources.vcpus} CPUs can't be had", cause=f"this host has {cpus}", hint=f"ask for 1 to {cpus}"
        )
    for wanted in (resources.memory_mib, resources.memory_limit_mib):
        if wanted < 1 or wanted > memory:
            raise InvalidArgument(
                f"resources.requests.memory_mib must be >= 1 and <= {memory}",
                cause=f"{wanted} MiB was asked for; this host has {memory} MiB",
            )
    if resources.memory_limit_mib < resources.memory_mib:
        raise InvalidArgument("the memory limit is below the memory asked for")
    return resources


def require_room(path: Path, wanted: int = 0) -> None:
    """Raise NoSpace unless the state directory's file system has room for `wanted` bytes and a reserve."""
    free = shutil.disk_usage(path).free
    if free < wanted + _MIN_FREE:
        raise NoSpace(
            f"there is no room in {path}",
            cause=f"{free // _MIB} MiB are free, about {(wanted + _MIN_FREE) // _MIB} MiB are needed",
            hint=_MAKE_ROOM,
        )


def patch_resources(runtime: Runtime, changes: PatchRuntime) -> Resources:
    """The resources after a patch. Raises InvalidArgument or FailedPrecondition where they can't be given."""
    now_has = runtime.spec.resources
    if changes.disk_gib is not None and changes.disk_gib < now_has.disk_gib:
        raise InvalidArgument("a disk can't shrink", cause=f"it has {now_has.disk_gib} GiB")
    if changes.disk_gib is not None and changes.disk_gib > now_has.disk_gib and runtime.status in LIVE:
        raise FailedPrecondition(
            "a disk grows only while its runtime is shut down", hint=f"`runta shutdown {runtime.name}`"
        )
    return check_resources(
        replace(
            now_has,
            memory_mib=changes.memory_mib or now_has.memory_mib,
            memory_max_mib=changes.memory_max_mib or (None if changes.memory_mib else now_has.memory_max_mib),
            disk_gib=changes.disk_gib or now_has.disk_gib,
        )
    )


@contextlib.contextmanager
def translating(what: str) -> Iterator[None]:
    """What the disk refuses the block, in the API's words; a full one is told as such, whoever met it."""
    try:
        yield
    except OSError as err:
        if err.errno in (errno.ENOSPC, errno.EDQUOT):
            raise NoSpace(f"there is no room for {what}", cause=str(err), hint=_MAKE_ROOM) from err
        raise InternalError(f"{what} failed", cause=str(err)) from err
    except InternalError as err:
        if isinstance(err, NoSpace) or "No space left" not in f"{err.message} {err.cause}":
            raise
        raise NoSpace(f"there is no room for {what}", cause=err.cause, hint=_MAKE_ROOM) from err
