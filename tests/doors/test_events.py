"""Events at the door: pages, filters, who asked; and `runta events`."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator

import httpx
import pytest

from runta.models import Event, new_id

from .conftest import Service
from .test_api import create, read_error


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(service.socket)), base_url="http://runta") as client:
        yield client


def add(service: Service, count: int, **fields: object) -> list[Event]:
    made = [
        Event(
            **{
                "id": new_id(),
                "kind": "exec",
                "runtime_name": "box",
                "occurred_at_ms": number,
                "duration_ms": 1.5,
                **fields,
            }
        )
        for number in range(count)
    ]
    service.engine.events += made
    return made


def read(http: httpx.Client, **query: object) -> tuple[list[int], str | None]:
    """The moments of a page's events, and the next page's token."""
    data = http.get("/v2/events", params=query).json()["data"]
    return [event["occurred_at_unix_millis"] for event in data["events"]], data["next_page_token"]


def test_event_has_the_public_shape(service: Service, http: httpx.Client) -> None:
    (event,) = add(service, 1, runtime_id="r1", caller="root (pid 1)", outcome="not_found", details={"command": "true"})
    shown = {
        "id": event.id,
        "runtime_id": "r1",
        "kind": "exec",
        "payload": {
            "runtime_name": "box",
            "caller": "root (pid 1)",
            "duration_ms": 1.5,
            "outcome": "not_found",
            "command": "true",
        },
        "occurred_at_unix_millis": 0,
    }
    assert http.get("/v2/events").json() == {"data": {"events": [shown], "next_page_token": None}}
    assert http.get(f"/v2/events/{event.id}").json() == {"data": shown}
    read_error(http.get("/v2/events/none"), 404, "not_found")


def test_pages_newest_first_and_oldest_first(service: Service, http: httpx.Client) -> None:
    add(service, 5)
    page, token = read(http, page_size=2)
    assert page == [4, 3]
    page, token = read(http, page_size=2, page_token=token)
    assert page == [2, 1]
    assert read(http, page_size=2, page_token=token) == ([0], None)
    page, token = read(http, page_size=3, order="oldest")
    assert page == [0, 1, 2]
    assert read(http, order="oldest", page_token=token) == ([3, 4], None)


def test_filters(service: Service, http: httpx.Client) -> None:
    add(service, 1, runtime_id="r1")
    add(service, 2, kind="file.read", runtime_name="other")
    assert read(http, runtime_id="r1") == read(http, runtime_id="box") == ([0], None)
    assert read(http, kind="file.read") == ([1, 0], None)
    for hosted in ("harness", "session_id", "session_group_id", "agent_id"):
        assert read(http, **{hosted: "x"}) == ([], None)


@pytest.mark.parametrize("query", ["page_size=0", "page_size=1001", "page_token=none", "order=up", "runtime_id="])
def test_refused_queries(http: httpx.Client, query: str) -> None:
    read_error(http.get(f"/v2/events?{query}"), 422, "invalid_argument")


def test_engine_knows_who_asks(service: Service, http: httpx.Client) -> None:
    create(http, name="by-socket")
    httpx.post(
        f"{service.url}/v2/runtimes", json={}, headers={"Authorization": f"Bearer {service.token}"}, trust_env=False
    )
    assert service.engine.callers == [f"root (pid {os.getpid()})", "127.0.0.1"]


def run_events(service: Service, *words: str) -> subprocess.Popen[str]:
    env = {**os.environ, "RUNTA_ENDPOINT": f"unix:{service.socket}"}
    return subprocess.Popen(
        [sys.executable, "-u", "-m", "runta", "events", *words],
        env=env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_command_line_lists_in_order(service: Service) -> None:
    add(service, 3, details={"command": "true"}, caller="root (pid 7)")
    out, err = run_events(service, "-n", "2").communicate(timeout=30)
    assert not err
    lines = out.splitlines()
    assert re.split(r"  +", lines[0]) == ["TIME", "RUNTIME", "EVENT", "OUTCOME", "MS", "CALLER", "DETAILS"]
    assert len(lines) == 3 and lines[1] < lines[2]
    assert "command=true" in lines[1]


def test_command_line_follows_until_it_is_interrupted(service: Service) -> None:
    add(service, 1)
    with run_events(service, "-f", "--json") as following:
        assert following.stdout is not None
        assert '"occurred_at_unix_millis": 0' in following.stdout.readline()
        for number in (10, 11):
            service.engine.events += [
                Event(id=new_id(), kind="exec", runtime_name="box", occurred_at_ms=number, duration_ms=1)
            ]
            assert f'"occurred_at_unix_millis": {number}' in following.stdout.readline()
        following.send_signal(signal.SIGINT)
        assert following.wait(20) == 130
