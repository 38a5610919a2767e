"""The guest init and its client, together: the real binary, driven through `runta.guest`."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import os
import signal
import socket
import struct
import subprocess
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from runta.errors import FailedPrecondition, InvalidArgument, NotFound, Unavailable
from runta.guest import Guest, GuestStream
from runta.models import Exit, Output, TaskSpec
from tests.unit.guest_init import ENV, binary, collect, run, running_init, short_directory

MIB = 1 << 20


def with_init(test: Callable[[Guest, subprocess.Popen[bytes]], Awaitable[None]]) -> Callable[[], None]:
    """Run a coroutine function as a test, with an init of its own."""

    async def body() -> None:
        async with running_init() as (guest, process):
            await asyncio.wait_for(test(guest, process), 60)

    @functools.wraps(test)
    def wrapper() -> None:
        asyncio.run(body())

    del wrapper.__wrapped__  # type: ignore[attr-defined]  # or pytest looks for fixtures
    return wrapper


async def until(condition: Callable[[], bool], what: str) -> None:
    for _ in range(500):
        if condition():
            return
        await asyncio.sleep(0.01)
    pytest.fail(f"{what}: not within 5 s")


async def read_until(stream: GuestStream, wanted: bytes) -> bytes:
    seen = b""
    async for event in stream:
        assert isinstance(event, Output), f"{event} came before {wanted!r}; seen: {seen!r}"
        seen += event.data
        if wanted in seen:
            return seen
    raise AssertionError(seen)


def alive(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def status(pid: int, field: str) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise AssertionError(field)


def sockets_of(pid: int) -> int:
    links = (os.readlink(entry) for entry in Path(f"/proc/{pid}/fd").iterdir())
    return sum(link.startswith("socket:") for link in links)


# -- what a task is given ---------------------------------------------------------------------------------------------


@with_init
async def test_output_streams_and_exit_code(guest, _process):
    assert await run(guest, "sh", "-c", "echo out; echo err >&2; exit 3") == (3, b"out\n", b"err\n")


@with_init
async def test_killed_by_signal_is_128_plus_number(guest, _process):
    assert (await run(guest, "sh", "-c", "kill -9 $$"))[0] == 137


@with_init
async def test_environment_is_complete_and_defaults_are_added(guest, _process):
    stream = await guest.start(TaskSpec(argv=("/usr/bin/env",)), env={"A": "ä b"})
    _, out, _ = await collect(stream)
    values = dict(line.split("=", 1) for line in out.decode().splitlines())
    assert values.pop("HOME") in {"/root", os.path.expanduser("~")}
    assert values == {"A": "ä b", "PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"}


@with_init
async def test_command_is_searched_in_the_path_of_the_task(guest, _process):
    with short_directory() as directory:
        script = directory / "only-here"
        script.write_text("#!/bin/sh\necho found\n")
        script.chmod(0o755)
        stream = await guest.start(TaskSpec(argv=("only-here",)), env={"PATH": str(directory)})
        assert (await collect(stream))[:2] == (0, b"found\n")


@with_init
async def test_working_directory(guest, _process):
    assert (await run(guest, "pwd", cwd="/usr"))[1] == b"/usr\n"
    for home, directory in (("/usr/bin", b"/usr/bin\n"), ("/no/such", b"/\n")):
        stream = await guest.start(TaskSpec(argv=("pwd",)), env=ENV | {"HOME": home})
        assert (await collect(stream))[1] == directory


@with_init
async def test_missing_working_directory_is_126(guest, _process):
    assert await run(guest, "pwd", cwd="/no/such") == (126, b"", b"runta: cd /no/such: No such file or directory\n")


@with_init
async def test_exec_failures_are_told_as_a_shell_would(guest, _process):
    assert await run(guest, "no-such-command") == (
        127,
        b"",
        b"runta: exec no-such-command: No such file or directory\n",
    )
    assert await run(guest, "/etc/passwd") == (126, b"", b"runta: exec /etc/passwd: Permission denied\n")


@pytest.mark.skipif(os.geteuid() != 0, reason="only root changes users")
@pytest.mark.parametrize(
    ("user", "uid", "gid"),
    [
        ("nobody", 65534, 65534),
        ("65534", 65534, 65534),
        ("12345", 12345, 0),
        ("12345:54321", 12345, 54321),
        ("nobody:daemon", 65534, 1),
    ],
)
def test_user(user: str, uid: int, gid: int) -> None:
    @with_init
    async def test(guest, _process):
        code, out, _ = await run(guest, "sh", "-c", "id -u; id -g", user=user)
        assert (code, out) == (0, f"{uid}\n{gid}\n".encode())

    test()


@pytest.mark.parametrize("user", ["no-such-user", "root:no-such-group", ":", "99999999999", "-1", ""])
def test_unknown_user(user: str) -> None:
    @with_init
    async def test(guest, _process):
        if not user:
            assert (await run(guest, "true", user=None))[0] == 0
            return
        with pytest.raises(InvalidArgument, match="there is no"):
            await run(guest, "true", user=user)

    test()


@with_init
async def test_a_task_starts_with_clean_signals_and_descriptors(guest, _process):
    script = "ls /proc/self/fd; grep -E 'SigBlk|SigIgn' /proc/self/status; ulimit -n; umask"
    _, out, _ = await run(guest, "bash", "-c", script)
    words = out.split()
    assert words[:4] == [b"0", b"1", b"2", b"3"], "3 is the directory that ls reads"
    assert words[4:8] == [b"SigBlk:", b"0" * 16, b"SigIgn:", b"0" * 16]
    assert words[8:] == [subprocess.check_output(["bash", "-c", "ulimit -n"]).strip(), b"0022"]


@with_init
async def test_a_task_leads_its_own_session(guest, _process):
    _, out, _ = await run(guest, "sh", "-c", "cut -d' ' -f1,5,6 /proc/$$/stat")
    pid, group, session = out.split()
    assert pid == group == session


@with_init
async def test_no_stdin_is_dev_null(guest, _process):
    stream = await guest.start(TaskSpec(argv=("readlink", "/proc/self/fd/0"), stdin=False), env=ENV)
    assert (await collect(stream))[1] == b"/dev/null\n"


@pytest.mark.parametrize(
    ("spec", "env"),
    [
        (TaskSpec(argv=()), {}),
        (TaskSpec(argv=("a\0b",)), {}),
        (TaskSpec(argv=("a" * (3 << 20),)), {}),
        (TaskSpec(argv=("a",)), {"A": "\0"}),
    ],
)
def test_commands_that_can_not_be_sent(spec: TaskSpec, env: dict[str, str]) -> None:
    async def body() -> None:
        with pytest.raises(InvalidArgument):
            await Guest(Path("/nonexistent")).start(spec, env=env)

    asyncio.run(body())


# -- input and output -------------------------------------------------------------------------------------------------


@with_init
async def test_five_megabytes_through_cat(guest, _process):
    data = os.urandom(5 * MIB)
    code, out, err = await run(guest, "cat", stdin=data)
    assert (code, out == data, err) == (0, True, b"")


@with_init
async def test_twenty_megabytes_of_output_are_intact(guest, _process):
    with short_directory() as directory:
        source = directory / "data"
        source.write_bytes(os.urandom(20 * MIB))
        _, out, _ = await run(guest, "cat", str(source))
        assert hashlib.sha256(out).digest() == hashlib.sha256(source.read_bytes()).digest()


@with_init
async def test_input_nobody_reads_is_dropped(guest, _process):
    assert (await run(guest, "true", stdin=bytes(5 * MIB)))[0] == 0
    assert (await run(guest, "sh", "-c", "exec <&-; sleep 0.2", stdin=bytes(5 * MIB)))[0] == 0


@with_init
async def test_output_nobody_takes_blocks_the_writer_and_is_not_lost(guest, process):
    total = 8 * MIB
    stream = await guest.start(TaskSpec(argv=("head", "-c", str(total), "/dev/zero")), env=ENV)
    await asyncio.sleep(0.5)
    (task,) = await guest.list_tasks()
    assert task.exit_code is None
    assert task.stdout_offset == MIB
    assert status(process.pid, "VmRSS") < 2048
    code, out, _ = await collect(stream)
    assert (code, len(out)) == (0, total)


@with_init
async def test_a_detached_task_loses_its_oldest_output_and_counts_it(guest, _process):
    script = "i=0; while [ $i -lt 300000 ]; do echo $i; i=$((i+1)); done"
    stream = await guest.start(TaskSpec(argv=("sh", "-c", script), detached=True), env=ENV)
    await stream.aclose()

    deadline = time.monotonic() + 30
    while (task := (await guest.list_tasks())[0]).exit_code is None:
        assert time.monotonic() < deadline, "it blocks"
        await asyncio.sleep(0.05)
    expected = b"".join(b"%d\n" % i for i in range(300000))
    assert task.stdout_offset == len(expected)
    assert task.stdout_lost == len(expected) - MIB
    code, out, _ = await collect(await guest.attach(task.id))
    assert (code, out) == (0, expected[-MIB:])
    await guest.release(task.id)
    assert await guest.list_tasks() == []


@with_init
async def test_many_small_writes_keep_their_order(guest, _process):
    code, out, _ = await run(guest, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done")
    assert (code, out) == (0, b"".join(b"%d\n" % i for i in range(20000)))


# -- ends -------------------------------------------------------------------------------------------------------------


@with_init
async def test_the_group_dies_with_its_leader_and_other_sessions_live_on(guest, _process):
    script = "sleep 300 & echo $!; setsid sleep 300 & echo $!; sleep 0.2"
    started = time.monotonic()
    code, out, _ = await run(guest, "sh", "-c", script)
    assert code == 0
    assert time.monotonic() - started < 5, "the exit waits for nobody who holds the pipe"
    child, daemon = map(int, out.split())
    try:
        await until(lambda: not alive(child), "the background child ends")
        assert alive(daemon)
    finally:
        os.kill(daemon, signal.SIGKILL)
    await until(lambda: not Path(f"/proc/{daemon}").exists(), "the orphan is reaped")


@with_init
async def test_a_daemon_that_keeps_its_stdout_is_neither_blocked_nor_killed(guest, _process):
    with short_directory() as directory:
        script = f"setsid sh -c 'sleep 0.3; head -c 1000000 /dev/zero; echo \"$?\" > {directory}/result' & sleep 0.1"
        assert (await run(guest, "sh", "-c", script))[0] == 0
        result = directory / "result"
        await until(lambda: result.exists() and result.read_text() == "0\n", "the daemon writes on")


@with_init
async def test_children_of_a_detached_task_are_left_alone_and_read_until_their_end(guest, _process):
    stream = await guest.start(
        TaskSpec(argv=("sh", "-c", "(sleep 0.5; echo late) & echo soon; exit 7"), detached=True), env=ENV
    )
    await read_until(stream, b"soon\n")
    await asyncio.sleep(0.1)
    (task,) = await guest.list_tasks()
    assert task.exit_code == 7, "the code is known before the output's end"
    assert await collect(stream) == (7, b"late\n", b"")
    assert len(await guest.list_tasks()) == 1, "a detached task is listed until it is released"


@with_init
async def test_orphans_are_reaped(guest, process):
    await run(guest, "sh", "-c", "for i in 1 2 3 4 5; do setsid sleep 0.2 & done; sleep 0.1")
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    await until(lambda: children.read_text() == "", "every orphan is reaped")


@with_init
async def test_a_finished_task_is_released_after_its_exit(guest, _process):
    await run(guest, "true")
    assert await guest.list_tasks() == []


@with_init
async def test_a_task_without_a_client_goes_on_and_keeps_its_output(guest, _process):
    stream = await guest.start(TaskSpec(argv=("sh", "-c", "sleep 0.2; echo kept; exit 5")), env=ENV)
    await stream.aclose()
    await asyncio.sleep(0.5)
    (task,) = await guest.list_tasks()
    assert (task.exit_code, task.attached, task.argv[0]) == (5, False, "sh")
    assert await collect(await guest.attach(task.id)) == (5, b"kept\n", b"")


@with_init
async def test_finished_tasks_nobody_releases_are_bounded(guest, _process):
    for _ in range(300):
        stream = await guest.start(TaskSpec(argv=("true",), detached=True, stdin=False), env=ENV)
        await collect(stream)
    assert 250 <= len(await guest.list_tasks()) <= 260


@with_init
async def test_timeout(guest, _process):
    started = time.monotonic()
    assert (await run(guest, "sleep", "30", timeout=0.2))[0] == 124
    assert time.monotonic() - started < 3
    assert (await run(guest, "true", timeout=30))[0] == 0


def test_timeout_kills_what_ignores_term(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runta.guest.stream._KILL_AFTER", 0.2)

    @with_init
    async def test(guest, _process):
        assert (await run(guest, "sh", "-c", "trap '' TERM; while :; do sleep 1; done", timeout=0.2))[0] == 124

    test()


@with_init
async def test_stop_ends_tasks_and_the_init(guest, process):
    stream = await guest.start(TaskSpec(argv=("sleep", "300")), env=ENV)
    await guest.stop(5)
    assert await asyncio.to_thread(process.wait, 3) == 0
    assert (await collect(stream))[0] == 143, "its end is told before the init's"
    with pytest.raises(Unavailable):
        await guest.list_tasks()


@with_init
async def test_stop_kills_after_the_grace(guest, process):
    stream = await guest.start(
        TaskSpec(argv=("sh", "-c", "trap '' TERM; echo set; while :; do sleep 1; done")), env=ENV
    )
    await read_until(stream, b"set\n")
    pid = stream.task.pid
    await guest.stop(0.2)
    assert await asyncio.to_thread(process.wait, 3) == 0
    await until(lambda: not alive(pid), "the task is killed")


@with_init
async def test_an_init_that_dies_makes_streams_unavailable(guest, process):
    stream = await guest.start(TaskSpec(argv=("cat",)), env=ENV)
    process.kill()
    with pytest.raises(Unavailable, match="guest init can't be reached"):
        await collect(stream)
    with pytest.raises(Unavailable):
        await guest.list_tasks()


# -- signals and terminals --------------------------------------------------------------------------------------------


@with_init
async def test_signals_reach_the_group(guest, _process):
    stream = await guest.start(
        TaskSpec(argv=("sh", "-c", "trap 'echo usr1; exit 4' USR1; echo set; while :; do sleep 0.05; done")), env=ENV
    )
    await read_until(stream, b"set\n")
    await stream.signal(signal.SIGUSR1)
    assert (await collect(stream))[:2] == (4, b"usr1\n")
    with pytest.raises(NotFound):
        await guest.signal(stream.task.id, signal.SIGTERM)
    with pytest.raises(InvalidArgument):
        await guest.signal(stream.task.id, 99)


@with_init
async def test_a_signal_right_after_the_start_is_not_lost(guest, _process):
    for _ in range(50):
        stream = await guest.start(TaskSpec(argv=("sleep", "300")), env=ENV)
        await stream.signal(signal.SIGTERM)
        assert (await collect(stream))[0] == 143


@with_init
async def test_terminal(guest, _process):
    stream = await guest.start(
        TaskSpec(argv=("sh", "-c", "tty; stty size; read x; stty size"), tty=True, rows=33, cols=77), env=ENV
    )
    seen = await read_until(stream, b"33 77")
    assert seen.startswith(b"/dev/pts/")
    await stream.resize(50, 120)
    await stream.write_stdin(b"x\n")
    code, out, err = await collect(stream)
    assert (code, err) == (0, b"")
    assert b"50 120" in out


@with_init
async def test_control_c_interrupts_the_foreground(guest, _process):
    stream = await guest.start(
        TaskSpec(argv=("sh", "-c", "trap 'echo caught; exit 9' INT; echo set; while :; do sleep 0.05; done"), tty=True),
        env=ENV,
    )
    await read_until(stream, b"set")
    await stream.write_stdin(b"\x03")
    code, out, _ = await collect(stream)
    assert code == 9
    assert b"caught" in out


@pytest.mark.parametrize("typed", [b"", b"line\n", b"no newline"])
def test_end_of_input_on_a_terminal(typed: bytes) -> None:
    @with_init
    async def test(guest, _process):
        for _ in range(10):
            code, out, _ = await run(guest, "cat", stdin=typed, tty=True)
            assert code == 0
            assert out.count(typed.strip()) >= 2 or not typed

    test()


@with_init
async def test_terminal_output_is_complete_at_the_exit(guest, _process):
    for _ in range(5):
        code, out, _ = await run(
            guest, "sh", "-c", "i=0; while [ $i -lt 20000 ]; do echo $i; i=$((i+1)); done; exit 6", tty=True
        )
        assert (code, out) == (6, b"".join(b"%d\r\n" % i for i in range(20000)))


@with_init
async def test_an_exit_is_told_though_something_keeps_the_terminal_open(guest, _process):
    code, out, _ = await run(guest, "sh", "-c", "trap '' HUP; setsid sleep 300 & echo $!; sleep 0.1; exit 2", tty=True)
    try:
        assert code == 2
    finally:
        os.kill(int(out), signal.SIGKILL)


@with_init
async def test_the_master_is_held_by_a_process_after_the_shell(guest, process):
    """CRIU refuses a terminal whose master comes first in the tree (lab notes)."""
    stream = await guest.start(TaskSpec(argv=("cat",), tty=True), env=ENV)
    await stream.write_stdin(b"x\n")
    await read_until(stream, b"x\r\nx\r\n")  # the terminal's echo, then cat
    children = [int(pid) for pid in Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()]
    assert [Path(f"/proc/{pid}/comm").read_text() for pid in children] == ["cat\n", "runta-pty\n"]
    assert not any("ptmx" in os.readlink(entry) for entry in Path(f"/proc/{process.pid}/fd").iterdir())
    await stream.close_stdin()
    assert (await collect(stream))[0] == 0
    await until(lambda: not alive(children[1]), "the holder ends with its terminal")


# -- attaching, quiescing ---------------------------------------------------------------------------------------------


@with_init
async def test_attach_from_an_offset(guest, _process):
    stream = await guest.start(TaskSpec(argv=("sh", "-c", "printf abcdef >&2; printf 0123456789; read x")), env=ENV)
    await read_until(stream, b"9")
    await stream.aclose()
    again = await guest.attach(stream.task.id, stdout_offset=4, stderr_offset=6)
    event = await anext(aiter(again))
    assert event == Output("stdout", 4, b"456789")
    with pytest.raises(InvalidArgument):
        await guest.attach(stream.task.id, stdout_offset=11)
    with pytest.raises(NotFound):
        await guest.attach(4711)
    await again.close_stdin()
    assert (await collect(again))[1:] == (b"", b"")


@with_init
async def test_a_new_attachment_takes_over(guest, _process):
    first = await guest.start(TaskSpec(argv=("cat",)), env=ENV)
    await first.write_stdin(b"one\n")
    await read_until(first, b"one\n")
    second = await guest.attach(first.task.id, stdout_offset=4)
    with pytest.raises(FailedPrecondition, match="another client"):
        await collect(first)
    await second.write_stdin(b"two\n")
    await second.close_stdin()
    assert await collect(second) == (0, b"two\n", b"")


async def _quiesce_often(guest: Guest, process: subprocess.Popen[bytes], times: int) -> None:
    for _ in range(times):
        await asyncio.sleep(0.01)
        await guest.quiesce()
        assert sockets_of(process.pid) == 1, "only the listening socket is left"
        await guest.quiesce()
        guest.open_gate()


@with_init
async def test_quiescing_in_the_middle_of_output_loses_nothing(guest, process):
    script = "i=0; while [ $i -lt 100000 ]; do echo $i; i=$((i+1)); done"
    stream = await guest.start(TaskSpec(argv=("sh", "-c", script)), env=ENV)
    (code, out, _), _ = await asyncio.gather(collect(stream), _quiesce_often(guest, process, 15))
    assert (code, out) == (0, b"".join(b"%d\n" % i for i in range(100000)))


@with_init
async def test_quiescing_in_the_middle_of_input_loses_nothing(guest, process):
    data = os.urandom(20 * MIB)
    (code, out, _), _ = await asyncio.gather(run(guest, "cat", stdin=data), _quiesce_often(guest, process, 15))
    assert (code, out == data) == (0, True)


@with_init
async def test_requests_wait_for_the_gate(guest, _process):
    stream = await guest.start(TaskSpec(argv=("cat",)), env=ENV)
    await guest.quiesce()
    waiting = [
        asyncio.create_task(guest.list_tasks()),
        asyncio.create_task(guest.start(TaskSpec(argv=("true",)), env=ENV)),
        asyncio.create_task(stream.write_stdin(b"late\n")),
    ]
    await asyncio.sleep(0.1)
    assert not any(task.done() for task in waiting)
    guest.open_gate()
    await asyncio.gather(*waiting)
    await read_until(stream, b"late\n")


@with_init
async def test_an_exit_during_the_quiet_time_is_told_afterwards(guest, _process):
    stream = await guest.start(TaskSpec(argv=("sh", "-c", "sleep 0.1; echo bye; exit 8")), env=ENV)
    await guest.quiesce()
    await asyncio.sleep(0.3)
    guest.open_gate()
    assert await collect(stream) == (8, b"bye\n", b"")


@with_init
async def test_a_stream_closed_during_the_quiet_time_stays_closed(guest, _process):
    stream = await guest.start(TaskSpec(argv=("cat",)), env=ENV)
    await guest.quiesce()
    await stream.aclose()
    guest.open_gate()
    await asyncio.sleep(0.05)
    assert [task.attached for task in await guest.list_tasks()] == [False]


@with_init
async def test_fifty_streams_at_once(guest, _process):
    async def one(number: int) -> None:
        data = b"%d\n" % number * 20000
        assert await run(guest, "cat", stdin=data) == (0, data, b"")

    await asyncio.gather(*(one(number) for number in range(50)))


# -- files ------------------------------------------------------------------------------------------------------------


@with_init
async def test_open_passes_a_descriptor(guest, _process):
    with short_directory() as directory:
        path = directory / "file"
        with os.fdopen(await guest.open(str(path), os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666), "wb") as file:
            file.write(b"content")
        assert path.read_bytes() == b"content"
        assert path.stat().st_mode & 0o777 == 0o666, "the mode is exact, whatever the umask"
        fd = await guest.open(str(path), os.O_RDONLY)
        assert os.read(fd, 99) == b"content"
        assert not os.get_inheritable(fd)
        os.close(fd)
        os.close(await guest.open(str(directory), os.O_PATH | os.O_DIRECTORY))


@with_init
async def test_open_errors_are_os_errors(guest, _process):
    with pytest.raises(FileNotFoundError) as caught:
        await guest.open("/no/such/file", os.O_RDONLY)
    assert caught.value.filename == "/no/such/file"
    with pytest.raises(IsADirectoryError):
        await guest.open("/usr", os.O_WRONLY)
    with pytest.raises(NotADirectoryError):
        await guest.open("/etc/passwd", os.O_RDONLY | os.O_DIRECTORY)


@with_init
async def test_a_fifo_does_not_hold_the_init_up(guest, _process):
    with short_directory() as directory:
        os.mkfifo(directory / "fifo")
        os.close(await asyncio.wait_for(guest.open(str(directory / "fifo"), os.O_RDONLY), 1))
        with pytest.raises(OSError, match="No such device"):
            await guest.open(str(directory / "fifo"), os.O_WRONLY)


@with_init
async def test_descriptors_do_not_get_mixed_up(guest, _process):
    with short_directory() as directory:
        for number in range(20):
            (directory / str(number)).write_text(str(number))
        opened = await asyncio.gather(*(guest.open(str(directory / str(n)), os.O_RDONLY) for n in range(20)))
        contents = [os.read(fd, 9) for fd in opened]
        for fd in opened:
            os.close(fd)
        assert contents == [str(number).encode() for number in range(20)]


@with_init
async def test_make_dirs(guest, _process):
    with short_directory() as directory:
        await guest.make_dirs(f"{directory}/a/b//c/")
        await guest.make_dirs(f"{directory}/a/b/c")
        assert (directory / "a/b/c").is_dir()
        (directory / "file").touch()
        with pytest.raises(NotADirectoryError):
            await guest.make_dirs(f"{directory}/file")
        with pytest.raises(NotADirectoryError):
            await guest.make_dirs(f"{directory}/file/below")


# -- who may talk, and how --------------------------------------------------------------------------------------------


def hello(path: Path, version: int) -> bytes:
    with socket.socket(socket.AF_UNIX) as sock:
        sock.settimeout(5)
        sock.connect(str(path))
        sock.sendall(struct.pack("<IHHIH", 6, 1, 7, 0x41544E52, version))
        received = sock.recv(99)
        if version != 1:
            assert sock.recv(99) == b"", "a version it does not speak ends the connection"
        return received


@with_init
async def test_greeting(guest, _process):
    welcome = struct.pack("<IHHIHH", 8, 0x81, 7, 0x41544E52, 1, 1)
    assert await asyncio.to_thread(hello, guest._socket, 1) == welcome
    assert await asyncio.to_thread(hello, guest._socket, 99) == welcome


def test_an_init_of_an_unknown_version_is_refused() -> None:
    async def answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readexactly(14)
        writer.write(struct.pack("<IHHIHH", 8, 0x81, 0, 0x41544E52, 9, 10))
        writer.close()
        await writer.wait_closed()

    async def body() -> None:
        with short_directory() as directory:
            async with await asyncio.start_unix_server(answer, directory / "s"):
                guest = Guest(directory / "s")
                with pytest.raises(FailedPrecondition, match="protocol 9 to 10"):
                    await guest.wait_ready()
                await guest.aclose()

    asyncio.run(body())


def test_a_missing_init_is_unavailable_in_time() -> None:
    async def body() -> None:
        guest = Guest(Path("/nonexistent/s"), connect_timeout=0.1)
        started = time.monotonic()
        with pytest.raises(Unavailable):
            await guest.wait_ready()
        assert time.monotonic() - started < 1

    asyncio.run(body())


def test_a_long_socket_path_works() -> None:
    async def body() -> None:
        with short_directory() as directory:
            deep = directory / ("d" * 120)
            process = subprocess.Popen([binary("runta-init"), "--socket", directory / "s", "--any-peer"])
            try:
                await Guest(directory / "s").wait_ready()
                deep.mkdir()
                (directory / "s").rename(deep / "s")
                guest = Guest(deep / "s")
                await guest.wait_ready()
                await guest.aclose()
            finally:
                process.kill()
                process.wait()

    asyncio.run(body())


def test_peers_inside_its_pid_namespace_are_refused() -> None:
    """As pid 1 of a pid namespace: we outside are served, a task inside is not."""
    inside = "import socket,sys; s=socket.socket(socket.AF_UNIX); s.connect(sys.argv[1]); print(s.recv(9))"

    async def body() -> None:
        with short_directory() as directory:
            command = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child", binary("runta-init")]
            process = subprocess.Popen([*command, "--socket", directory / "s"])
            guest = Guest(directory / "s")
            try:
                await guest.wait_ready()
                code, out, err = await run(guest, "/usr/bin/python3", "-c", inside, str(directory / "s"))
                assert (code, out, err) == (0, b"b''\n", b"")
                await guest.stop(0)
                assert await asyncio.to_thread(process.wait, 5) == 0
            finally:
                await guest.aclose()
                process.kill()
                process.wait()

    asyncio.run(body())


def test_an_ordinary_process_refuses_its_neighbours_unless_told() -> None:
    with short_directory() as directory:
        process = subprocess.Popen([binary("runta-init"), "--socket", directory / "s"])
        try:
            for _ in range(100):
                if (directory / "s").exists():
                    break
                time.sleep(0.01)
            time.sleep(0.05)
            with socket.socket(socket.AF_UNIX) as sock:
                sock.connect(str(directory / "s"))
                sock.settimeout(5)
                assert sock.recv(1) == b""
            assert (directory / "s").stat().st_mode & 0o777 == 0o600
        finally:
            process.kill()
            process.wait()


# -- size -------------------------------------------------------------------------------------------------------------


def test_the_binary_is_small_and_static() -> None:
    path = binary("runta-init")
    assert path.stat().st_size < MIB
    headers = subprocess.run(["readelf", "-l", path], capture_output=True, text=True, check=True).stdout
    assert "INTERP" not in headers


@with_init
async def test_idle_it_is_small_and_sleeps(guest, process):
    await run(guest, "true")
    assert status(process.pid, "VmRSS") < 1024
    await asyncio.sleep(0.5)  # the end of that task's connection
    before = status(process.pid, "voluntary_ctxt_switches")
    await asyncio.sleep(1)
    assert status(process.pid, "voluntary_ctxt_switches") == before


@with_init
async def test_exits_are_plain(guest, _process):
    stream = await guest.start(TaskSpec(argv=("true",)), env=ENV)
    events = [event async for event in stream]
    assert events == [Exit(0)]
    assert stream.task.exit_code == 0
    await stream.aclose()
