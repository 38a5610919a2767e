"""The public REST API, over both doors of a real service."""

from __future__ import annotations

import json
import socket
import stat
import uuid
from collections.abc import AsyncIterator, Iterator
from dataclasses import replace
from typing import Any

import httpx
import pytest

from runta.api.sockets import ensure_token, open_tcp_socket, open_unix_socket, parse_listen
from runta.errors import API_CODES, CheckpointFailed, FailedPrecondition, InvalidArgument, NotFound
from runta.models import CheckpointState, RuntimeStatus

from .conftest import Service

MIB = 1 << 20
RUNTIME_FIELDS = {
    "id": str,
    "display_name": str,
    "status": str,
    "desired_status": str,
    "degraded": bool,
    "revision": int,
    "created_at": str,
    "updated_at": str,
    "image_id": str,
    "resources": dict,
    "ingress_specs": list,
    "egress_policy": dict,
    "idle_policy": dict,
    "llm_tool_io_capture_enabled": bool,
    "llm_session_content_capture_enabled": bool,
    "llm_token_saving_policy": dict,
    "ssh_enabled": bool,
    "vnc_enabled": bool,
    "vnc_ready": bool,
    "vnc_connection": dict,
    "can_manage": bool,
    "owner_user_id": str,
    "secret_configuration": list,
    "environment_variables": dict,
}


@pytest.fixture
def http(service: Service) -> Iterator[httpx.Client]:
    """Through the Unix socket, which asks for no token."""
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(service.socket)), base_url="http://runta") as client:
        yield client


@pytest.fixture
def tcp(service: Service) -> Iterator[httpx.Client]:
    """Through the port, with no token yet."""
    with httpx.Client(base_url=service.url, trust_env=False) as client:
        yield client


def create(http: httpx.Client, **body: Any) -> dict[str, Any]:
    answer = http.post("/v2/runtimes", json=body)
    assert answer.status_code == 201, answer.text
    data: dict[str, Any] = answer.json()["data"]
    return data


def read_error(answer: httpx.Response, status: int, code: str) -> str:
    """The message, after checking the envelope."""
    assert answer.status_code == status, answer.text
    body = answer.json()
    assert set(body) == {"error", "request_id"}
    assert set(body["error"]) == {"code", "message"}
    assert body["error"]["code"] == code
    assert code in API_CODES
    assert body["request_id"] == answer.headers["X-Request-Id"]
    assert uuid.UUID(body["request_id"]).version == 7
    message: str = body["error"]["message"]
    return message


# Doors


def test_health_is_public_and_empty(http: httpx.Client, tcp: httpx.Client) -> None:
    for client in (http, tcp):
        assert client.get("/healthz").status_code == 200
        assert client.get("/healthz").content == b""
        assert client.head("/healthz").status_code == 200


def test_port_asks_for_the_token(service: Service, tcp: httpx.Client) -> None:
    assert "missing Authorization" in read_error(tcp.get("/v2/runtimes"), 401, "unauthenticated")
    wrong = tcp.get("/v2/runtimes", headers={"Authorization": "Bearer rt_wrong"})
    assert "invalid bearer credential" in read_error(wrong, 401, "unauthenticated")
    assert tcp.get("/nowhere").status_code == 401
    right = tcp.get("/v2/runtimes", headers={"Authorization": f"Bearer {service.token}"})
    assert right.status_code == 200


