"""The embedded default: start the service of this host where nobody else did."""

from __future__ import annotations

import fcntl
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from runta.errors import ApiError, ConfigError
from runta.layout import Layout
from runta.settings import Settings

START_TIMEOUT = 20.0
STEP = 0.02
LOG_LINES = 15


def ensure_service(settings: Settings) -> None:
    """Return when the service answers on its Unix socket; start it in the background if it doesn't.

    Raises ConfigError for a user who may not start it, ApiError with the end of its log where it does not come up.
    """
    layout = Layout(settings.state_dir, settings.run_dir)
    if can_connect(layout.socket):
        return
    if os.geteuid() != 0:
        raise ConfigError(
            f"no runta service answers on {layout.socket}\n"
            "why: none is running, and only root may start one\n"
            "what to do: run this as root (sudo), or set RUNTA_ENDPOINT and RUNTA_TOKEN to a running service"
        )
    with _start_lock(layout.run_dir):
        if not can_connect(layout.socket):
            _wait_until_up(_start(layout), layout)


def can_connect(path: Path) -> bool:
    """Whether something listens on a Unix socket.

    Raises ConfigError if this user may not know.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as sock:
        try:
            sock.connect(str(path))
        except PermissionError as err:
            raise ConfigError(
                f"may not connect to {path}\nwhy: {err.strerror}\n"
                "what to do: run this as root (sudo), or set RUNTA_ENDPOINT and RUNTA_TOKEN"
            ) from err
        except OSError:
            return False
    return True


@contextmanager
def _start_lock(run_dir: Path) -> Iterator[None]:
    """Two clients start one service: the second waits here and then finds it."""
    run_dir.mkdir(parents=True, exist_ok=True)
    with (run_dir / "start.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _start(layout: Layout) -> subprocess.Popen[bytes]:
    layout.state_dir.mkdir(parents=True, exist_ok=True)
    with layout.log.open("ab") as log:
        return subprocess.Popen(
            [sys.executable, "-m", "runta", "serve"],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            cwd="/",
            start_new_session=True,
        )


def _wait_until_up(process: subprocess.Popen[bytes], layout: Layout) -> None:
    deadline = time.monotonic() + START_TIMEOUT
    while not can_connect(layout.socket):
        code = process.poll()
        if code is not None or time.monotonic() > deadline:
            what = "did not come up in time" if code is None else f"ended with exit code {code} before it came up"
            raise ApiError(
                f"the runta service {what}\nwhy: {_last_lines(layout.log) or 'its log is empty'}\n"
                f"what to do: see {layout.log}, or run `runta serve` and `runta doctor` in a terminal"
            )
        time.sleep(STEP)
    process.returncode = 0  # It stays: the interpreter shall not warn about a child it did not wait for.


def _last_lines(log: Path) -> str:
    try:
        lines = log.read_text(errors="replace").splitlines()
    except OSError:
        return ""
    return "\n".join(lines[-LOG_LINES:]).strip()
