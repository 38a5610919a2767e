"""Garbage for the guest init: its sanitizer build must survive whatever a connection says, and go on serving.

The frames are written here from PROTOCOL.md, apart from the client, and broken in ways no client would.
"""

from __future__ import annotations

import os
import random
import shutil
import socket
import struct
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.unit.guest_init import binary, short_directory

SECONDS = 4.0
"""For each seed."""
MAGIC = 0x41544E52
HELLO, START, ATTACH, STDIN, STDIN_EOF, ACK, RESIZE, SIGNAL, LIST, RELEASE, OPEN, MKDIRS, STOP, QUIESCE = range(1, 15)
EDGES = (0, 1, 2, 3, 4095, 4096, 65535, 65536, 1 << 20, (1 << 31) - 1, 1 << 31, (1 << 32) - 1, (1 << 63), (1 << 64) - 1)


def frame(kind: int, payload: bytes = b"", tag: int = 7) -> bytes:
    return struct.pack("<IHH", len(payload), kind, tag) + payload


GREETING = frame(HELLO, struct.pack("<IH", MAGIC, 1))


def strings(*items: bytes) -> bytes:
    return struct.pack("<I", len(items)) + b"".join(item + b"\0" for item in items)


def u64(random: random.Random) -> int:
    return random.choice((*EDGES, random.randrange(100), random.randrange(1 << 20)))


def a_start(random: random.Random) -> bytes:
    argv = random.choice(
        (
            (b"true",),
            (b"cat",),
            (b"echo", b"x" * random.choice((1, 5000, 60000))),
            (b"head", b"-c", b"300000", b"/dev/zero"),
            (b"no-such-command",),
            (),
        )
    )
    user = random.choice((b"", b"", b"", b"root", b"nobody:", b":", b"1:2", b"99999999999"))
    cwd = random.choice((b"", b"/", b"/no/such"))
    head = struct.pack("<IHH", random.randrange(8), random.randrange(1 << 16), random.randrange(1 << 16))
    return frame(START, head + user + b"\0" + cwd + b"\0" + strings(*argv) + strings(b"A=1", b"broken"))


def a_frame(random: random.Random) -> bytes:
    """One frame, mostly valid in its form. STOP is left out: it ends the init, rightly."""
    task = random.choice((0, 1, 2, 3, random.randrange(60), (1 << 32) - 1))
    match random.randrange(1, 14):
        case 1:
            return random.choice((GREETING, frame(HELLO, struct.pack("<IH", MAGIC, random.randrange(1 << 16)))))
        case 2:
            return a_start(random)
        case 3:
            return frame(ATTACH, struct.pack("<IQQ", task, u64(random), u64(random)))
        case 4:
            return frame(STDIN, struct.pack("<Q", u64(random)) + b"y" * random.choice((0, 1, 5000, 65536, 65537)))
        case 5:
            return frame(STDIN_EOF, struct.pack("<Q", u64(random)))
        case 6:
            return frame(ACK, struct.pack("<BQ", random.choice((0, 1, 2, 255)), u64(random)))
        case 7:
            return frame(RESIZE, struct.pack("<IHH", task, random.randrange(1 << 16), random.randrange(1 << 16)))
        case 8:
            return frame(SIGNAL, struct.pack("<II", task, random.choice((0, 1, 2, 9, 15, 64, 65, (1 << 32) - 1))))
        case 9:
            return frame(LIST)
        case 10:
            return frame(RELEASE, struct.pack("<I", task))
        case 11:
            path = random.choice((b"/dev/null", b"x", b"", b"/" + b"d" * 5000, b"/proc/self/fd"))
            return frame(OPEN, struct.pack("<II", random.choice((0, os.O_PATH, os.O_DIRECTORY)), 0o644) + path + b"\0")
        case 12:
            return frame(MKDIRS, random.choice((b"/", b"", b"/dev/null/x", b"/" * 5000, b"/proc/x/y")) + b"\0")
        case _:
            return random.choice((frame(QUIESCE), frame(LIST), frame(random.randrange(15, 1 << 16))))


def mutated(random: random.Random, data: bytes) -> bytes:
    broken = bytearray(data)
    match random.randrange(6):
        case 0:
            for _ in range(random.randrange(1, 5)):
                broken[random.randrange(len(broken))] = random.randrange(256)
        case 1:
            del broken[random.randrange(len(broken)) :]
        case 2:
            at = random.randrange(len(broken))
            broken[at:at] = random.randbytes(random.randrange(1, 40))
        case 3 if len(broken) > 12:
            at = random.randrange(len(broken) - 4)
            broken[at : at + 4] = struct.pack("<I", random.choice(EDGES) & 0xFFFFFFFF)
        case _:
            pass
    return bytes(broken)


def a_conversation(random: random.Random) -> bytes:
    if random.random() < 0.1:
        return random.randbytes(random.randrange(1, 3000))
    data = b"".join(a_frame(random) for _ in range(random.randrange(1, 8)))
    if random.random() < 0.6:
        data = mutated(random, data)
    return (GREETING if random.random() < 0.95 else b"") + data