def test_socket_and_token_are_the_owners(service: Service) -> None:
    assert stat.S_IMODE(service.socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(service.layout.token.stat().st_mode) == 0o600
    assert service.token.startswith("rt_")
    assert ensure_token(service.layout.token) == service.token


def test_second_service_is_refused_and_stale_socket_replaced(service: Service, tmp_path) -> None:
    with pytest.raises(FailedPrecondition, match="already answers"):
        open_unix_socket(service.socket)
    stale = tmp_path / "stale.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(stale))
    with open_unix_socket(stale) as fresh:
        assert fresh.getsockname() == str(stale)
    (tmp_path / "file").write_text("")
    with pytest.raises(FailedPrecondition, match="not a socket"):
        open_unix_socket(tmp_path / "file")


@pytest.mark.parametrize("listen", ["0.0.0.0:7878", "192.168.1.2:80", "example.com:80", "7878", ":7878", "127.0.0.1:x"])
def test_other_than_loopback_is_refused(listen: str) -> None:
    with pytest.raises(InvalidArgument):
        parse_listen(listen)


@pytest.mark.parametrize("listen", ["127.0.0.1:7878", "localhost:7878", "[::1]:7878"])
def test_loopback_is_understood(listen: str) -> None:
    assert parse_listen(listen)[1] == 7878


def test_taken_port_matters_only_where_it_was_asked_for(service: Service) -> None:
    taken = service.url.removeprefix("http://")
    with pytest.raises(FailedPrecondition, match="the port is taken"):
        open_tcp_socket(taken, needed=True)
    assert open_tcp_socket(taken, needed=False) is None


# Errors


def test_unknown_paths_and_methods_have_the_envelope(http: httpx.Client) -> None:
    assert "/v3/x" in read_error(http.get("/v3/x"), 404, "not_found")
    read_error(http.get("/"), 404, "not_found")
    read_error(http.get("/nowhere"), 404, "not_found")
    answer = http.put("/v2/runtimes")
    assert "PUT" in read_error(answer, 405, "invalid_argument")


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", "/v2/agents/1/runs"),
        ("POST", "/v2/auth/device/token"),
        ("GET", "/v2/github/repositories"),
        ("GET", "/v2/ssh-host-key"),
        ("POST", "/v2/images/builds"),
        ("DELETE", "/v2/images/debian"),
        ("POST", "/v2/runtimes/a/vnc/enable"),
        ("PATCH", "/v2/model-providers"),
    ],
)
def test_hosted_features_are_unimplemented(http: httpx.Client, method: str, path: str) -> None:
    message = read_error(http.request(method, path), 501, "unimplemented")
    assert "what to do: " in message


