"""The runtimes' operations, as steps."""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from runta.client.answers import data_of, raise_for_status
from runta.client.steps import BUSY, Reply, Request, Sleep, Steps
from runta.client.types import (
    CreateRuntimeResources,
    EgressPolicy,
    IngressSpec,
    PatchRuntimeResources,
    RuntimeInfo,
    RuntimeStatus,
)
from runta.errors import ApiError

PAGE = 100
FIRST_POLL = 0.02
CONFLICT = "runtime revision conflict:"
CONFLICT_TRIES = 3
ENDED = frozenset({RuntimeStatus.ERROR, RuntimeStatus.CRASHED, RuntimeStatus.DELETING})
"""States a waiter gives up on."""


def runtime_path(ref: str, *rest: str) -> str:
    """`/v2/runtimes/<id or name>/…`"""
    return "/".join(["/v2/runtimes", quote(ref, safe=""), *rest])


def check_health() -> Steps[bool]:
    """True, or an ApiError."""
    raise_for_status((yield Request(method="GET", path="/healthz")))
    return True


def list_pages(path: str, query: Mapping[str, str] | None = None) -> Steps[list[Mapping[str, Any]]]:
    """Every item of a paged list, in the service's order."""
    items: list[Mapping[str, Any]] = []
    after: dict[str, str] = {}
    while True:
        request = Request(method="GET", path=path, query={**(query or {}), "limit": str(PAGE), **after}, retry_on=BUSY)
        reply: Reply = yield request
        items += data_of(reply)
        cursor = next_cursor(reply)
        if cursor is None or after.get("after") == cursor:
            return items
        after = {"after": cursor}


def next_cursor(reply: Reply) -> str | None:
    """Where the next page of a list begins."""
    pagination = json.loads(reply.body).get("pagination") or {}
    cursor = pagination.get("next_cursor") if pagination.get("has_more") else None
    return cursor if isinstance(cursor, str) and cursor else None


def list_runtimes(status: str | Sequence[str] | None = None) -> Steps[list[RuntimeInfo]]:
    """Runtimes in one of the given states; None: all.

    Raises ValueError for an unknown state.
    """
    wanted = [status] if isinstance(status, str) else list(status or ())
    query = {"status": ",".join(RuntimeStatus(name.lower()) for name in wanted)} if wanted else {}
    items = yield from list_pages("/v2/runtimes", query)
    return [RuntimeInfo.from_json(item) for item in items]


def get_runtime(ref: str) -> Steps[RuntimeInfo]:
    """By id or display name; where the service takes ids only, by its list.

    Raises ApiError with status 404 if there is none.
    """
    try:
        return (yield from read_runtime(ref))
    except ApiError as err:
        if err.status_code not in (400, 404, 422):
            raise
        found = [info for info in (yield from list_runtimes()) if ref in (info.id, info.display_name)]
        if not found:
            raise
        return found[0]


def read_runtime(ref: str) -> Steps[RuntimeInfo]:
    """One GET: whatever the service takes as a reference."""
    return RuntimeInfo.from_json(data_of((yield Request(method="GET", path=runtime_path(ref), retry_on=BUSY))))


def create_runtime(body: Mapping[str, Any]) -> Steps[RuntimeInfo]:
    """Create or restore; repeated tries make one runtime. What only a local service can do has a path of its own."""
    headers = {"Idempotency-Key": str(uuid.uuid4())}
    path = "/v2/runtimes"
    if body.get("lazy"):
        path = f"/v2/local/checkpoints/{quote(body['checkpoint_id'], safe='')}/restore"
        body = {name: value for name, value in body.items() if name != "checkpoint_id"}
    request = Request(method="POST", path=path, json=body, headers=headers, retry_on=BUSY)
    return RuntimeInfo.from_json(data_of((yield request)))


