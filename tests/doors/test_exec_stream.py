"""The exec WebSocket of a real service, before real local processes."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import pytest
from websockets.asyncio.client import unix_connect as unix_connect_async
from websockets.exceptions import ConnectionClosed, InvalidStatus
from websockets.sync.client import ClientConnection, connect, unix_connect

from runta.api import exec as exec_door
from runta.api import session as session_door
from runta.errors import Unavailable
from runta.models import CreateRuntime, Runtime, RuntimeStatus

from .conftest import Service

MIB = 1 << 20


@dataclass
class Heard:
    """What came over one socket until it closed."""

    frames: list[dict[str, Any]] = field(default_factory=list)
    output: dict[str, bytearray] = field(default_factory=lambda: {"stdout": bytearray(), "stderr": bytearray()})
    code: int | None = None
    close_code: int | None = None

    @property
    def stdout(self) -> bytes:
        return bytes(self.output["stdout"])

    @property
    def stderr(self) -> bytes:
        return bytes(self.output["stderr"])

    @property
    def error(self) -> str:
        assert self.frames[-1]["type"] == "error", self.frames[-3:]
        message: str = self.frames[-1]["message"]
        return message


@pytest.fixture
def runtime(service: Service) -> Runtime:
    return service.run(service.engine.create_runtime(CreateRuntime(name="box")))


@contextmanager
def open_path(service: Service, path: str) -> Iterator[ClientConnection]:
    with unix_connect(str(service.socket), uri="ws://runta" + path, max_size=None, compression=None) as connection:
        yield connection


@contextmanager
def open_exec(service: Service, *command: str, **more: Any) -> Iterator[ClientConnection]:
    """A socket with its start frame sent."""
    with open_path(service, "/v2/runtimes/box/exec/stream") as connection:
        say(connection, type="start", command=command[0], args=list(command[1:]), **more)
        yield connection


def say(connection: ClientConnection, **frame: Any) -> None:
    connection.send(json.dumps(frame))


def say_input(connection: ClientConnection, data: bytes, size: int = 256 * 1024) -> None:
    for start in range(0, len(data), size):
        say(connection, type="stdin", data_base64=base64.b64encode(data[start : start + size]).decode())


def listen(connection: ClientConnection) -> Heard:
    """Everything until the server closes."""
    heard = Heard()
    while True:
        try:
            frame = json.loads(connection.recv(timeout=20))
        except ConnectionClosed as closed:
            heard.close_code = closed.rcvd.code if closed.rcvd else None
            return heard
        assert heard.code is None, "a frame after exit"
        heard.frames.append(frame)
        if frame["type"] in heard.output:
            data = base64.b64decode(frame["data_base64"], validate=True)
            assert 0 < len(data) <= 65536
            heard.output[frame["type"]] += data
        elif frame["type"] == "exit":
            heard.code = frame["code"]


def run(service: Service, *command: str, **more: Any) -> Heard:
    with open_exec(service, *command, **more) as connection:
        return listen(connection)


def wait_for_output(connection: ClientConnection, wanted: bytes) -> bytes:
    seen = b""
    while wanted not in seen:
        frame = json.loads(connection.recv(timeout=20))
        assert frame["type"] in ("stdout", "stderr"), frame
        seen += base64.b64decode(frame["data_base64"])
    return seen


def wait_until(true: Callable[[], bool], seconds: float = 10) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline, "it did not come true"
        time.sleep(0.01)


def is_alive(pid: int) -> bool:
    """A zombie that its new parent has not reaped yet is dead."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# Output and exit


def test_exit_is_last_and_the_server_closes(service: Service, runtime: Runtime) -> None:
    heard = run(service, "sh", "-c", "echo out; echo err >&2; exit 7")
    assert (heard.stdout, heard.stderr, heard.code) == (b"out\n", b"err\n", 7)
    assert heard.frames[-1] == {"type": "exit", "code": 7}
    assert heard.close_code == 1000
    assert {frame["type"] for frame in heard.frames} == {"stdout", "stderr", "exit"}