class FuzzedInit:
    """The sanitizer build, as nobody where the test runs as root: what it is told to do may be anything."""

    def __init__(self, directory: Path) -> None:
        self.socket = directory / "s"
        self.errors = directory / "errors"
        self._binary = directory / "init"
        shutil.copy(binary("runta-init-asan"), self._binary)
        directory.chmod(0o777)
        self.start()

    def start(self) -> None:
        with self.errors.open("ab") as errors:
            self.process = subprocess.Popen(
                [self._binary, "--socket", self.socket, "--any-peer"],
                stderr=errors,
                cwd="/",
                env={"ASAN_OPTIONS": "detect_leaks=0:abort_on_error=1", "PATH": "/usr/bin:/bin"},
                user="nobody" if os.geteuid() == 0 else None,
                extra_groups=[] if os.geteuid() == 0 else None,
            )
        for _ in range(500):
            if self.socket.exists():
                break
            time.sleep(0.01)

    def connect(self) -> socket.socket:
        """A connection. While the init is busy (a fork takes a while under the sanitizer) its backlog may be full."""
        for _ in range(1000):
            sock = socket.socket(socket.AF_UNIX)
            sock.settimeout(5)
            try:
                sock.connect(str(self.socket))
                return sock
            except (BlockingIOError, ConnectionRefusedError, FileNotFoundError):
                sock.close()
                self.check()
                time.sleep(0.01)
        pytest.fail("the init takes no connection any more")

    def check(self) -> None:
        """Fail with the sanitizer's report if the init has ended. A mutation may have said STOP: that is obeyed."""
        if self.process.poll() == 0:
            self.start()
        elif self.process.poll() is not None:
            pytest.fail(f"exit {self.process.returncode}:\n{self.errors.read_text(errors='replace')[-8000:]}")

    def still_serves(self) -> bool:
        """A QUIESCE that is still waiting in the backlog may close our connection: that is no failure, try again."""
        return any(self._answers() for _ in range(50))

    def _answers(self) -> bool:
        question, answer = frame(OPEN, struct.pack("<II", 0, 0) + b"/dev/null\0", tag=4711), frame(0x89, tag=4711)
        seen = b""
        with self.connect() as sock:
            try:
                sock.sendall(GREETING + question)
                while answer not in seen:
                    data = sock.recv(4096)
                    if not data:
                        return False
                    seen += data
            except (BrokenPipeError, ConnectionResetError):
                return False
        return True

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@pytest.fixture
def init() -> Iterator[FuzzedInit]:
    with short_directory() as directory:
        fuzzed = FuzzedInit(directory)
        try:
            yield fuzzed
        finally:
            fuzzed.end()


def talk(sock: socket.socket, random: random.Random, data: bytes) -> None:
    """Send in pieces; read now and then, or never. The other side may hang up at any moment."""
    sock.settimeout(0.05)
    try:
        while data:
            size = random.choice((1, 7, 8, 100, len(data)))
            sock.sendall(data[:size] if len(data) < 1000 else data)
            data = data[size:] if len(data) < 1000 else b""
            if random.random() < 0.3:
                sock.setblocking(False)
                sock.recv(random.choice((1, 100, 100000)))
                sock.settimeout(0.05)
    except (BlockingIOError, TimeoutError, BrokenPipeError, ConnectionResetError):
        pass


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_garbage_never_ends_the_init(init: FuzzedInit, seed: int) -> None:
    chance = random.Random(seed)
    until = time.monotonic() + SECONDS
    open_sockets: list[socket.socket] = []
    rounds = 0
    try:
        while time.monotonic() < until:
            sock = init.connect()
            open_sockets.append(sock)
            talk(sock, chance, a_conversation(chance))
            while len(open_sockets) > 20 or (open_sockets and chance.random() < 0.4):
                open_sockets.pop(chance.randrange(len(open_sockets))).close()
            rounds += 1
            init.check()
    finally:
        for sock in open_sockets:
            sock.close()
    init.check()
    assert init.still_serves()
    assert "ERROR" not in init.errors.read_text(errors="replace")
    assert "runtime error" not in init.errors.read_text(errors="replace")
    assert rounds > 100


def test_more_connections_than_it_serves_are_kept_waiting(init: FuzzedInit) -> None:
    """Silent connections fill the table; when they go, the next one is served."""
    silent = [init.connect() for _ in range(400)]
    init.check()
    for sock in silent:
        sock.close()
    assert init.still_serves()


def test_a_frame_that_never_ends_is_refused(init: FuzzedInit) -> None:
    with init.connect() as sock:
        sock.sendall(GREETING + struct.pack("<IHH", (2 << 20) + 1, STDIN, 1))
        answer = b""
        while data := sock.recv(4096):
            answer += data
        assert b"too long" in answer
    assert init.still_serves()