def test_unforeseen_failure_is_internal_and_logged_once(
    service: Service, http: httpx.Client, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail() -> None:
        raise ZeroDivisionError("secret detail")

    monkeypatch.setattr(service.engine, "list_images", fail)
    answer = http.get("/v2/images")
    message = read_error(answer, 500, "internal")
    assert "secret detail" not in message
    assert answer.headers["X-Request-Id"] in message
    assert len([record for record in caplog.records if record.exc_info]) == 1


def test_service_error_tells_what_why_and_what_to_do(
    service: Service, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(ref: str, **_: object) -> None:
        raise CheckpointFailed("the dump failed", cause="a socket is in flight", hint="try again")

    create(http, name="a")
    monkeypatch.setattr(service.engine, "create_checkpoint", fail)
    message = read_error(http.post("/v2/runtimes/a/checkpoints", json={"kind": "full"}), 500, "internal")
    assert message == "the dump failed\nwhy: a socket is in flight\nwhat to do: try again"


# Runtimes


def test_created_runtime_is_complete(http: httpx.Client) -> None:
    answer = http.post("/v2/runtimes", json={"name": "box"})
    runtime = answer.json()["data"]
    assert answer.headers["Location"] == f"/v2/runtimes/{runtime['id']}"
    for name, kind in RUNTIME_FIELDS.items():
        assert type(runtime[name]) is kind, name
    assert uuid.UUID(runtime["id"]).version == 7
    assert runtime["resources"] == {
        "requests": {"memory_mib": 1024, "vcpus": 1, "disk_gib": 32},
        "limits": {"memory_mib": 1024},
        "current": {"memory_mib": 1024, "observed_disk_gib": 32},
    }
    assert set(runtime["vnc_connection"]) == {"hostname", "port", "username", "security_type"}
    assert runtime["vnc_connection"]["username"] == "runta"
    assert runtime["vnc_connection"]["security_type"] == "X509Plain"
    assert set(runtime["llm_token_saving_policy"].values()) == {False}
    assert runtime["egress_policy"] == {"mode": "denylist", "denied_hosts": []}
    assert runtime["idle_policy"] == {"mode": "disabled"}
    assert runtime["error_code"] is None


def test_create_as_the_official_sdk_does(http: httpx.Client) -> None:
    runtime = create(
        http,
        name="box",
        resources={"requests": {"memory_mib": 512, "vcpus": 2}, "limits": {"memory_mib": 2048}},
        egress_policy={"mode": "allowlist", "allowed_hosts": ["*.Example.com.", "10.0.0.0/8", "::1"]},
        ingress_specs=[{"protocol": "http", "runtime_port": 8080}],
        idle_policy={"mode": "suspend_and_wakeup", "suspend_after_secs": 60},
        vnc_enabled=False,
        llm_tool_io_capture_enabled=False,
        llm_session_content_capture_enabled=False,
    )
    assert runtime["resources"]["requests"] == {"memory_mib": 512, "vcpus": 2, "disk_gib": 32}
    assert runtime["resources"]["limits"] == {"memory_mib": 2048}
    assert runtime["egress_policy"] == {"mode": "allowlist", "allowed_hosts": ["*.example.com", "10.0.0.0/8", "::1"]}
    assert runtime["ingress_specs"] == [{"protocol": "http", "runtime_port": 8080}]
    assert runtime["idle_policy"] == {"mode": "suspend_and_wakeup", "suspend_after_secs": 60}


def test_create_with_image_and_environment(service: Service, http: httpx.Client) -> None:
    image = next(iter(service.engine.images.values()))
    for ref in (image.id, image.name):
        runtime = create(http, image={"id": ref, "icon_key": "x"}, environment_variables={"A": "b"})
        assert runtime["image_id"] == image.id
        assert runtime["environment_variables"] == {"A": "b"}
    read_error(http.post("/v2/runtimes", json={"image": {"id": "nope"}}), 404, "not_found")


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({"surprise": 1}, 400, "surprise is not a known field"),
        ({"name": 5}, 400, "name"),
        ({"resources": {"requests": {"memory_mib": "1024"}}}, 400, "resources.requests.memory_mib"),
        ({"resources": {"requests": {"cpus": 1}}}, 400, "resources.requests.cpus"),
        ({"resources": {"requests": {"memory_mib": 0}}}, 422, "resources.requests.memory_mib must be >= 1"),
        (
            {"resources": {"requests": {"memory_mib": 9}, "limits": {"memory_mib": 8}}},
            422,
            "limits.memory_mib must be >=",
        ),
        ({"egress_policy": {"mode": "denylist", "allowed_hosts": []}}, 400, "egress_policy.allowed_hosts"),
        ({"egress_policy": {"mode": "open"}}, 400, "egress_policy"),
        (
            {"egress_policy": {"mode": "denylist", "denied_hosts": ["http://x.org/"]}},
            422,
            "invalid egress host 'http://",
        ),
        ({"egress_policy": {"mode": "denylist", "denied_hosts": ["x"] * 129}}, 422, "egress_policy.denied_hosts"),
        ({"ingress_specs": [{"protocol": "http", "runtime_port": 1}] * 17}, 422, "ingress_specs"),
        ({"ingress_specs": [{"protocol": "ftp", "runtime_port": 1}]}, 400, "ingress_specs.0.protocol"),
        ({"ingress_specs": [{"protocol": "http", "runtime_port": 70000}]}, 422, "runtime_port must be <= 65535"),
        ({"idle_policy": {"mode": "suspend_only"}}, 422, "suspend_after_secs"),
        ({"environment_variables": {"RUNTA_X": "1"}}, 422, "reserved"),
        ({"environment_variables": {"1A": "1"}}, 422, "1A"),
        ({"name": "no spaces"}, 422, "is not a name"),
        ({"checkpoint_id": ""}, 422, "checkpoint_id"),
        ({"checkpoint_id": "c", "image": {"id": "debian"}}, 400, "image is not a known field"),
        ({"checkpoint_id": "c", "environment_variables": {}}, 400, "environment_variables is not a known field"),
    ],
)
def test_refused_bodies(http: httpx.Client, body: dict[str, Any], status: int, words: str) -> None:
    assert words in read_error(http.post("/v2/runtimes", json=body), status, "invalid_argument")


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'"text"', b"null"])
def test_refused_bodies_that_are_no_objects(http: httpx.Client, content: bytes) -> None:
    answer = http.post("/v2/runtimes", content=content, headers={"Content-Type": "application/json"})
    read_error(answer, 400, "invalid_argument")