def test_runtime_is_found_by_id(service: Service, runtime: Runtime) -> None:
    with open_path(service, f"/v2/runtimes/{runtime.id}/exec/stream") as connection:
        say(connection, type="start", command="true")
        assert listen(connection).code == 0


def test_through_the_port_with_the_token(service: Service, runtime: Runtime) -> None:
    url = service.url.replace("http", "ws", 1) + "/v2/runtimes/box/exec/stream"
    with connect(url, additional_headers={"Authorization": f"Bearer {service.token}"}, proxy=None) as connection:
        say(connection, type="start", command="echo", args=["hello"])
        assert listen(connection).stdout == b"hello\n"


def test_much_output_is_complete_and_in_order(service: Service, runtime: Runtime) -> None:
    heard = run(service, "seq", "1", "600000")
    assert heard.stdout == b"".join(b"%d\n" % number for number in range(1, 600001))


def test_unread_output_makes_the_task_wait(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "sh", "-c", "yes | head -c 60000000") as connection:
        time.sleep(0.5)
        task = service.run(service.engine.list_tasks("box"))[0]
        assert task.stdout_offset < 40 * MIB
        assert len(listen(connection).stdout) == 60_000_000


@pytest.mark.parametrize(("command", "code"), [("no-such-command", 127), ("/etc/passwd", 126)])
def test_what_can_not_be_run(service: Service, runtime: Runtime, command: str, code: int) -> None:
    heard = run(service, command)
    assert heard.code == code
    assert heard.stderr


def test_killed_task_has_the_shells_exit_code(service: Service, runtime: Runtime) -> None:
    assert run(service, "sh", "-c", "kill -KILL $$").code == 137


def test_many_at_once(service: Service, runtime: Runtime) -> None:
    results: dict[int, Heard] = {}

    def work(number: int) -> None:
        results[number] = run(service, "sh", "-c", f"echo {number}; exit {number}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(20)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {number: (heard.stdout, heard.code) for number, heard in results.items()} == {
        number: (b"%d\n" % number, number) for number in range(20)
    }


# Start frame


def test_environment_directory_and_timeout(service: Service, runtime: Runtime) -> None:
    heard = run(service, "sh", "-c", "pwd; echo $A", env={"A": "b c"}, cwd="/tmp")
    assert heard.stdout == b"/tmp\nb c\n"
    assert run(service, "sleep", "30", timeout=0.2).code == 124


def test_unknown_fields_and_nulls_are_ignored(service: Service, runtime: Runtime) -> None:
    assert run(service, "true", rows=None, cols=None, surprise={"a": 1}).code == 0


def test_start_is_announced_only_on_request(service: Service, runtime: Runtime) -> None:
    heard = run(service, "echo", "hello", announce=True)
    assert heard.frames[0]["type"] == "started"
    assert heard.frames[0]["pid"] > 0
    assert heard.frames[1]["offset"] == 0
    assert "offset" not in run(service, "echo", "hello").frames[0]


def test_terminal(service: Service, runtime: Runtime) -> None:
    command = ("sh", "-c", "tty >/dev/null && stty size; read x; stty size; echo err >&2")
    with open_exec(service, *command, tty=True, rows=10, cols=40) as connection:
        wait_for_output(connection, b"10 40")
        say(connection, type="resize", rows=33, cols=44)
        say_input(connection, b"go\n")
        heard = listen(connection)
    assert b"33 44" in heard.stdout
    assert b"err" in heard.stdout
    assert heard.stderr == b""


def test_detached_task_goes_on(service: Service, runtime: Runtime) -> None:
    heard = run(service, "sh", "-c", "echo begun; cat; sleep 0.5; echo done; exit 3", detached=True)
    assert [frame["type"] for frame in heard.frames] == ["started"]
    assert heard.close_code == 1000
    task = heard.frames[0]["task_id"]
    wait_until(lambda: service.run(service.engine.list_tasks("box"))[0].exit_code == 3)
    with open_path(service, f"/v2/local/runtimes/box/tasks/{task}/attach") as connection:
        later = listen(connection)
    assert (later.stdout, later.code) == (b"begun\ndone\n", 3)


