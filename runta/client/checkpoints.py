"""The checkpoints' operations, as steps."""

from __future__ import annotations

import secrets
import time
from urllib.parse import quote

from runta.client.answers import data_of, raise_for_status
from runta.client.runtimes import FIRST_POLL, list_pages, runtime_path
from runta.client.steps import BUSY, Request, Sleep, Steps
from runta.client.types import CheckpointInfo, CheckpointState
from runta.errors import ApiError

CREATE_TIMEOUT = 60.0
KINDS = ("full", "live", "cold")


def checkpoint_path(ref: str) -> str:
    """`/v2/checkpoints/<id or name>`"""
    return f"/v2/checkpoints/{quote(ref, safe='')}"


def create_checkpoint(runtime: str, runtime_name: str, kind: str, name: str | None) -> Steps[CheckpointInfo]:
    """Capture a runtime; unnamed ones are called `<runtime>-<8 hex digits>`.

    Raises ValueError for an unknown kind.
    """
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}")
    body = {"kind": kind, "name": name or f"{runtime_name}-{secrets.token_hex(4)}"}
    path = runtime_path(runtime, "checkpoints")
    reply = yield Request(method="POST", path=path, json=body, timeout=CREATE_TIMEOUT)
    return CheckpointInfo.from_json(data_of(reply))


def list_checkpoints() -> Steps[list[CheckpointInfo]]:
    """All of them, in the service's order."""
    return [CheckpointInfo.from_json(item) for item in (yield from list_pages("/v2/checkpoints"))]


def list_checkpoints_of(runtime_id: str, runtime_name: str) -> Steps[list[CheckpointInfo]]:
    """Those made of this runtime; where the service does not tell the source, those named after it."""
    return [info for info in (yield from list_checkpoints()) if _is_made_of(info, runtime_id, runtime_name)]


def get_checkpoint(ref: str) -> Steps[CheckpointInfo]:
    """By id or display name.

    Raises ApiError with status 404 if there is none.
    """
    try:
        reply = yield Request(method="GET", path=checkpoint_path(ref), retry_on=BUSY)
        return CheckpointInfo.from_json(data_of(reply))
    except ApiError as err:
        if err.status_code not in (400, 404, 422):
            raise
        found = [info for info in (yield from list_checkpoints()) if ref in (info.id, info.display_name)]
        if not found:
            raise
        return found[0]


def delete_checkpoint(ref: str) -> Steps[None]:
    """By id or display name."""
    info = yield from get_checkpoint(ref)
    raise_for_status((yield Request(method="DELETE", path=checkpoint_path(info.id))))


def wait_for_checkpoint(ref: str, *, timeout: float, poll_interval: float) -> Steps[CheckpointInfo]:
    """Read until it is ready.

    Raises RuntimeError if it failed, TimeoutError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    delay = min(FIRST_POLL, poll_interval)
    while True:
        info = yield from get_checkpoint(ref)
        if settled(info):
            return info
        if time.monotonic() + delay > deadline:
            raise TimeoutError(f"checkpoint {info.display_name} is still being made after {timeout:g} seconds")
        yield Sleep(delay)
        delay = min(delay * 2, poll_interval)


def settled(info: CheckpointInfo) -> bool:
    """Whether it is ready; False while it is being made.

    Raises RuntimeError if it failed.
    """
    if info.state is CheckpointState.FAILED:
        reason = info.raw.get("error_message") or info.safe_error_code
        raise RuntimeError(f"checkpoint {info.display_name} failed" + (f"\nwhy: {reason}" if reason else ""))
    return info.state is CheckpointState.READY


def _is_made_of(info: CheckpointInfo, runtime_id: str, runtime_name: str) -> bool:
    source = info.raw.get("source_runtime")
    if isinstance(source, dict):
        return source.get("id") == runtime_id
    return info.display_name.startswith(f"{runtime_name}-")