@pytest.mark.parametrize(
    "field",
    [
        {"vnc_enabled": True},
        {"llm_tool_io_capture_enabled": True},
        {"llm_token_saving_policy": {"log_enabled": True}},
        {"secret_configuration": [{"secret": "x"}]},
        {"ssh_key_ids": ["k"]},
        {"repositories": ["r"]},
    ],
)
def test_asking_for_hosted_features_is_unimplemented(http: httpx.Client, field: dict[str, Any]) -> None:
    assert next(iter(field)) in read_error(http.post("/v2/runtimes", json=field), 501, "unimplemented")
    assert http.get("/v2/runtimes").json()["data"] == []


def test_same_key_names_the_same_runtime(http: httpx.Client) -> None:
    key = {"Idempotency-Key": str(uuid.uuid4())}
    first = http.post("/v2/runtimes", json={"name": "a"}, headers=key)
    again = http.post("/v2/runtimes", json={"name": "a"}, headers=key)
    assert (first.status_code, again.status_code) == (201, 201)
    assert first.json() == again.json()
    read_error(http.post("/v2/runtimes", json={"name": "a"}), 409, "already_exists")
    long = {"Idempotency-Key": "k" * 256}
    read_error(http.post("/v2/runtimes", json={}, headers=long), 422, "invalid_argument")


def test_runtime_is_found_by_id_and_by_name(http: httpx.Client) -> None:
    runtime = create(http, name="box")
    assert http.get(f"/v2/runtimes/{runtime['id']}").json()["data"] == runtime
    assert http.get("/v2/runtimes/box").json()["data"] == runtime
    assert "did you mean box?" in read_error(http.get("/v2/runtimes/bxo"), 404, "not_found")


def test_list_by_pages(http: httpx.Client) -> None:
    ids = [create(http)["id"] for _ in range(5)]
    seen: list[str] = []
    after: dict[str, str] = {}
    while True:
        page = http.get("/v2/runtimes", params={"limit": "2", **after}).json()
        seen += [one["id"] for one in page["data"]]
        if not page["pagination"]["has_more"]:
            assert page["pagination"]["next_cursor"] is None
            break
        after = {"after": page["pagination"]["next_cursor"]}
        http.delete(f"/v2/runtimes/{seen[-1]}")  # The place of a cursor outlives what stood there.
    assert sorted(seen) == sorted(ids)


@pytest.mark.parametrize("query", ["limit=0", "limit=101", "limit=x", "after=nonsense", "after=!", "status=asleep"])
def test_refused_queries(http: httpx.Client, query: str) -> None:
    read_error(http.get(f"/v2/runtimes?{query}"), 422, "invalid_argument")


def test_list_by_status(service: Service, http: httpx.Client) -> None:
    for name, status in {"a": RuntimeStatus.RUNNING, "b": RuntimeStatus.PAUSED, "c": RuntimeStatus.ERROR}.items():
        create(http, name=name)
        service.engine.set_status(name, status)
    found = http.get("/v2/runtimes", params={"status": "running,error"}).json()["data"]
    assert {one["display_name"] for one in found} == {"a", "c"}


