"""Secrets at the door: values go in and never come out."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from runta import Runta

from .conftest import Service
from .test_api import read_error

VALUE = "sk-a-value-that-must-not-be-seen"


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(service.socket)), base_url="http://runta") as client:
        yield client


def test_put_get_list_delete(http: httpx.Client) -> None:
    made = http.put("/v2/secrets/key", json={"value": VALUE, "cache_ttl_secs": 60})
    assert made.status_code == 200
    secret = made.json()["data"]
    assert secret["display_name"] == "key" and secret["cache_ttl_secs"] == 60
    for ref in ("key", secret["id"]):
        assert http.get(f"/v2/secrets/{ref}").json()["data"] == secret
    assert http.get("/v2/secrets").json() == {"data": [secret]}
    replaced = http.put(f"/v2/secrets/{secret['id']}", json={"value": "another"}).json()["data"]
    assert (replaced["id"], replaced["display_name"], replaced["cache_ttl_secs"]) == (secret["id"], "key", 0)
    gone = http.delete("/v2/secrets/key")
    assert (gone.status_code, gone.json()) == (200, {"data": {}})
    read_error(http.get("/v2/secrets/key"), 404, "not_found")
    read_error(http.delete("/v2/secrets/key"), 404, "not_found")


def test_no_answer_has_the_value(http: httpx.Client) -> None:
    answers = [
        http.put("/v2/secrets/key", json={"value": VALUE}),
        http.get("/v2/secrets/key"),
        http.get("/v2/secrets"),
        http.put("/v2/secrets/key", json={"value": VALUE, "unknown": 1}),
    ]
    assert not [answer.text for answer in answers if VALUE in answer.text]


def test_post_refuses_a_name_that_is_taken(http: httpx.Client) -> None:
    body = {"name": "key", "value": VALUE, "cache_ttl_secs": 5}
    assert http.post("/v2/secrets", json=body).json()["data"]["display_name"] == "key"
    assert "PUT replaces" in read_error(http.post("/v2/secrets", json=body), 409, "already_exists")


@pytest.mark.parametrize(
    ("path", "body", "status", "code"),
    [
        ("key", {}, 400, "invalid_argument"),
        ("key", {"value": 1}, 400, "invalid_argument"),
        ("key", {"value": ""}, 422, "invalid_argument"),
        ("key", {"value": "x" * 70000}, 422, "invalid_argument"),
        ("key", {"value": "x", "cache_ttl_secs": 3601}, 422, "invalid_argument"),
        ("key", {"value": "x", "cache_ttl_secs": -1}, 422, "invalid_argument"),
        ("a%20b", {"value": "x"}, 422, "invalid_argument"),
        ("RUNTA_TOKEN", {"value": "x"}, 403, "permission_denied"),
    ],
)
def test_refusals(http: httpx.Client, path: str, body: dict[str, object], status: int, code: str) -> None:
    read_error(http.put(f"/v2/secrets/{path}", json=body), status, code)
    assert http.get("/v2/secrets").json() == {"data": []}


def test_through_the_sdk(service: Service) -> None:
    with Runta(endpoint=f"unix:{service.socket}") as client:
        made = client.secrets.set("key", VALUE, cache_ttl_secs=7)
        assert client.secrets.get("key") == client.secrets.get(made.id) == made
        assert [one.display_name for one in client.secrets.list()] == ["key"]
        client.secrets.delete(made.id)
        assert client.secrets.list() == []