# Input


def test_five_megabytes_come_back(service: Service, runtime: Runtime) -> None:
    data = os.urandom(5 * MIB)
    with open_exec(service, "cat") as connection:
        sender = threading.Thread(target=lambda: (say_input(connection, data), say(connection, type="close_stdin")))
        sender.start()
        heard = listen(connection)
        sender.join()
    assert heard.code == 0
    assert heard.stdout == data


def test_all_input_sent_at_once(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "wc", "-c") as connection:
        say_input(connection, b"x" * 3 * MIB, size=MIB)
        say(connection, type="close_stdin")
        assert listen(connection).stdout.strip() == b"3145728"


def test_task_that_ends_before_its_input_does(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "true") as connection:
        sender = threading.Thread(target=lambda: _ignore_closed(lambda: say_input(connection, b"x" * 5 * MIB)))
        sender.start()
        heard = listen(connection)
        sender.join()
    assert heard.code == 0


def _ignore_closed(work: Callable[[], None]) -> None:
    with suppress(ConnectionClosed):
        work()


def test_heartbeats_are_accepted(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "cat") as connection:
        for _ in range(3):
            say(connection, type="heartbeat")
        say_input(connection, b"still here")
        say(connection, type="close_stdin")
        assert listen(connection).stdout == b"still here"