def test_actions_check_the_revision(http: httpx.Client) -> None:
    runtime = create(http, name="box")
    paused = http.post("/v2/runtimes/box/pause", params={"expected_revision": runtime["revision"]})
    assert paused.status_code == 200
    assert paused.json()["data"]["status"] == "paused"
    stale = http.post("/v2/runtimes/box/resume", params={"expected_revision": runtime["revision"]})
    message = read_error(stale, 409, "failed_precondition")
    assert "runtime revision conflict: expected 1, current 2" in message
    read_error(http.post("/v2/runtimes/box/resume", params={"expected_revision": 0}), 422, "invalid_argument")
    for action, status in {"resume": "running", "stop": "shutdown", "start": "running"}.items():
        answer = http.post(f"/v2/runtimes/box/{action}")
        assert answer.status_code == 200
        assert answer.json()["data"]["status"] == status


def test_patch_changes_what_is_named(http: httpx.Client) -> None:
    before = create(http, name="box", ingress_specs=[{"protocol": "http", "runtime_port": 80}])
    answer = http.patch(
        "/v2/runtimes/box",
        params={"expected_revision": before["revision"]},
        json={
            "display_name": "case",
            "resources": {"requests": {"memory_mib": 2048}, "limits": {"memory_mib": 4096}},
            "egress_policy": {"mode": "allowlist", "allowed_hosts": []},
            "environment_variables": {"A": "1"},
        },
    )
    assert answer.status_code == 200
    after = answer.json()["data"]
    assert (after["id"], after["display_name"], after["revision"]) == (before["id"], "case", 2)
    assert after["resources"]["requests"]["memory_mib"] == 2048
    assert after["resources"]["limits"]["memory_mib"] == 4096
    assert after["egress_policy"] == {"mode": "allowlist", "allowed_hosts": []}
    assert after["ingress_specs"] == before["ingress_specs"]
    assert after["environment_variables"] == {"A": "1"}
    vcpus = http.patch("/v2/runtimes/case", json={"resources": {"requests": {"vcpus": 2}}})
    read_error(vcpus, 400, "invalid_argument")


def test_delete(http: httpx.Client) -> None:
    runtime = create(http, name="box")
    read_error(http.delete("/v2/runtimes/box", params={"expected_revision": 9}), 409, "failed_precondition")
    answer = http.delete("/v2/runtimes/box", params={"expected_revision": runtime["revision"]})
    assert (answer.status_code, answer.content) == (204, b"")
    read_error(http.get("/v2/runtimes/box"), 404, "not_found")
    read_error(http.delete("/v2/runtimes/box"), 404, "not_found")


def test_long_error_message_is_cut_to_what_the_api_allows(service: Service, http: httpx.Client) -> None:
    create(http, name="box")
    box = service.engine.boxes[http.get("/v2/runtimes/box").json()["data"]["id"]]
    box.runtime = replace(box.runtime, error_code="internal", error_message="é" * 4096)
    assert len(http.get("/v2/runtimes/box").json()["data"]["error_message"].encode()) <= 4096


# Files


def test_files_round_trip(http: httpx.Client) -> None:
    create(http, name="box")
    data = bytes(range(256)) * 17
    for path in ("/root/a file", "/deep/er/file", "relative"):
        written = http.put("/v2/runtimes/box/files", params={"path": path}, content=data)
        assert (written.status_code, written.content) == (204, b"")
        answer = http.get("/v2/runtimes/box/files", params={"path": path})
        assert answer.content == data
        assert answer.headers["Content-Type"] == "application/octet-stream"
    assert http.get("/v2/runtimes/box/files", params={"path": "/root/relative"}).content == data
    http.put("/v2/runtimes/box/files", params={"path": "empty"}, content=b"")
    assert http.get("/v2/runtimes/box/files", params={"path": "empty"}).content == b""


