"""What the SDKs do not show of the answers: statuses, envelopes, headers, pages, revisions, keys."""

from __future__ import annotations

import threading
import uuid

import pytest
from raw import ask


@pytest.fixture(scope="module")
def path(box):
    return f"/v2/runtimes/{box.id}"


def test_success_codes(path, client, name):
    status, made, headers = ask("POST", "/v2/runtimes", {"name": name})
    assert status == 201 and headers["location"] == f"/v2/runtimes/{made['data']['id']}"
    one = headers["location"]
    revision = made["data"]["revision"]
    for verb in ("pause", "resume", "stop", "start"):
        status, answer, _ = ask("POST", f"{one}/{verb}?expected_revision={revision}")
        assert status == 200
        revision = answer["data"]["revision"]
    assert ask("PUT", f"{one}/files?path=/tmp/x", b"x")[:2] == (204, None)
    status, ck, _ = ask("POST", f"{one}/checkpoints", {"kind": "full", "name": f"{name}-ck"})
    assert status == 200 and ck["data"]["source_runtime"] == {"id": made["data"]["id"], "name": name}
    assert ask("DELETE", f"{one}?expected_revision={revision}")[:2] == (204, None)
    assert ask("GET", f"/v2/checkpoints/{name}-ck")[1]["data"]["source_runtime"] == {"id": None, "name": name}
    assert ask("DELETE", f"/v2/checkpoints/{name}-ck")[:2] == (200, {"data": {}})
    assert ask("GET", "/v2/me")[0] == ask("GET", "/v2/images")[0] == 200
    assert [image["is_default"] for image in ask("GET", "/v2/images")[1]["data"]].count(True) == 1


def test_envelope(path):
    for method, wrong, status, code in (
        ("GET", "/v2/runtimes/none", 404, "not_found"),
        ("GET", f"{path}/files?path=/none", 404, "not_found"),
        ("POST", f"{path}/pause?expected_revision=999", 409, "failed_precondition"),
        ("GET", "/v2/agents", 501, "unimplemented"),
        ("GET", "/v2/github/repositories", 501, "unimplemented"),
        ("GET", "/v2/model-providers", 501, "unimplemented"),
        ("GET", "/v2/token-savings", 501, "unimplemented"),
        ("POST", f"{path}/vnc/enable", 501, "unimplemented"),
        ("POST", "/v2/auth/device/authorization", 501, "unimplemented"),
        ("PATCH", "/v2/me", 405, "invalid_argument"),
    ):
        found, body, headers = ask(method, wrong)
        assert (found, body["error"]["code"]) == (status, code), wrong
        assert set(body) == {"error", "request_id"} and set(body["error"]) == {"code", "message"}
        assert body["request_id"] == headers["x-request-id"]
        assert uuid.UUID(body["request_id"]).version == 7


def test_stale_revision_in_the_words_clients_look_for(path):
    revision = ask("GET", path)[1]["data"]["revision"]
    message = ask("PATCH", f"{path}?expected_revision={revision + 5}", {"display_name": "x"})[1]["error"]["message"]
    assert f"runtime revision conflict: expected {revision + 5}, current {revision}" in message


def test_patch_of_everything(path):
    changes = {
        "egress_policy": {"mode": "allowlist", "allowed_hosts": ["a.example"]},
        "ingress_specs": [{"protocol": "https", "runtime_port": 443}],
        "idle_policy": {"mode": "suspend_only", "suspend_after_secs": 3600},
        "environment_variables": {"SHOWN": "yes"},
    }
    status, answer, _ = ask("PATCH", path, changes)
    assert status == 200
    for field, value in changes.items():
        assert answer["data"][field] == value
    assert ask("PATCH", path, {"idle_policy": {"mode": "disabled"}})[0] == 200
    assert ask("PATCH", path, {"nonsense": 1})[0] == 400


def test_environment_reaches_commands(client, name):
    made = ask("POST", "/v2/runtimes", {"name": name, "environment_variables": {"TOLD": "at birth"}})[1]["data"]
    box = client.runtimes.get(made["id"])
    try:
        assert box.exec("echo $TOLD").stdout_text == "at birth\n"
        ask("PATCH", f"/v2/runtimes/{box.id}", {"environment_variables": {"TOLD": "later"}})
        assert box.exec("echo $TOLD").stdout_text == "later\n"
    finally:
        box.delete()


def test_same_key_at_once_makes_one_runtime(name):
    answers = []
    body, key = {"name": name}, str(uuid.uuid4())
    jobs = [
        threading.Thread(target=lambda: answers.append(ask("POST", "/v2/runtimes", body, **{"Idempotency-Key": key})))
        for _ in range(4)
    ]
    for job in jobs:
        job.start()
    for job in jobs:
        job.join()
    assert [status for status, _, _ in answers] == [201] * 4
    assert len({answer["data"]["id"] for _, answer, _ in answers}) == 1
    assert {answer["data"]["status"] for _, answer, _ in answers} == {"running"}
    later = ask("POST", "/v2/runtimes", body, **{"Idempotency-Key": key})
    assert later[0] == 201 and later[1]["data"]["id"] == answers[0][1]["data"]["id"]
    assert ask("DELETE", f"/v2/runtimes/{name}")[0] == 204


def test_pages(client, make, name):
    for number in range(3):
        make(f"{name}-{number}")
    seen, after = [], ""
    while True:
        page = ask("GET", f"/v2/runtimes?limit=1{after}")[1]
        assert len(page["data"]) == 1
        seen.append(page["data"][0]["id"])
        if not page["pagination"]["has_more"]:
            assert page["pagination"]["next_cursor"] is None
            break
        after = f"&after={page['pagination']['next_cursor']}"
    assert len(seen) == len(set(seen)) >= 4
    assert ask("GET", "/v2/runtimes?limit=101")[0] == 422


def test_cold_checkpoint_takes_new_resources(client, make, name):
    box = make(name, memory_mib=128)
    box.files.write("/root/kept", "kept")
    assert ask("POST", f"/v2/runtimes/{box.id}/checkpoints", {"kind": "cold"})[0] == 409
    box.shutdown()
    status, made, _ = ask("POST", f"/v2/runtimes/{box.id}/checkpoints", {"kind": "cold", "name": f"{name}-cold"})
    assert status == 200 and made["data"]["kind"] == "cold"
    bigger = {"requests": {"memory_mib": 256, "vcpus": 2}, "limits": {"memory_mib": 512}}
    fork = make(f"{name}-f", checkpoint_id=made["data"]["id"], resources=bigger)
    assert fork.cached_info.resources.limits.memory_mib == 512
    assert fork.files.read("/root/kept") == b"kept"


def test_live_is_another_word_for_full(box, name):
    status, made, _ = ask("POST", f"/v2/runtimes/{box.id}/checkpoints", {"kind": "live", "name": name})
    assert status == 200 and made["data"]["kind"] == "full"
    assert ask("DELETE", f"/v2/checkpoints/{made['data']['id']}")[0] == 200


def test_events_tell_who_did_what(client, make, name):
    box = make(name)
    box.exec(["true"])
    events = ask("GET", f"/v2/events?runtime_id={box.id}&order=oldest")[1]["data"]["events"]
    assert events[0]["kind"] == "runtime.create"
    assert events[0]["payload"]["caller"] == "127.0.0.1" and events[0]["payload"]["outcome"] == "ok"
    assert "exec" in [event["kind"] for event in events]
    assert all(event["payload"]["duration_ms"] >= 0 for event in events)
    assert ask("GET", f"/v2/events/{events[0]['id']}")[1]["data"] == events[0]
