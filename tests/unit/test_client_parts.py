"""The client's pure parts: endpoints, retries, frames, archives."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import os
import socket
import tarfile
import threading

import pytest

from runta.client.answers import data_of, error_of
from runta.client.archive import pack_bytes, pack_tree, settle, staging, unpack
from runta.client.channel import run_session
from runta.client.endpoint import resolve_endpoint
from runta.client.execution import Session, start_frame
from runta.client.runtimes import change_runtime, create_body, delete_runtime
from runta.client.steps import BUSY, Reply, Request, Sleep, TransportError, with_retries
from runta.client.types import EgressPolicy, PatchRuntimeResourceRequests, PatchRuntimeResources
from runta.errors import ApiError, ConfigError, ExecutionError


@pytest.fixture(autouse=True)
def clean_environment(monkeypatch, tmp_path):
    for name in ("RUNTA_ENDPOINT", "RUNTA_TOKEN", "RUNTA_RUN_DIR", "RUNTA_CONFIG"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def play(steps, *replies):
    """Grant requests from a list of replies or errors; returns the result and what was asked for."""
    asked, answers = [], list(replies)
    try:
        effect = next(steps)
        while True:
            asked.append(effect)
            if isinstance(effect, Sleep):
                effect = steps.send(None)
                continue
            answer = answers.pop(0)
            effect = steps.throw(answer) if isinstance(answer, Exception) else steps.send(answer)
    except StopIteration as stop:
        return stop.value, asked


def ask(request):
    reply = yield request
    return reply


# Endpoints


def test_the_unix_socket_is_the_default(monkeypatch, tmp_path):
    monkeypatch.setenv("RUNTA_RUN_DIR", str(tmp_path))
    endpoint = resolve_endpoint()
    assert endpoint.embedded
    assert endpoint.socket == tmp_path / "runta.sock"


def test_argument_before_environment_before_file(monkeypatch, tmp_path):
    config = tmp_path / "config.toml"
    config.write_text('endpoint = "http://file:1/"\ntoken = "from-file"\n')
    assert resolve_endpoint(config_path=config).url == "http://file:1"
    monkeypatch.setenv("RUNTA_ENDPOINT", "http://env:2/base/")
    endpoint = resolve_endpoint(config_path=config)
    assert (endpoint.host, endpoint.port, endpoint.base_path, endpoint.token) == ("env", 2, "/base", "from-file")
    assert resolve_endpoint(config_path=config, endpoint=" https://arg ", token="t").port == 443


def test_an_endpoint_without_a_token_or_without_sense():
    with pytest.raises(ConfigError, match="no token"):
        resolve_endpoint(endpoint="http://somewhere")
    for wrong in ("ftp://x", "http://", "http://x:port", "runta.sock"):
        with pytest.raises(ConfigError, match="not an endpoint"):
            resolve_endpoint(endpoint=wrong, token="t")


def test_the_token_is_not_in_the_repr():
    assert "hush" not in repr(resolve_endpoint(endpoint="http://h", token="hush"))


# Steps


def test_reads_are_repeated_while_the_service_is_busy():
    request = Request(method="GET", path="/", retry_on=BUSY)
    result, asked = play(
        with_retries(ask(request), 16), Reply(status=503), TransportError("gone"), Reply(status=200, body=b"x")
    )
    assert result.body == b"x"
    assert [type(effect) for effect in asked] == [Request, Sleep, Request, Sleep, Request]


def test_the_last_try_is_told_and_others_are_not_repeated():
    request = Request(method="GET", path="/", retry_on=BUSY)
    assert play(with_retries(ask(request), 2), Reply(status=503), Reply(status=503))[0].status == 503
    assert len(play(with_retries(ask(request), 5), Reply(status=404))[1]) == 1
    once = Request(method="POST", path="/")
    assert len(play(with_retries(ask(once), 5), Reply(status=503))[1]) == 1
    with pytest.raises(TransportError):
        play(with_retries(ask(request), 5), TransportError("bad certificate", passing=False))


def test_retry_after_is_honoured():
    request = Request(method="GET", path="/", retry_on=BUSY)
    busy = Reply(status=429, headers={"retry-after": "7"})
    _, asked = play(with_retries(ask(request), 3), busy, Reply(status=200))
    assert asked[1] == Sleep(7.0)


def runtime(revision: int = 1, status: str = "running") -> Reply:
    data = {
        "id": "r1",
        "display_name": "box",
        "status": status,
        "revision": revision,
        "resources": {"requests": {"memory_mib": 1, "vcpus": 1}, "limits": {"memory_mib": 1}},
    }
    return Reply(status=200, body=json.dumps({"data": data}).encode())


def refusal(status: int, message: str, code: str = "failed_precondition") -> Reply:
    body = {"error": {"code": code, "message": message}, "request_id": "x"}
    return Reply(status=status, body=json.dumps(body).encode())


def test_actions_carry_the_revision_and_read_it_again_on_a_conflict():
    conflict = refusal(409, "runtime revision conflict: expected 1, current 2")
    info, asked = play(change_runtime("r1", "pause"), runtime(1), conflict, runtime(2), runtime(3, "paused"))
    assert str(info.status) == "paused"
    assert [effect.query.get("expected_revision") for effect in asked] == [None, "1", None, "2"]


def test_deleting_what_is_gone_is_no_error():
    gone = refusal(404, "no runtime", "not_found")
    assert play(delete_runtime("r1"), gone)[0] is None
    assert play(delete_runtime("r1"), runtime(), gone)[0] is None
    with pytest.raises(ApiError, match="busy"):
        play(delete_runtime("r1"), runtime(), refusal(409, "busy"))


def test_answers():
    assert data_of(Reply(status=200, body=b'{"data": 1}')) == 1
    error = error_of(refusal(409, "what\nwhy: because"))
    assert (error.status_code, error.code, str(error)) == (
        409,
        "failed_precondition",
        "HTTP 409: failed_precondition: what\nwhy: because",
    )
    assert error_of(Reply(status=502, body=b"<html>")).code is None
    with pytest.raises(ApiError, match="not the API's"):
        data_of(Reply(status=200, body=b"<html>"))


def test_bodies():
    nothing = {
        "checkpoint_id": None,
        "vcpus": 2,
        "memory_mib": 512,
        "memory_max_mib": None,
        "resources": None,
        "ingress_specs": None,
        "egress_policy": None,
        "idle_suspend_after_secs": None,
    }
    fresh = create_body("box", **nothing)
    assert fresh["resources"] == {"requests": {"memory_mib": 512, "vcpus": 2}, "limits": {"memory_mib": 512}}
    assert "resources" not in create_body(None, **{**nothing, "checkpoint_id": "c"})
    with pytest.raises(ValueError, match="memory_max_mib"):
        create_body(None, **{**nothing, "memory_max_mib": 1})
    policy = EgressPolicy("allowlist", ["B.Example.", "a.example", "b.example"])
    assert policy.normalized().to_json() == {"mode": "allowlist", "allowed_hosts": ["a.example", "b.example"]}
    patch = PatchRuntimeResources(PatchRuntimeResourceRequests(64))
    assert patch.to_json() == {"requests": {"memory_mib": 64}}


# Executions


def output(stream: str, text: str) -> dict[str, str]:
    return {"type": stream, "data_base64": base64.b64encode(text.encode()).decode()}


def test_a_session_taken_up_where_the_connection_broke():
    session = Session("box", "true")
    assert session.path == "/v2/runtimes/box/exec/stream"
    assert [frame["type"] for frame in session.frames()] == ["start"]
    session.take({"type": "started", "task_id": 7, "pid": 9})
    session.take(output("stdout", "one"))
    session.lose("the service went away")
    assert session.path == "/v2/local/runtimes/box/tasks/7/attach?stdout_offset=3&stderr_offset=0"
    assert list(session.frames()) == []
    session.take(output("stdout", "two"))
    session.take({"type": "exit", "code": 3})
    assert (session.result().exit_code, session.result().stdout) == (3, b"onetwo")


def test_a_session_that_never_began_or_whose_input_is_lost():
    with pytest.raises(ExecutionError, match="may have run"):
        Session("box", "true").lose("gone")
    half = Session("box", "cat", stdin=b"x")
    next(half.frames())
    half.take({"type": "started", "task_id": 7, "pid": 9})
    with pytest.raises(ExecutionError):
        half.lose("gone")


def test_output_is_cut_and_flagged():
    session = Session("box", "x", max_output_bytes=4)
    session.take(output("stdout", "123"))
    session.take(output("stdout", "456"))
    session.take(output("stderr", "1234"))
    session.take({"type": "exit", "code": 0})
    result = session.result()
    assert (result.stdout, result.stdout_truncated, result.stderr, result.stderr_truncated) == (
        b"1234",
        True,
        b"1234",
        False,
    )


def test_commands_that_are_none():
    for command in ("", [], [""]):
        with pytest.raises(ValueError, match="empty"):
            Session("box", command)
    with pytest.raises(ValueError, match="environment"):
        Session("box", "true", env={"A B": "1"})
    with pytest.raises(ValueError, match="timeout"):
        Session("box", "true", timeout=0)
    assert start_frame(["ls"], tty=True, size=(2, 3))["rows"] == 2


def test_frames_that_come_right_behind_the_handshake(monkeypatch):
    """A short stream may be over before the client has looked once."""
    client, server = socket.socketpair()
    monkeypatch.setattr("runta.client.channel.connect", lambda endpoint, timeout: client)

    def answer() -> None:
        request = server.recv(65536).decode()
        key = next(
            line.split(": ")[1] for line in request.split("\r\n") if line.lower().startswith("sec-websocket-key")
        )
        accept = base64.b64encode(hashlib.sha1(f"{key}258EAFA5-E914-47DA-95CA-C5AB0DC85B11".encode()).digest()).decode()
        head = f"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        text = b'{"type":"exit","code":5}'
        server.sendall(head.encode() + bytes([0x81, len(text)]) + text + b"\x88\x02\x03\xe8")
        server.close()

    thread = threading.Thread(target=answer)
    thread.start()
    endpoint = resolve_endpoint(endpoint="unix:/nowhere")
    session = Session("box", "true")
    run_session(session, endpoint, timeout=30, attempts=1)
    thread.join()
    assert session.result().exit_code == 5


# Archives


def archive_of(*members: tarfile.TarInfo) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for member in members:
            archive.addfile(member, io.BytesIO(b"x" * member.size))
    return buffer.getvalue()


def member(name: str, kind: bytes = tarfile.REGTYPE, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.mode = kind, link, 0o755
    info.size = 1 if kind == tarfile.REGTYPE else 0
    return info


def test_a_tree_comes_back_as_it_was(tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/file").write_bytes(os.urandom(700_001))
    os.link(source / "deep/file", source / "hard")
    (source / "soft").symlink_to("deep/file")
    (source / ("long" * 40)).write_bytes(b"")
    (source / "run").write_text("x")
    (source / "run").chmod(0o755)
    target = tmp_path / "there/target"
    with staging(target.parent) as content:
        unpack(pack_tree(source, "named"), content)
        settle(content, target)
    assert (target / "deep/file").read_bytes() == (source / "deep/file").read_bytes()
    assert (target / "hard").stat().st_ino == (target / "deep/file").stat().st_ino
    assert os.readlink(target / "soft") == "deep/file"
    assert (target / "run").stat().st_mode & 0o777 == 0o755
    assert (target / "deep/er").is_dir()
    assert [entry.name for entry in target.parent.iterdir()] == ["target"]


@pytest.mark.parametrize(
    "members",
    [
        [member("root/../../evil")],
        [member("root", tarfile.DIRTYPE), member("root/link", tarfile.SYMTYPE, "/etc")],
        [member("root", tarfile.DIRTYPE), member("root/link", tarfile.SYMTYPE, "../../..")],
        [member("root", tarfile.DIRTYPE), member("root/hard", tarfile.LNKTYPE, "root/../../../etc/passwd")],
        [member("root", tarfile.DIRTYPE), member("root/null", tarfile.CHRTYPE)],
        [
            member("root", tarfile.DIRTYPE),
            member("root/d", tarfile.DIRTYPE),
            member("root/l", tarfile.SYMTYPE, "d"),
            member("root/l/x"),
        ],
    ],
    ids=["climbs", "absolute-link", "link-out", "hard-link-out", "device", "below-a-link"],
)
def test_what_leads_elsewhere_is_refused(tmp_path, members):
    inside = tmp_path / "inside"
    with pytest.raises(ApiError, match="can't be unpacked"), staging(inside) as content:
        unpack([archive_of(*members)], content)
    assert list(tmp_path.rglob("*")) == [inside]


def test_files_do_not_replace_directories(tmp_path):
    (tmp_path / "place/name/kept").mkdir(parents=True)
    with pytest.raises(OSError), staging(tmp_path) as content:
        unpack(pack_bytes(b"x", "name", 0o644), content)
        settle(content, tmp_path / "place/name")
    assert (tmp_path / "place/name/kept").is_dir()
