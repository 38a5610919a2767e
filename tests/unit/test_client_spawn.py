"""The embedded default: one service is started, however many clients ask, and a failing one says why."""

from __future__ import annotations

import subprocess
import sys
import threading
from pathlib import Path

import pytest

from runta.client import spawn
from runta.errors import ApiError, ConfigError
from runta.layout import Layout
from runta.settings import Settings

LISTEN = """
import socket, sys, time
time.sleep(0.2)
with socket.socket(socket.AF_UNIX) as sock:
    sock.bind(sys.argv[1])
    sock.listen(64)
    sys.stdin.read()
"""
FAIL = "import sys; print('first'); print('the disk is missing', file=sys.stderr); sys.exit(3)"


@pytest.fixture
def settings(tmp_path: Path, monkeypatch) -> Settings:
    monkeypatch.setattr(spawn.os, "geteuid", lambda: 0)
    return Settings(state_dir=tmp_path / "state", run_dir=tmp_path / "run")


@pytest.fixture
def started(monkeypatch):
    """Stand-ins of the service, in the order they were started; `program` says what they do."""
    processes: list[subprocess.Popen[bytes]] = []

    def start(layout: Layout) -> subprocess.Popen[bytes]:
        layout.state_dir.mkdir(parents=True, exist_ok=True)
        with layout.log.open("ab") as log:
            command = [sys.executable, "-c", start.program, str(layout.socket)]
            processes.append(subprocess.Popen(command, stdin=subprocess.PIPE, stdout=log, stderr=log))
        return processes[-1]

    start.program = LISTEN
    monkeypatch.setattr(spawn, "_start", start)
    processes_and_start = (processes, start)
    yield processes_and_start
    for process in processes:
        process.returncode = None
        process.communicate(b"")


def test_many_clients_start_one(settings, started):
    processes, _ = started
    threads = [threading.Thread(target=spawn.ensure_service, args=(settings,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(processes) == 1
    assert spawn.can_connect(settings.socket)
    spawn.ensure_service(settings)
    assert len(processes) == 1


def test_a_service_that_ends_early_says_why(settings, started):
    _, start = started
    start.program = FAIL
    with pytest.raises(ApiError, match="ended with exit code 3") as caught:
        spawn.ensure_service(settings)
    assert "the disk is missing" in caught.value.message
    assert "runta doctor" in caught.value.message


def test_a_stale_socket_counts_as_none(settings):
    import socket

    settings.run_dir.mkdir()
    with socket.socket(socket.AF_UNIX) as sock:
        sock.bind(str(settings.socket))
    assert not spawn.can_connect(settings.socket)


def test_without_root(settings, monkeypatch):
    monkeypatch.setattr(spawn.os, "geteuid", lambda: 1000)
    with pytest.raises(ConfigError, match="only root") as caught:
        spawn.ensure_service(settings)
    assert "what to do: run this as root" in str(caught.value)
    assert not settings.run_dir.exists()
