"""Fork and rollback through the SDK and the command line: names, results of each, refusals."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import pytest

from runta import ApiError, AsyncRunta, Fork, Runta

from .conftest import Service


@pytest.fixture
def client(service: Service) -> Iterator[Runta]:
    with Runta(endpoint=f"unix:{service.socket}", retry_max_attempts=1) as client:
        yield client


def test_each_fork_has_its_own_result(service: Service, client: Runta) -> None:
    box = client.runtimes.create("src")
    client.runtimes.create("f-2")
    made = box.fork(3, name="f")
    assert [one.runtime.name if one.runtime else None for one in made] == ["f-1", None, "f-3"]
    with pytest.raises(ApiError) as taken:
        made[1].result()
    assert (taken.value.status_code, taken.value.code) == (409, "already_exists")
    assert made[0].result().cached_info.status == "running"


def test_names(service: Service, client: Runta) -> None:
    box = client.runtimes.create("src")
    assert [one.result().name for one in box.fork(name="alone")] == ["alone"]
    made_up = [one.result().name for one in box.fork(2)]
    assert len(set(made_up)) == 2
    with pytest.raises(ValueError, match="at least 1"):
        box.fork(0)


def test_a_capture_that_fails_is_one_error(service: Service, client: Runta) -> None:
    box = client.runtimes.create("src")
    box.shutdown()
    with pytest.raises(ApiError) as refused:
        box.fork(2)
    assert refused.value.status_code == 409


def test_a_fork_without_either_tells_so() -> None:
    with pytest.raises(ApiError, match="no result"):
        Fork[str]().result()


def test_async(service: Service) -> None:
    async def run() -> None:
        async with AsyncRunta(endpoint=service.url, token=service.token) as client:
            box = await client.runtimes.create("src")
            made = await box.fork(2, name="a")
            assert [one.result().name for one in made] == ["a-1", "a-2"]
            checkpoint = await box.checkpoints.create(name="ck")
            await box.roll_back(checkpoint.id)
            assert (await box.status()) == "running"

    asyncio.run(run())


def test_rollback(service: Service, client: Runta) -> None:
    box, other = client.runtimes.create("src"), client.runtimes.create("other")
    checkpoint = box.checkpoints.create(name="ck")
    box.roll_back("ck")
    assert box.cached_info.id == box.id
    with pytest.raises(ApiError) as refused:
        other.roll_back(checkpoint.id)
    assert refused.value.status_code == 409
