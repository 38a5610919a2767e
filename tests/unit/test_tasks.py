"""What the service does for tasks: logs of detached ones, an end for those nobody watches."""

from __future__ import annotations

import asyncio
import signal
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from runta.engine import tasks as engine_tasks
from runta.engine.idle import Idle
from runta.engine.tasks import Tasks, compose_env
from runta.models import Output, TaskInfo, TaskSpec
from runta.store import tasklog
from runta.store.tasklog import TaskLog


def make_task(**facts: Any) -> TaskInfo:
    return TaskInfo(**{"id": 1, "pid": 5, "argv": ("sleep",), "detached": False, "tty": False, **facts})


@dataclass
class PlainGuest:
    """A guest init that remembers what it was asked."""

    tasks: list[TaskInfo]
    asked: list[tuple[Any, ...]] = field(default_factory=list)

    async def list_tasks(self) -> list[TaskInfo]:
        return self.tasks

    async def signal(self, task_id: int, number: int) -> None:
        self.asked.append(("signal", task_id, number))

    async def release(self, task_id: int) -> None:
        self.asked.append(("release", task_id))


@pytest.mark.parametrize(
    ("facts", "asked"),
    [
        ({}, [("signal", 1, signal.SIGKILL)]),
        ({"attached": True}, []),
        ({"exit_code": 0}, [("release", 1)]),
        ({"detached": True, "attached": True}, []),
    ],
)
def test_who_comes_back_unwatched_ends(
    monkeypatch: pytest.MonkeyPatch, facts: dict[str, Any], asked: list[tuple[Any, ...]]
) -> None:
    monkeypatch.setattr(engine_tasks, "UNATTACHED_TIMEOUT", 0.0)
    guest = PlainGuest([make_task(**facts)])
    box: Any = SimpleNamespace(guest=guest, runtime_id="r", drains={1: None})

    async def adopt() -> None:
        jobs: list[asyncio.Task[Any]] = []
        core: Any = SimpleNamespace(
            boxes={"r": box}, spawn=lambda work, name: jobs.append(asyncio.create_task(work, name=name))
        )
        await Tasks(core, Idle(core)).adopt(box)
        await asyncio.gather(*jobs)

    asyncio.run(adopt())
    assert guest.asked == asked


def test_a_log_goes_on_where_it_was(tmp_path: Path) -> None:
    with TaskLog(tmp_path, 1) as log:
        assert log.position("stdout") is None
        log.write(Output("stdout", 0, b"one "))
        log.write(Output("stderr", 0, b"err "))
        log.write(Output("stdout", 4, b"two "))
    with TaskLog(tmp_path, 1) as log:
        assert (log.position("stdout"), log.position("stderr")) == (8, 4)
        log.write(Output("stdout", 4, b"two three "))
        log.write(Output("stdout", 20, b"five"))
    text = (tmp_path / "task-1.log").read_text()
    assert text == "one err two three \n[runta: 6 bytes of output were dropped before this line]\nfive"


def test_a_log_is_bounded_and_says_what_it_dropped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasklog, "LIMIT", 100)
    with TaskLog(tmp_path, 1) as log:
        for index in range(50):
            log.write(Output("stdout", index * 10, b"0123456789"))
    sizes = [path.stat().st_size for path in tmp_path.glob("task-1.log*")]
    assert sum(sizes) < 400
    assert "bytes of output were dropped" in (tmp_path / "task-1.log").read_text()


def test_a_task_has_the_runtimes_environment_and_its_own() -> None:
    runtime: Any = SimpleNamespace(spec=SimpleNamespace(env={"A": "runtime", "B": "runtime"}))
    env = compose_env(runtime, TaskSpec(argv=("x",), env={"B": "task"}, tty=True))
    assert (env["A"], env["B"], env["TERM"]) == ("runtime", "task", "xterm-256color")
    assert "TERM" not in compose_env(runtime, TaskSpec(argv=("x",)))
