"""These programs know only `from runta import …` and what `runta env` prints: they run with either package."""

from __future__ import annotations

import contextlib
import secrets
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from runta import ApiError, Runta


@pytest.fixture(scope="module")
def client() -> Iterator[Runta]:
    with Runta() as client:
        yield client


@pytest.fixture
def name() -> str:
    """One that nobody else has."""
    return f"t-{secrets.token_hex(4)}"


@pytest.fixture(scope="module")
def box(client: Runta) -> Iterator[Any]:
    """A runtime that the tests of a module share."""
    runtime = client.runtimes.create(f"box-{secrets.token_hex(4)}")
    yield runtime
    runtime.delete()


@pytest.fixture
def make(client: Runta) -> Iterator[Callable[..., Any]]:
    """Makes runtimes that are gone after the test, with their checkpoints."""
    made: list[Any] = []

    def create(*args: Any, **options: Any) -> Any:
        made.append(client.runtimes.create(*args, **options))
        return made[-1]

    yield create
    names = {runtime.name for runtime in made}
    for checkpoint in client.checkpoints.list():
        if any(checkpoint.display_name.startswith(name) for name in names):
            client.checkpoints.delete(checkpoint.id)
    for runtime in made:
        with contextlib.suppress(ApiError):
            runtime.delete()
