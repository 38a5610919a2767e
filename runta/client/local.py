"""Operations that only a local service has, beside the public API, as steps."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from urllib.parse import quote, urlencode

from runta.client.answers import data_of, raise_for_status
from runta.client.steps import BUSY, Request, Steps

BUILD_TIMEOUT = 3600.0
Record = Mapping[str, Any]


def local_path(ref: str, *rest: str) -> str:
    """`/v2/local/runtimes/<id or name>/…`"""
    return "/".join(["/v2/local/runtimes", quote(ref, safe=""), *rest])


def attach_path(ref: str, task_id: int, offsets: Mapping[str, int] | None = None) -> str:
    """The WebSocket of a task, from the given absolute offsets (by stream) or from the oldest retained byte."""
    query = urlencode({f"{stream}_offset": offset for stream, offset in (offsets or {}).items()})
    return local_path(ref, "tasks", str(task_id), "attach") + (f"?{query}" if query else "")


def inspect_runtime(ref: str) -> Steps[Record]:
    """All the service knows of a runtime."""
    record: Record = yield from _read(local_path(ref))
    return record


def inspect_checkpoint(ref: str) -> Steps[Record]:
    """All the service knows of a checkpoint."""
    record: Record = yield from _read(f"/v2/local/checkpoints/{quote(ref, safe='')}")
    return record


def list_tasks(ref: str) -> Steps[list[Record]]:
    """The runtime's tasks, running and ended."""
    tasks: list[Record] = yield from _read(local_path(ref, "tasks"))
    return tasks


def signal_task(ref: str, task_id: int, signal: str) -> Steps[None]:
    """To the task's process group; `signal` by name, such as INT."""
    path = local_path(ref, "tasks", str(task_id), "signal")
    raise_for_status((yield Request(method="POST", path=path, json={"signal": signal})))


def list_images() -> Steps[list[Record]]:
    """The base images of this host."""
    images: list[Record] = yield from _read("/v2/local/images")
    return images


def build_image(name: str) -> Steps[Record]:
    """Build the image of a recipe; this may take minutes."""
    request = Request(method="POST", path="/v2/local/images/build", json={"name": name}, timeout=BUILD_TIMEOUT)
    return record_of((yield request))


def delete_image(ref: str) -> Steps[None]:
    """By id or name."""
    raise_for_status((yield Request(method="DELETE", path=f"/v2/local/images/{quote(ref, safe='')}")))


def record_of(reply: Any) -> Record:
    """The object an answer holds."""
    record: Record = data_of(reply)
    return record


def _read(path: str) -> Steps[Any]:
    return data_of((yield Request(method="GET", path=path, retry_on=BUSY)))