def test_file_errors(service: Service, http: httpx.Client) -> None:
    create(http, name="box")
    read_error(http.get("/v2/runtimes/box/files", params={"path": "/none"}), 404, "not_found")
    read_error(http.get("/v2/runtimes/box/files"), 422, "invalid_argument")
    read_error(http.get("/v2/runtimes/none/files", params={"path": "/x"}), 404, "not_found")
    service.engine.set_status("box", RuntimeStatus.PAUSED)
    put = http.put("/v2/runtimes/box/files", params={"path": "/x"}, content=b"x" * MIB)
    read_error(put, 409, "failed_precondition")


def test_only_the_large_file_is_refused(http: httpx.Client) -> None:
    create(http, name="box")
    http.put("/v2/runtimes/box/files", params={"path": "edge"}, content=b"x" * MIB)
    assert len(http.get("/v2/runtimes/box/files", params={"path": "edge"}).content) == MIB
    http.put("/v2/runtimes/box/files", params={"path": "large"}, content=b"x" * (MIB + 1))
    message = read_error(http.get("/v2/runtimes/box/files", params={"path": "large"}), 422, "invalid_argument")
    assert "file is too large to return through the API; maximum is 1048576 bytes" in message
    whole = http.get("/v2/local/runtimes/box/content", params={"path": "large"})
    assert len(whole.content) == MIB + 1


# Checkpoints


def test_checkpoint_and_restore(http: httpx.Client) -> None:
    source = create(http, name="box")
    http.put("/v2/runtimes/box/files", params={"path": "kept"}, content=b"yes")
    answer = http.post("/v2/runtimes/box/checkpoints", json={"kind": "live", "name": "point"})
    assert answer.status_code == 200
    checkpoint = answer.json()["data"]
    assert checkpoint["kind"] == "full"
    assert checkpoint["state"] == "ready"
    assert checkpoint["source_runtime"] == {"id": source["id"], "name": "box"}
    assert checkpoint["resources"] == source["resources"]
    assert http.get("/v2/checkpoints/point").json()["data"] == checkpoint
    assert http.get("/v2/checkpoints").json() == {
        "data": [checkpoint],
        "pagination": {"has_more": False, "next_cursor": None},
    }
    fork = create(http, checkpoint_id=checkpoint["id"], name="fork")
    assert fork["id"] != source["id"]
    assert http.get("/v2/runtimes/fork/files", params={"path": "kept"}).content == b"yes"
    sized = {"checkpoint_id": "point", "resources": {"requests": {"memory_mib": 1, "vcpus": 1}}}
    read_error(http.post("/v2/runtimes", json=sized), 422, "invalid_argument")
    http.delete("/v2/runtimes/box")
    assert http.get("/v2/checkpoints/point").json()["data"]["source_runtime"] == {"id": None, "name": "box"}
    assert http.delete("/v2/checkpoints/point").json() == {"data": {}}
    read_error(http.get("/v2/checkpoints/point"), 404, "not_found")


def test_checkpoint_refusals(service: Service, http: httpx.Client) -> None:
    create(http, name="box")
    read_error(http.post("/v2/runtimes/box/checkpoints", json={"kind": "cold"}), 409, "failed_precondition")
    read_error(http.post("/v2/runtimes/box/checkpoints", json={"kind": "warm"}), 400, "invalid_argument")
    point = http.post("/v2/runtimes/box/checkpoints", json={"kind": "full"}).json()["data"]
    kept = service.engine.checkpoints[point["id"]]
    service.engine.checkpoints[kept.id] = replace(kept, state=CheckpointState.CREATING)
    restored = http.post("/v2/runtimes", json={"checkpoint_id": kept.id})
    assert "is not ready (state: creating)" in read_error(restored, 409, "failed_precondition")


# The host, and ours


def test_images_and_me(http: httpx.Client) -> None:
    images = http.get("/v2/images").json()
    assert images["data"][0]["name"] == "debian"
    assert images["data"][0]["is_default"] is True
    assert set(http.get("/v2/me").json()["data"]) == {"user_id", "email", "display_name"}


