"""Fork and rollback, as steps: operations of the local service, beside the public API."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from runta.client.answers import data_of
from runta.client.local import local_path
from runta.client.runtimes import data_to_info
from runta.client.steps import Request, Steps
from runta.client.types import RuntimeInfo
from runta.errors import ApiError

R = TypeVar("R")
TIMEOUT = 600.0
"""Seconds: the answer comes when every fork runs or failed."""


@dataclass(frozen=True)
class Fork(Generic[R]):
    """One fork of several: its runtime, or its own error."""

    runtime: R | None = None
    error: ApiError | None = None

    def result(self) -> R:
        """The runtime. Raises the error where there is none."""
        if self.runtime is None:
            raise self.error or ApiError("this fork has no result")
        return self.runtime


def name_forks(name: str | None, count: int) -> list[str | None]:
    """`name` for one, `name-1`, `name-2` … for several; without a name the service makes them up.

    Raises ValueError for a count below 1.
    """
    if count < 1:
        raise ValueError("count must be at least 1")
    if name is None or count == 1:
        return [name] * count
    return [f"{name}-{number}" for number in range(1, count + 1)]


def fork_runtime(ref: str, names: list[str | None]) -> Steps[list[Fork[RuntimeInfo]]]:
    """Capture once, restore once for each name."""
    request = Request(method="POST", path=local_path(ref, "fork"), json={"names": names}, timeout=TIMEOUT)
    return [_read_fork(item) for item in data_of((yield request))]


def roll_back_runtime(ref: str, checkpoint: str) -> Steps[RuntimeInfo]:
    """Put a runtime back to a checkpoint, by id or display name."""
    path = local_path(ref, "rollback")
    return data_to_info((yield Request(method="POST", path=path, json={"checkpoint": checkpoint}, timeout=TIMEOUT)))


def _read_fork(item: Any) -> Fork[RuntimeInfo]:
    error = item["error"]
    if error is not None:
        return Fork(error=ApiError(error["message"], error["status"], error["code"]))
    return Fork(runtime=RuntimeInfo.from_json(item["runtime"]))
