"""The exec WebSocket, frame by frame."""

from __future__ import annotations

import asyncio
import hashlib
import os
import signal
import time

import pytest
import websockets
from raw import ENDPOINT, HEADERS, ask, call, command, run


def rss(pid: int) -> int:
    """Resident memory, MiB."""
    with open(f"/proc/{pid}/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE") >> 20


def test_output_is_complete_in_order_and_in_small_frames(box):
    async def talk():
        async with command(box.id, "sh", "-c", "seq 1 400000; seq 1 1000 >&2; exit 9") as one:
            await one.say("close_stdin")
            assert await one.finish() == 9
            assert one.stdout.decode() == "".join(f"{n}\n" for n in range(1, 400001))
            assert one.stderr.decode() == "".join(f"{n}\n" for n in range(1, 1001))
            assert max(one.sizes) <= 65536
            assert one.frames[-1] == "exit"

    call(talk())


def test_input_end_of_input_and_binary(box):
    async def talk():
        data = os.urandom(6 << 20)
        async with command(box.id, "sha256sum") as one:
            await one.write(data, step=262144)
            assert await one.finish() == 0
            assert one.stdout.decode().split()[0] == hashlib.sha256(data).hexdigest()

    call(talk())


@pytest.mark.parametrize("name", ["INT", "SIGTERM", "term"])
def test_signal(box, name):
    async def talk():
        async with command(box.id, "sh", "-c", "echo up; exec sleep 600") as one:
            await one.read_until(lambda one: one.stdout)
            await one.say("signal", signal=name)
            number = signal.SIGINT if name == "INT" else signal.SIGTERM
            assert await one.finish() == 128 + number

    call(talk())


def test_terminal_and_resize(box):
    async def talk():
        async with command(box.id, "sh", tty=True, rows=30, cols=90, env={"PS1": ""}) as one:
            await one.write_line("stty size; tty >/dev/null && echo terminal")
            await one.read_until(lambda one: b"30 90\r\nterminal\r\n" in one.stdout)
            await one.say("resize", rows=50, cols=120)
            await one.write_line("stty size; exit 4")
            assert await one.finish() == 4
            assert b"50 120" in one.stdout and not one.stderr

    call(talk())


def test_lost_socket_ends_the_process_group_and_no_more(box):
    async def talk():
        script = "setsid sleep 711 >/dev/null 2>&1 </dev/null & sleep 712 & echo up; wait"
        async with command(box.id, "sh", "-c", script) as one:
            await one.read_until(lambda one: one.stdout)
        deadline = time.monotonic() + 10
        while (await run(box.id, "pgrep", "-fx", "sleep 712"))[0] == 0:
            assert time.monotonic() < deadline, "the command outlives its socket"
        assert (await run(box.id, "pgrep", "-fx", "sleep 711"))[0] == 0
        await run(box.id, "pkill", "-fx", "sleep 711")

    call(talk())


def test_reader_that_does_not_read_does_not_fill_the_service(box):
    """200 MB of output against a client that takes none: the command waits, the service does not grow."""
    pid = int(os.environ["RUNTA_TEST_SERVICE"])

    async def talk():
        url = ENDPOINT.replace("http", "ws", 1) + f"/v2/runtimes/{box.id}/exec/stream"
        before = rss(pid)
        async with websockets.connect(url, additional_headers=HEADERS, max_queue=1, proxy=None) as socket:
            import json

            start = {"type": "start", "command": "head", "args": ["-c", "200000000", "/dev/zero"]}
            await socket.send(json.dumps(start))
            await asyncio.sleep(1.5)
            assert rss(pid) - before < 60
            total = 0
            import base64

            while True:
                frame = json.loads(await socket.recv())
                if frame["type"] == "exit":
                    break
                total += len(base64.b64decode(frame["data_base64"]))
            assert total == 200_000_000
        assert rss(pid) - before < 60

    call(talk())


def test_heartbeats_while_it_is_quiet(box):
    """The client gives up after 30 s of silence, in a paused runtime too."""

    async def talk():
        async with command(box.id, "sleep", "600") as one:
            await asyncio.sleep(0.2)
            box.pause()
            try:
                await asyncio.wait_for(one.read_until(lambda one: "heartbeat" in one.frames), 27)
            finally:
                box.resume()
            await one.say("heartbeat")
            await one.say("signal", signal="TERM")
            assert await one.finish() == 143

    call(talk())


@pytest.mark.parametrize(
    ("first", "words"),
    [
        ({"type": "start", "command": ""}, "command is required"),
        ({"type": "stdin", "data_base64": ""}, "first websocket frame must be start"),
        ("not json", "JSON"),
    ],
)
def test_errors_are_the_last_frame(box, first, words):
    async def talk():
        import json

        url = ENDPOINT.replace("http", "ws", 1) + f"/v2/runtimes/{box.id}/exec/stream"
        async with websockets.connect(url, additional_headers=HEADERS, proxy=None) as socket:
            await socket.send(first if isinstance(first, str) else json.dumps(first))
            frame = json.loads(await socket.recv())
            assert frame["type"] == "error" and words in frame["message"]
            with pytest.raises(websockets.ConnectionClosed):
                await socket.recv()

    call(talk())


def test_refused_handshakes(client, box, make):
    async def status_of(path, headers=HEADERS):
        try:
            async with websockets.connect(
                ENDPOINT.replace("http", "ws", 1) + path, additional_headers=headers, proxy=None
            ):
                return 101
        except websockets.InvalidStatus as refused:
            return refused.response.status_code

    stopped = make()
    stopped.shutdown()
    assert call(status_of("/v2/runtimes/none/exec/stream")) == 404
    assert call(status_of(f"/v2/runtimes/{stopped.id}/exec/stream")) == 409
    assert call(status_of(f"/v2/runtimes/{box.id}/exec/stream", {"Authorization": "Bearer rt_x"})) == 401
    assert ask("GET", f"/v2/runtimes/{box.id}/exec/stream")[0] in (404, 426)


def test_five_hundred_one_after_the_other(box):
    async def talk():
        for number in range(500):
            assert await run(box.id, "echo", str(number)) == (0, f"{number}\n".encode())

    call(talk())


def test_fifty_at_once_three_times(box):
    async def talk():
        for _ in range(3):
            jobs = [run(box.id, "sh", "-c", f"seq 1 2000; echo {number}") for number in range(50)]
            head = b"".join(b"%d\n" % n for n in range(1, 2001))
            for number, result in enumerate(await asyncio.gather(*jobs)):
                assert result == (0, head + b"%d\n" % number)

    call(talk())