def test_inspection_tells_everything(http: httpx.Client) -> None:
    runtime = create(http, name="box")
    known = http.get("/v2/local/runtimes/box").json()["data"]
    assert known["id"] == runtime["id"]
    assert known["spec"]["ids"] == {"start": 1_000_000, "size": 65536}
    assert known["init_pid"] > 0
    assert known["memory"] == {"usage_bytes": 3 << 20, "ksm_saved_bytes": 1 << 20, "complete": True}
    point = http.post("/v2/runtimes/box/checkpoints", json={"name": "point"}).json()["data"]
    fork = create(http, checkpoint_id="point", name="fork")
    known = http.get(f"/v2/local/runtimes/{fork['id']}").json()["data"]
    assert (known["parent_checkpoint"], known["generation"]) == (point["id"], 1)
    assert http.get("/v2/local/checkpoints/point").json()["data"]["size_bytes"] == 4096


def test_content_and_archives_stream(http: httpx.Client) -> None:
    create(http, name="box")
    data = b"0123456789abcdef" * (5 * MIB // 16)

    def pieces() -> Iterator[bytes]:
        for start in range(0, len(data), 100_000):
            yield data[start : start + 100_000]

    put = http.put("/v2/local/runtimes/box/content", params={"path": "/opt/big", "mode": "755"}, content=pieces())
    assert put.status_code == 204
    assert http.get("/v2/local/runtimes/box/content", params={"path": "/opt/big"}).content == data
    tar = http.get("/v2/local/runtimes/box/archive", params={"path": "/opt"})
    assert tar.headers["Content-Type"] == "application/x-tar"
    assert http.put("/v2/local/runtimes/box/archive", params={"path": "/copy"}, content=tar.content).status_code == 204
    assert http.get("/v2/local/runtimes/box/content", params={"path": "/copy/opt/big"}).content == data
    bad = http.put("/v2/local/runtimes/box/archive", params={"path": "/copy"}, content=b"not a tar")
    read_error(bad, 422, "invalid_argument")
    for path in ("content", "archive"):
        read_error(http.get(f"/v2/local/runtimes/box/{path}", params={"path": "/none"}), 404, "not_found")
    mode = http.put("/v2/local/runtimes/box/content", params={"path": "/x", "mode": "rwx"}, content=b"")
    read_error(mode, 422, "invalid_argument")


def test_stream_that_fails_under_way_is_cut_short(
    service: Service, http: httpx.Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        yield b"first"
        raise NotFound("the runtime is gone")

    async def read_file(ref: str, path: str) -> AsyncIterator[bytes]:
        return pieces()

    monkeypatch.setattr(service.engine, "read_file", read_file)
    with pytest.raises(httpx.RemoteProtocolError):
        http.get("/v2/local/runtimes/box/content", params={"path": "/x"})
    assert http.get("/healthz").status_code == 200


def test_local_images(http: httpx.Client) -> None:
    built = http.post("/v2/local/images/build", json={"name": "busybox"})
    assert built.status_code == 201
    imported = http.post("/v2/local/images/import", params={"name": "mine"}, content=b"x" * 1000)
    assert imported.status_code == 201
    assert imported.json()["data"]["size_bytes"] == 1000
    names = [image["name"] for image in http.get("/v2/local/images").json()["data"]]
    assert names == ["debian", "busybox", "mine"]
    assert http.delete("/v2/local/images/mine").json() == {"data": {}}
    read_error(http.delete("/v2/local/images/mine"), 404, "not_found")


def test_every_answer_has_a_request_id(http: httpx.Client) -> None:
    seen = {http.get("/v2/runtimes").headers["X-Request-Id"] for _ in range(3)}
    assert len(seen) == 3
    assert json.loads(http.get("/v2/runtimes").text)["data"] == []
