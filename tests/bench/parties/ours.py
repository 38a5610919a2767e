"""Ours: a service of the bench's own, reached through the SDK as a user would."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from runta import Runta
from runta.client import events, local
from runta.client.spawn import can_connect
from runta.client.sync import Runtime
from runta.layout import Layout
from runta.settings import Settings
from tests.bench.clock import timed
from tests.bench.parties import MEMORY_MIB, Restored, Taken
from tests.bench.workload import READY, Load

_POLL = 0.02
_START_TIMEOUT = 30.0
_TASK_TIMEOUT = 300.0
# Until the program has a session of its own, the end of the shell would end it too.
_BEHIND = 'setsid "$@" </dev/null >/dev/null 2>&1 & until [ -e "$0" ]; do sleep 0.05; done'


class Ours:
    """The service and one client."""

    name = "ours"

    def __init__(self, root: Path, settings: Settings) -> None:
        self.layout = Layout(root / "state", root / "run")
        for path in (self.layout.state_dir, self.layout.run_dir):
            path.mkdir(mode=0o711)
        self.layout.images.symlink_to(settings.state_dir / "images")
        self._log = root / "serve.log"
        self._labels: dict[str, str] = {}
        """What the source of each checkpoint runs."""
        self.client = Runta(endpoint=f"unix:{self.layout.socket}", retry_max_attempts=1, timeout=300.0)
        self._start_service()

    def _start_service(self) -> None:
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RUNTA_")}
        places = {"RUNTA_STATE_DIR": str(self.layout.state_dir), "RUNTA_RUN_DIR": str(self.layout.run_dir)}
        with self._log.open("ab") as log:
            self.service = subprocess.Popen(
                [sys.executable, "-m", "runta", "serve"],
                env={**kept, **places, "RUNTA_LISTEN": ""},
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
            )
        self._await_service()

    def _await_service(self) -> None:
        deadline = time.monotonic() + _START_TIMEOUT
        while not can_connect(self.layout.socket):
            if self.service.poll() is not None or time.monotonic() > deadline:
                self.service.kill()
                raise SystemExit(f"the service did not start:\n{self._log.read_text(errors='replace')[-2000:]}")
            time.sleep(_POLL)

    def create(self, load: Load) -> tuple[Runtime, float]:
        name = _name(load.name)
        runtime, spent = timed(lambda: self._create(name))
        if load.argv:
            self.run(runtime, ["sh", "-c", _BEHIND, READY, *load.argv])
        return runtime, spent

    def _create(self, name: str, checkpoint_id: str | None = None) -> Runtime:
        size: dict[str, Any] = {} if checkpoint_id else {"memory_mib": MEMORY_MIB, "vcpus": os.cpu_count() or 1}
        return self.client.runtimes.create(name, checkpoint_id=checkpoint_id, poll_interval=_POLL, **size)

    def run(self, box: Runtime, argv: Sequence[str]) -> None:
        done = box.exec(list(argv), timeout=_TASK_TIMEOUT)
        if done.exit_code != 0:
            raise RuntimeError(f"{argv[0]} ended with code {done.exit_code} in a runtime: {done.stderr_text}")

    def exec_true(self, box: Runtime) -> float:
        return timed(lambda: self.run(box, ["true"]))[1]

    def checkpoint(self, box: Runtime) -> Taken:
        name = _name(label_of(box.name))
        made, spent = timed(lambda: box.checkpoints.create(name=name, poll_interval=_POLL))
        self._labels[made.id] = label_of(name)
        return Taken(made.id, spent, float(self.client.perform(local.inspect_checkpoint(made.id))["pause_ms"]))

    def restore(self, taken: Taken) -> Restored:
        name = _name(self._labels[taken.handle])
        fork, spent = timed(lambda: self._create(name, taken.handle))
        return Restored(fork, spent, spent + self.exec_true(fork))

    def read(self, box: Runtime, path: str) -> str:
        return box.files.read(path).decode()

    def delete(self, box: Runtime) -> float:
        return timed(box.delete)[1]

    def forget(self, taken: Taken) -> None:
        self.client.checkpoints.delete(taken.handle)

    def clear(self) -> None:
        """Remove every runtime and checkpoint."""
        for runtime in self.client.runtimes.list():
            runtime.delete()
        for checkpoint in self.client.checkpoints.list():
            self.client.checkpoints.delete(checkpoint.id)

    def events_after(self, event_id: str | None) -> list[events.Event]:
        """What happened in the service since an event, or since it began, oldest first."""
        found: list[events.Event] = []
        while page := self.client.perform(events.events_after(event_id)):
            found += page
            event_id = page[-1]["id"]
        return found

    def restart(self) -> None:
        """A new process of the service: without the memory that earlier work left it."""
        self._stop_service()
        self._start_service()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.clear()
        self.client.close()
        self._stop_service()

    def _stop_service(self) -> None:
        self.service.send_signal(signal.SIGTERM)
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.service.wait(timeout=30)
        self.service.kill()
        self.service.wait()


def _name(label: str) -> str:
    """A new name, which tells what runs there."""
    return f"{re.sub('[^a-z0-9]+', '-', label.lower())}-{time.monotonic_ns()}"


def label_of(name: str) -> str:
    """What runs in a runtime, by its name."""
    return name.rpartition("-")[0]


@contextlib.contextmanager
def cleared(ours: Ours) -> Iterator[None]:
    """What a block made is removed at its end."""
    try:
        yield
    finally:
        ours.clear()