def test_quiet_socket_hears_heartbeats(service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(session_door, "HEARTBEAT_SECONDS", 0.1)
    heard = run(service, "sleep", "0.55")
    beats = [frame for frame in heard.frames if frame == {"type": "heartbeat"}]
    assert 3 <= len(beats) <= 6
    assert heard.code == 0


# Signals


@pytest.mark.parametrize("name", ["INT", "SIGINT", "TERM", "sigterm", "HUP", "QUIT", "KILL", "USR1", "usr2"])
def test_signals(service: Service, runtime: Runtime, name: str) -> None:
    with open_exec(service, "sh", "-c", "echo up; exec sleep 30") as connection:
        wait_for_output(connection, b"up")
        say(connection, type="signal", signal=name)
        expected = signal.Signals["SIG" + name.upper().removeprefix("SIG")]
        assert listen(connection).code == 128 + expected


def test_signal_arrives_while_the_input_is_blocked(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "sh", "-c", "echo up; exec sleep 30") as connection:
        wait_for_output(connection, b"up")
        say_input(connection, b"x" * 8 * MIB)
        say(connection, type="signal", signal="TERM")
        assert listen(connection).code == 143


def test_input_beyond_the_allowance_waits_and_arrives(
    service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_door, "INPUT_AHEAD", 256 * 1024)
    with open_exec(service, "sh", "-c", "sleep 0.5; exec cksum") as connection:
        say_input(connection, b"x" * 8 * MIB)
        say(connection, type="close_stdin")
        assert listen(connection).stdout.split()[1] == b"%d" % (8 * MIB)


def test_both_ways_at_once_beyond_the_allowance(
    service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the asyncio client: the blocking one holds a lock while it sends, and can't read meanwhile."""
    monkeypatch.setattr(session_door, "INPUT_AHEAD", 256 * 1024)
    data = os.urandom(8 * MIB)
    assert asyncio.run(echo(service, data)) == data


async def echo(service: Service, data: bytes) -> bytes:
    uri = "ws://runta/v2/runtimes/box/exec/stream"
    heard = bytearray()
    async with unix_connect_async(str(service.socket), uri=uri, max_size=None, compression=None) as connection:

        async def feed() -> None:
            await connection.send(json.dumps({"type": "start", "command": "cat"}))
            for start in range(0, len(data), MIB // 4):
                encoded = base64.b64encode(data[start : start + MIB // 4]).decode()
                await connection.send(json.dumps({"type": "stdin", "data_base64": encoded}))
            await connection.send(json.dumps({"type": "close_stdin"}))

        feeding = asyncio.create_task(feed())
        async for message in connection:
            frame = json.loads(message)
            if frame["type"] == "stdout":
                heard += base64.b64decode(frame["data_base64"])
        await feeding
    return bytes(heard)


def test_pings_are_answered_while_the_input_is_blocked(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "sh", "-c", "echo up; exec sleep 30") as connection:
        wait_for_output(connection, b"up")
        say_input(connection, b"x" * 4 * MIB)
        assert connection.ping().wait(5)


# Error frames


@pytest.mark.parametrize(
    ("frame", "words"),
    [
        ({"type": "stdin", "data_base64": ""}, "first websocket frame must be start"),
        ({"type": "start"}, "command is required"),
        ({"type": "start", "command": ""}, "command is required"),
        ({"type": "start", "command": 5}, "start frame, command"),
        ({"type": "start", "command": "a", "args": "b"}, "start frame, args"),
        ({"type": "start", "command": "a", "args": ["\0"]}, "NUL"),
        ({"type": "start", "command": "a", "env": {"A=B": "c"}}, "A=B"),
        ({"type": "start", "command": "a", "timeout": 0}, "start frame, timeout"),
        ([], "one JSON object"),
    ],
)
def test_refused_first_frames(service: Service, runtime: Runtime, frame: Any, words: str) -> None:
    with open_path(service, "/v2/runtimes/box/exec/stream") as connection:
        connection.send(json.dumps(frame))
        heard = listen(connection)
    assert words in heard.error
    assert len(heard.frames) == 1
    assert service.run(service.engine.list_tasks("box")) == []


@pytest.mark.parametrize(
    ("message", "words"),
    [
        ('{"type":"signal","signal":"STOP"}', "unsupported signal 'STOP'"),
        ('{"type":"signal"}', "unsupported signal 'None'"),
        ('{"type":"stdin","data_base64":"*"}', "standard base64"),
        ('{"type":"stdin"}', "standard base64"),
        ('{"type":"resize","rows":0,"cols":1}', "rows"),
        ('{"type":"start","command":"a"}', "start comes once"),
        ('{"type":"dance"}', "unknown frame type 'dance'"),
        ("{", "one JSON object"),
        (b"{}", "one JSON object"),
    ],
)
def test_refused_later_frames_end_the_task(service: Service, runtime: Runtime, message: Any, words: str) -> None:
    with open_exec(service, "sleep", "30") as connection:
        connection.send(message)
        heard = listen(connection)
    assert words in heard.error
    assert heard.code is None
    wait_until(lambda: service.run(service.engine.list_tasks("box"))[0].exit_code == 137)


def test_refusal_of_the_engine_is_an_error_frame(
    service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(ref: str, spec: object) -> None:
        raise Unavailable("the guest does not answer", hint="try again")

    monkeypatch.setattr(service.engine, "start_task", fail)
    heard = run(service, "true")
    assert heard.error == "the guest does not answer\nwhat to do: try again"
    assert heard.frames[-1]["code"] == "unavailable"


def test_unforeseen_failure_ends_the_socket_and_the_task(
    service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(session_door, "render_outputs", fail)
    with open_exec(service, "sh", "-c", "echo up; exec sleep 30") as connection:
        assert listen(connection).frames == []
    wait_until(lambda: service.run(service.engine.list_tasks("box"))[0].exit_code == 137)
    assert len([record for record in caplog.records if record.exc_info]) == 1


# The socket's end


@pytest.mark.parametrize("politely", [True, False])
def test_lost_socket_kills_the_group(service: Service, runtime: Runtime, politely: bool) -> None:
    script = "trap '' HUP TERM INT; sleep 60 & echo $$ $!; wait"
    with open_exec(service, "sh", "-c", script) as connection:
        shell, child = (int(pid) for pid in wait_for_output(connection, b"\n").split())
        if not politely:
            connection.socket.shutdown(2)
    wait_until(lambda: not is_alive(child) and not is_alive(shell))
    assert service.engine.signals[-1][1] == signal.SIGKILL


def test_lost_socket_spares_what_left_the_group(service: Service, runtime: Runtime) -> None:
    script = "setsid sh -c 'echo $$; sleep 60' & wait"
    with open_exec(service, "sh", "-c", script) as connection:
        survivor = int(wait_for_output(connection, b"\n"))
    wait_until(lambda: service.run(service.engine.list_tasks("box"))[0].exit_code == 137)
    assert is_alive(survivor)
    os.killpg(survivor, signal.SIGKILL)


def test_lost_socket_is_noticed_while_output_is_blocked(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "sh", "-c", "echo $$; exec yes") as connection:
        pid = int(wait_for_output(connection, b"\n").split()[0])
        time.sleep(0.3)
        connection.socket.shutdown(2)
    wait_until(lambda: not is_alive(pid))


def test_lost_socket_is_noticed_while_input_is_full(
    service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(session_door, "INPUT_AHEAD", 64 * 1024)
    monkeypatch.setattr(session_door, "HEARTBEAT_SECONDS", 0.2)
    with open_exec(service, "sh", "-c", "echo $$; exec sleep 60") as connection:
        pid = int(wait_for_output(connection, b"\n"))
        say_input(connection, b"x" * 256 * 1024, size=64 * 1024)
        time.sleep(0.3)
        connection.socket.shutdown(2)
    wait_until(lambda: not is_alive(pid))


def test_end_of_a_command_needs_no_kill(service: Service, runtime: Runtime) -> None:
    assert run(service, "true").code == 0
    assert service.engine.signals == []


def test_end_of_the_service_ends_no_task(service: Service, runtime: Runtime) -> None:
    with open_exec(service, "sh", "-c", "echo up; exec sleep 30") as connection:
        wait_for_output(connection, b"up")
        task = service.engine.boxes[runtime.id].tasks[1]
        ended: list[float] = []
        original = service.engine.aclose

        async def aclose() -> None:
            ended.append(time.monotonic())
            assert task.process is not None
            assert task.process.returncode is None
            assert task.attachment is None
            await original()

        service.engine.aclose = aclose  # type: ignore[method-assign]
        begun = time.monotonic()
        service.loop.call_soon_threadsafe(service.stop.set)
        heard = listen(connection)
    assert heard.code is None
    wait_until(lambda: bool(ended))
    assert ended[0] - begun < 3
    assert service.engine.signals == []
    assert not service.socket.exists()


# Handshakes


def refused(service: Service, path: str) -> tuple[int, dict[str, Any]]:
    with pytest.raises(InvalidStatus) as caught, open_path(service, path):
        pass
    response = caught.value.response
    body = json.loads(response.body or b"{}")
    assert body["request_id"] == response.headers["X-Request-Id"]
    assert set(body["error"]) == {"code", "message"}
    return response.status_code, body["error"]


def test_handshake_needs_the_token(service: Service, runtime: Runtime) -> None:
    url = service.url.replace("http", "ws", 1) + "/v2/runtimes/box/exec/stream"
    for headers in ({}, {"Authorization": "Bearer rt_wrong"}):
        with pytest.raises(InvalidStatus) as caught, connect(url, additional_headers=headers, proxy=None):
            pass
        assert caught.value.response.status_code == 401
        assert json.loads(caught.value.response.body or b"")["error"]["code"] == "unauthenticated"


def test_handshake_with_an_unknown_runtime(service: Service, runtime: Runtime) -> None:
    status, error = refused(service, "/v2/runtimes/bix/exec/stream")
    assert (status, error["code"]) == (404, "not_found")
    assert "did you mean box?" in error["message"]


@pytest.mark.parametrize("status", [RuntimeStatus.PAUSED, RuntimeStatus.SHUTDOWN, RuntimeStatus.ERROR])
def test_handshake_with_a_runtime_that_does_not_run(service: Service, runtime: Runtime, status: RuntimeStatus) -> None:
    service.engine.set_status("box", status)
    code, error = refused(service, "/v2/runtimes/box/exec/stream")
    assert (code, error["code"]) == (409, "failed_precondition")
    # Bundled adapters of the official SDK look for these two words together (section 12).
    assert "not running" in error["message"]
    assert status in error["message"]


def test_handshake_waits_for_a_runtime_that_is_being_created(service: Service, runtime: Runtime) -> None:
    service.engine.set_status("box", RuntimeStatus.CREATING)
    later = threading.Timer(0.3, lambda: service.engine.set_status("box", RuntimeStatus.RUNNING))
    later.start()
    assert run(service, "true").code == 0
    later.join()


def test_handshake_does_not_wait_for_ever(service: Service, runtime: Runtime, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exec_door, "PATIENCE_SECONDS", 0.1)
    service.engine.set_status("box", RuntimeStatus.CREATING)
    assert refused(service, "/v2/runtimes/box/exec/stream")[0] == 503


def test_handshake_on_an_unknown_path(service: Service, runtime: Runtime) -> None:
    assert refused(service, "/v2/runtimes/box/exec/dream")[0] == 404


# Attach


def test_attach_from_offsets(service: Service, runtime: Runtime) -> None:
    task = run(service, "sh", "-c", "printf 0123456789; printf abc >&2", detached=True).frames[0]["task_id"]
    path = f"/v2/local/runtimes/box/tasks/{task}/attach"
    with open_path(service, path + "?stdout_offset=4&stderr_offset=3") as connection:
        heard = listen(connection)
    assert (heard.stdout, heard.stderr, heard.code) == (b"456789", b"", 0)
    assert heard.frames[0]["type"] == "started"
    assert heard.frames[1]["offset"] == 4


def test_leaving_an_attachment_only_detaches(service: Service, runtime: Runtime) -> None:
    task = run(service, "sh", "-c", "echo up; read x; echo got $x", detached=True, stdin=True).frames[0]["task_id"]
    path = f"/v2/local/runtimes/box/tasks/{task}/attach"
    with open_path(service, path) as connection:
        assert json.loads(connection.recv(timeout=20))["type"] == "started"
        wait_for_output(connection, b"up")
    wait_until(lambda: not service.run(service.engine.list_tasks("box"))[0].attached)
    assert service.engine.signals == []
    with open_path(service, path + "?stdout_offset=3") as connection:
        say_input(connection, b"it\n")
        assert listen(connection).stdout == b"got it\n"


def test_tasks_are_listed_and_signalled(service: Service, runtime: Runtime) -> None:
    task = run(service, "sleep", "30", detached=True).frames[0]["task_id"]
    with httpx.Client(transport=httpx.HTTPTransport(uds=str(service.socket)), base_url="http://runta") as http:
        listed = http.get("/v2/local/runtimes/box/tasks").json()["data"]
        assert [(one["id"], one["argv"], one["detached"]) for one in listed] == [(task, ["sleep", "30"], True)]
        wrong = http.post(f"/v2/local/runtimes/box/tasks/{task}/signal", json={"signal": "NOPE"})
        assert wrong.status_code == 422
        right = http.post(f"/v2/local/runtimes/box/tasks/{task}/signal", json={"signal": "TERM"})
        assert right.json() == {"data": {}}
        wait_until(lambda: http.get("/v2/local/runtimes/box/tasks").json()["data"][0]["exit_code"] == 143)


def test_refused_attachments(service: Service, runtime: Runtime) -> None:
    assert refused(service, "/v2/local/runtimes/box/tasks/99/attach")[0] == 404
    assert refused(service, "/v2/local/runtimes/box/tasks/1/attach?stdout_offset=-1")[0] == 422
    assert refused(service, "/v2/local/runtimes/none/tasks/1/attach")[0] == 404
