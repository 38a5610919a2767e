"""Commands on commands: exec, attach, tasks."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING, Annotated, Any

import typer

from runta.cli import terminal
from runta.cli.complaints import PIPE_CLOSED
from runta.cli.door import Door, Json, door_of, usage_error
from runta.cli.runtimes import Name, parse_env
from runta.cli.tables import format_table
from runta.settings import terminal_type

if TYPE_CHECKING:
    from runta.cli.pump import Pump
    from runta.client.sync import Runta

_DESCRIPTORS = {"stdout": terminal.STDOUT, "stderr": terminal.STDERR}


def execute(
    ctx: typer.Context,
    name: Name,
    command: Annotated[list[str], typer.Argument(metavar="[--] COMMAND...", help="The command and its arguments.")],
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Forward standard input.")] = False,
    tty: Annotated[bool, typer.Option("-t", "--tty", help="Give it a terminal.")] = False,
    detach: Annotated[bool, typer.Option("-d", "--detach", help="Don't wait; print the task's number.")] = False,
    env: Annotated[list[str] | None, typer.Option("--env", "-e", metavar="K=V", help="A variable.")] = None,
    cwd: Annotated[str | None, typer.Option("--cwd", "-w", metavar="DIR", help="Where it begins.")] = None,
    user: Annotated[str | None, typer.Option("--user", "-u", metavar="USER[:GROUP]", help="Who runs it.")] = None,
    timeout: Annotated[
        float | None, typer.Option("--timeout", metavar="SECONDS", help="End it then; the exit code is 124.")
    ] = None,
    as_json: Json = False,
) -> int:
    """Run a command in a runtime. The exit code is the command's."""
    from runta.client.execution import start_frame
    from runta.client.runtimes import runtime_path

    argv = command[1:] if command[:1] == ["--"] else command
    if not argv:
        raise usage_error("the command is missing")
    if detach and interactive:
        raise usage_error("-d and -i exclude each other: a detached command has no input")
    variables = parse_env(env)
    if tty and (kind := terminal_type()):
        variables.setdefault("TERM", kind)
    first = start_frame(
        argv,
        env=variables,
        cwd=cwd,
        user=user,
        timeout=timeout,
        tty=tty,
        stdin=interactive,
        size=terminal.terminal_size() if tty else None,
        detached=detach,
        announce=True,
    )
    door = door_of(ctx)
    with door.client() as client:
        path = runtime_path(name, "exec", "stream")
        if detach:
            return _start_detached(door, client, path, name, first)
        return _run(door, client, name, path, first=first, stdin=interactive, tty=tty, told={"command": argv})


def attach(
    ctx: typer.Context,
    name: Name,
    task: Annotated[int | None, typer.Argument(metavar="[TASK]", help="Its number; optional where one runs.")] = None,
    interactive: Annotated[bool, typer.Option("-i", "--interactive", help="Forward standard input.")] = False,
    as_json: Json = False,
) -> int:
    """Follow a task, from the oldest output that is kept. Ctrl-] leaves a terminal; the task goes on."""
    from runta.client.local import attach_path, list_tasks

    door = door_of(ctx)
    with door.client() as client:
        chosen = _choose(name, client.perform(list_tasks(name)), task)
        tty, number = bool(chosen["tty"]), int(chosen["id"])
        stdin = interactive or (tty and terminal.is_a_terminal(terminal.STDIN))
        return _run(
            door, client, name, attach_path(name, number), task=number, stdin=stdin, tty=tty, told={"task_id": number}
        )


def tasks(ctx: typer.Context, name: Name, as_json: Json = False) -> None:
    """List a runtime's tasks."""
    from runta.client.local import list_tasks

    door = door_of(ctx)
    with door.client() as client:
        found = client.perform(list_tasks(name))
    rows = [(task["id"], task["pid"], _state(task), shlex.join(task["argv"])) for task in found]
    door.show({"tasks": found}, format_table(["ID", "PID", "STATE", "COMMAND"], rows))


def _run(
    door: Door,
    client: Runta,
    name: str,
    path: str,
    *,
    stdin: bool,
    tty: bool,
    told: dict[str, Any],
    first: dict[str, Any] | None = None,
    task: int | None = None,
) -> int:
    """Follow a stream to its end; with --json its output is told as one object then."""
    from runta.cli.pump import Left, Pump

    kept = {"stdout": bytearray(), "stderr": bytearray()}

    def pass_on(stream: str, data: bytes) -> None:
        if door.json:
            kept[stream].extend(data)
        else:
            try:
                terminal.write_output(_DESCRIPTORS[stream], data)
            except BrokenPipeError:
                raise Left(PIPE_CLOSED) from None

    pump = Pump(
        driver=client.driver,
        runtime=name,
        path=path,
        first=first,
        sink=pass_on,
        stdin=stdin,
        window=tty,
        detach_key=first is None and tty,
        task=task,
    )
    try:
        with terminal.caught_signals(pump.signals) as signals, _keys_to(pump):
            code = pump.run(signals)
    except Left as leaving:
        return leaving.code
    if door.json:
        output = {stream: bytes(data).decode(errors="replace") for stream, data in kept.items()}
        door.show({"action": "exec" if first else "attach", **told, "exit_code": code, **output})
    return code


@contextmanager
def _keys_to(pump: Pump) -> Iterator[None]:
    """Keys go to the task as they are, where it has a terminal and so have we."""
    with ExitStack() as stack:
        if pump.window and pump.stdin and terminal.is_a_terminal(terminal.STDIN):
            stack.enter_context(terminal.raw_terminal(terminal.STDIN))
        yield


def _start_detached(door: Door, client: Runta, path: str, name: str, first: dict[str, Any]) -> int:
    """Until the service has told the task's number."""
    from runta.errors import ExecutionError

    with client.driver.open_channel(path) as channel:
        channel.send(first)
        while not channel.ended and channel.wait(client.driver.timeout):
            for frame in channel.receive():
                if frame.get("type") == "started":
                    number, pid = int(frame["task_id"]), int(frame["pid"])
                    words = f"task {number} runs in {name} (pid {pid})"
                    door.show({"action": "exec", "task_id": number, "pid": pid}, words, bare=str(number))
                    return 0
                if frame.get("type") == "error":
                    raise ExecutionError(str(frame.get("message")))
                if frame.get("type") == "stderr":
                    _pass_error(frame)
                if frame.get("type") == "exit":
                    return int(frame["code"])
    raise ExecutionError(
        f"the service did not tell the task's number\nwhy: {channel.end_reason}\n"
        f"what to do: the command may run; see `runta tasks {name}`"
    )


def _pass_error(frame: dict[str, Any]) -> None:
    from runta.client.wire import output_of

    terminal.write_output(terminal.STDERR, output_of(frame))


def _choose(name: str, found: Sequence[Any], number: int | None) -> Any:
    """The task of this number, or the one that runs."""
    if number is not None:
        chosen = [task for task in found if task["id"] == number]
    else:
        chosen = [task for task in found if task["exit_code"] is None]
    if len(chosen) == 1:
        return chosen[0]
    there = ", ".join(f"{task['id']} ({shlex.join(task['argv'])[:40]})" for task in found) or "none"
    what = f"{name} has no task {number}" if number is not None else f"{len(chosen)} tasks run in {name}"
    raise usage_error(f"{what}; its tasks: {there}")


def _state(task: Any) -> str:
    if task["exit_code"] is not None:
        return f"exited {task['exit_code']}"
    return "detached" if task["detached"] else "attached" if task["attached"] else "waiting"