def create_body(
    name: str | None,
    *,
    checkpoint_id: str | None,
    vcpus: int,
    memory_mib: int,
    memory_max_mib: int | None,
    resources: CreateRuntimeResources | Mapping[str, object] | None,
    ingress_specs: Sequence[IngressSpec | Mapping[str, object]] | None,
    egress_policy: EgressPolicy | None,
    idle_suspend_after_secs: int | None,
    image: str | None = None,
    environment: Mapping[str, str] | None = None,
    lazy: bool = False,
) -> dict[str, Any]:
    """The body of a create or a restore.

    Raises ValueError where the most memory is less than the memory, and for a lazy create without a checkpoint.
    """
    if lazy and checkpoint_id is None:
        raise ValueError("lazy is a way to restore: it needs a checkpoint_id")
    if memory_max_mib is not None and memory_max_mib < memory_mib:
        raise ValueError("memory_max_mib must not be less than memory_mib")
    body: dict[str, Any] = {
        "egress_policy": (egress_policy or EgressPolicy()).normalized().to_json(),
        "ingress_specs": [_ingress_json(item) for item in ingress_specs or ()],
    }
    if name is not None:
        body["name"] = name
    if idle_suspend_after_secs is not None:
        body["idle_policy"] = {"mode": "suspend_and_wakeup", "suspend_after_secs": idle_suspend_after_secs}
    if resources is not None:
        body["resources"] = _json_of(resources)
    if checkpoint_id is not None:
        return {**body, "checkpoint_id": checkpoint_id, **({"lazy": True} if lazy else {})}
    fresh: dict[str, Any] = {
        "requests": {"memory_mib": memory_mib, "vcpus": vcpus},
        "limits": {"memory_mib": memory_max_mib or memory_mib},
    }
    body = {"resources": fresh, **body}
    if image is not None:
        body["image"] = {"id": image}
    if environment:
        body["environment_variables"] = dict(environment)
    return body


def change_runtime(ref: str, verb: str) -> Steps[RuntimeInfo]:
    """One of `start`, `pause`, `resume`, `stop`."""
    return data_to_info((yield from _at_revision(ref, lambda query: _post(runtime_path(ref, verb), query))))


def patch_runtime(ref: str, changes: Mapping[str, Any]) -> Steps[RuntimeInfo]:
    """Change what may be changed while it runs."""
    return data_to_info(
        (
            yield from _at_revision(
                ref, lambda query: Request(method="PATCH", path=runtime_path(ref), query=query, json=changes)
            )
        )
    )


def resources_json(resources: PatchRuntimeResources | Mapping[str, object]) -> dict[str, Any]:
    """The body of a change of resources."""
    return {"resources": _json_of(resources)}


def memory_json(memory_mib: int) -> dict[str, Any]:
    """The body that sets the memory's request and limit alike."""
    return {"resources": {"requests": {"memory_mib": memory_mib}, "limits": {"memory_mib": memory_mib}}}


def delete_runtime(ref: str) -> Steps[None]:
    """Delete; one that is already gone is deleted."""
    try:
        reply = yield from _at_revision(
            ref,
            lambda query: Request(
                method="DELETE", path=runtime_path(ref), query=query, retry_on=BUSY | frozenset({500})
            ),
        )
        raise_for_status(reply)
    except ApiError as err:
        if err.status_code != 404:
            raise


def wait_for_runtime(ref: str, *, timeout: float, poll_interval: float) -> Steps[RuntimeInfo]:
    """Read until it runs.

    Raises RuntimeError where it can't run any more, TimeoutError after `timeout` seconds.
    """
    deadline = time.monotonic() + timeout
    delay = min(FIRST_POLL, poll_interval)
    while True:
        info = yield from read_runtime(ref)
        if info.status is RuntimeStatus.RUNNING:
            return info
        if info.status in ENDED:
            why = f"\nwhy: {info.error_message}" if info.error_message else ""
            raise RuntimeError(f"runtime {info.display_name} is {info.status}{why}")
        if time.monotonic() + delay > deadline:
            raise TimeoutError(f"runtime {info.display_name} is still {info.status} after {timeout:g} seconds")
        yield Sleep(delay)
        delay = min(delay * 2, poll_interval)


def data_to_info(reply: Reply) -> RuntimeInfo:
    """The runtime an answer holds."""
    return RuntimeInfo.from_json(data_of(reply))


def _at_revision(ref: str, build: Callable[[Mapping[str, str]], Request]) -> Steps[Reply]:
    """Read the revision and send the request with it; if somebody was in between, again."""
    for _ in range(CONFLICT_TRIES - 1):
        reply = yield from _once_at_revision(ref, build)
        if reply.status != 409 or CONFLICT.encode() not in reply.body:
            return reply
    return (yield from _once_at_revision(ref, build))


def _once_at_revision(ref: str, build: Callable[[Mapping[str, str]], Request]) -> Steps[Reply]:
    info = yield from read_runtime(ref)
    reply: Reply = yield build({"expected_revision": str(info.revision)})
    return reply


def _post(path: str, query: Mapping[str, str]) -> Request:
    return Request(method="POST", path=path, query=query)


def _ingress_json(item: IngressSpec | Mapping[str, object]) -> dict[str, Any]:
    return item.to_json() if isinstance(item, IngressSpec) else dict(item)


def _json_of(value: CreateRuntimeResources | PatchRuntimeResources | Mapping[str, object]) -> dict[str, Any]:
    return dict(value) if isinstance(value, Mapping) else value.to_json()
