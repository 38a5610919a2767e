"""The service as a process: signals, and what it leaves behind."""

from __future__ import annotations

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

PROGRAM = """
import asyncio, pathlib, sys
root = pathlib.Path(sys.argv[1])
sys.path.insert(0, sys.argv[2])
from doors.plain_engine import PlainEngine
from runta.api.serve import serve
from runta.layout import Layout
from runta.settings import Settings

settings = Settings(state_dir=root / "state", run_dir=root / "run", listen=sys.argv[3])
announce = lambda listening: print(listening.url or "-", flush=True)
asyncio.run(serve(PlainEngine(root), Layout(settings.state_dir, settings.run_dir), settings, announce=announce))
"""


@pytest.fixture
def started(tmp_path: Path) -> Iterator[list[subprocess.Popen[str]]]:
    """Processes to end with the test."""
    running: list[subprocess.Popen[str]] = []
    yield running
    for process in running:
        process.kill()
        process.communicate()


def start(root: Path, listen: str, started: list[subprocess.Popen[str]]) -> subprocess.Popen[str]:
    tests = str(Path(__file__).parent.parent)
    command = [sys.executable, "-c", PROGRAM, str(root), tests, listen]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    started.append(process)
    return process


def read_url(process: subprocess.Popen[str]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_ends_the_service_in_order(
    tmp_path: Path, started: list[subprocess.Popen[str]], number: signal.Signals
) -> None:
    process = start(tmp_path, "127.0.0.1:0", started)
    url = read_url(process)
    with httpx.Client(base_url=url, trust_env=False) as client:
        assert client.get("/healthz").status_code == 200
        begun = time.monotonic()
        process.send_signal(number)
        assert process.wait(10) == 0
        assert time.monotonic() - begun < 3
    assert not (tmp_path / "run/runta.sock").exists()
    assert (tmp_path / "state/token").exists()


def test_no_port_where_none_is_wanted(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    assert read_url(start(tmp_path, "", started)) == "-"
    assert not (tmp_path / "state/token").exists()


def test_socket_of_a_killed_service_is_replaced(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    first = start(tmp_path, "", started)
    read_url(first)
    second = start(tmp_path, "", started)
    assert second.wait(10) == 1
    assert "already answers" in (second.stderr.read() if second.stderr else "")
    first.kill()
    first.wait()
    assert (tmp_path / "run/runta.sock").exists()
    assert read_url(start(tmp_path, "", started)) == "-"


def test_address_of_others_is_refused(tmp_path: Path, started: list[subprocess.Popen[str]]) -> None:
    process = start(tmp_path, "0.0.0.0:0", started)
    assert process.wait(10) == 1
    assert "not a loopback address" in (process.stderr.read() if process.stderr else "")
    assert not (tmp_path / "run/runta.sock").exists()
