"""`runta exec -it` and `attach` under a real terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator

import pytest

from tests.doors.conftest import Service
from tests.doors.test_cli import Cli, wait_for

TIMEOUT = 60
LOCAL_MODES = 3
"""Index of the local modes in tcgetattr's answer."""


class Person:
    """Somebody at a terminal who runs one command."""

    def __init__(self, cli: Cli, *words: str) -> None:
        self.ours, theirs = pty.openpty()
        self.resize(30, 100, tell=False)
        self.before = termios.tcgetattr(self.ours)
        self.process = subprocess.Popen(
            [sys.executable, "-m", "runta", *words],
            env={**cli.env, "TERM": "xterm"},
            stdin=theirs,
            stdout=theirs,
            stderr=theirs,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),
        )
        os.close(theirs)
        self.seen = ""

    def resize(self, rows: int, cols: int, *, tell: bool = True) -> None:
        fcntl.ioctl(self.ours, termios.TIOCSWINSZ, struct.pack("HHHH", rows, cols, 0, 0))
        if tell:
            os.kill(self.process.pid, signal.SIGWINCH)

    def type(self, text: str) -> None:
        os.write(self.ours, text.encode())

    def until(self, pattern: str) -> str:
        """Read until the pattern is there; what came before is forgotten."""
        deadline = time.monotonic() + TIMEOUT
        while not (found := re.search(pattern, self.seen)):
            assert time.monotonic() < deadline, f"no {pattern!r} in {self.seen!r}"
            if select.select([self.ours], [], [], 0.1)[0]:
                self.seen += os.read(self.ours, 65536).decode(errors="replace")
        self.seen = self.seen[found.end() :]
        return found.group()

    def leave(self) -> int:
        """The exit code, with the terminal as it was."""
        deadline = time.monotonic() + TIMEOUT
        while self.process.poll() is None:
            assert time.monotonic() < deadline, f"it does not end: {self.seen!r}"
            if select.select([self.ours], [], [], 0.02)[0]:
                try:
                    self.seen += os.read(self.ours, 65536).decode(errors="replace")
                except OSError:
                    break
        code = self.process.wait(TIMEOUT)
        assert termios.tcgetattr(self.ours) == self.before
        return code

    def is_raw(self) -> bool:
        return not termios.tcgetattr(self.ours)[LOCAL_MODES] & termios.ICANON


@pytest.fixture
def cli(service: Service) -> Cli:
    cli = Cli(service)
    cli("run", "--name", "box")
    return cli


@pytest.fixture
def sit(cli: Cli) -> Iterator:
    people = []

    def start(*words: str) -> Person:
        people.append(Person(cli, *words))
        return people[-1]

    yield start
    for person in people:
        if person.process.poll() is None:
            person.process.kill()
            person.process.wait()
        os.close(person.ours)


SHELL = ("exec", "-it", "-e", "PS1=at> ", "box", "sh")


def test_a_shell(sit):
    person = sit(*SHELL)
    person.until("at> ")
    assert person.is_raw()
    person.type("stty size; echo $TERM\r")
    person.until("30 100\r\nxterm\r\nat> ")
    person.type("exit 3\r")
    assert person.leave() == 3


def test_the_window_changes(sit):
    person = sit(*SHELL)
    person.until("at> ")
    person.resize(20, 50)
    person.type("while [ \"$(stty size)\" != '20 50' ]; do sleep 0.05; done; echo chan''ged\r")
    person.until("changed\r\n")
    person.type("exit\r")
    assert person.leave() == 0


def test_ctrl_c_goes_inside(sit):
    person = sit(*SHELL)
    person.until("at> ")
    person.type("sleep 600; echo in''terrupted\r")
    person.until("sleep 600")
    time.sleep(0.2)
    person.type("\x03")
    person.until("at> ")
    assert person.process.poll() is None
    person.type("\x04")
    person.leave()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_the_terminal_comes_back_after_a_signal(cli: Cli, sit, number: int):
    person = sit(*SHELL)
    person.until("at> ")
    person.process.send_signal(number)
    assert person.leave() == 128 + number
    wait_for(lambda: cli.json("tasks", "box", "--json")["tasks"][0]["exit_code"] is not None)


def test_the_terminal_comes_back_after_an_error(sit):
    person = sit("exec", "-it", "nobody", "sh")
    assert person.leave() == 1
    assert "no runtime 'nobody'" in person.seen


def test_attaching_to_a_terminal_and_leaving_it(cli: Cli, sit):
    number = cli("exec", "-d", "-t", "-e", "PS1=at> ", "box", "sh").stdout.strip()
    person = sit("attach", "box")
    person.until("at> ")
    person.type("echo he''re\r")
    person.until("here\r\nat> ")
    person.type("\x1d")
    assert person.leave() == 0
    task = cli.json("tasks", "box", "--json")["tasks"][0]
    assert (str(task["id"]), task["exit_code"]) == (number, None)
    again = sit("attach", "box", number)
    again.until("here\r\nat> ")
    again.type("exit 9\r")
    assert again.leave() == 9


def test_words_for_people(sit):
    person = sit("snapshot", "create", "box", "ck")
    assert person.leave() == 0
    assert "ck is ready (" in person.seen
    person = sit("pause", "box")
    assert person.leave() == 0
    assert "box is paused" in person.seen
    person = sit("run", "--name", "two")
    assert person.leave() == 0
    assert "two is running (" in person.seen
