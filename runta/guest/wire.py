"""The frames of the guest init's protocol (rootfs/init/PROTOCOL.md), and what is in them."""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NoReturn

from runta.errors import FailedPrecondition, InternalError, InvalidArgument, NotFound, ServiceError, Unavailable
from runta.models import TaskInfo, TaskSpec

SPOKEN = range(1, 2)
"""The versions of the protocol this client speaks."""
MAGIC = 0x41544E52
HEADER = struct.Struct("<IHH")
FRAME_MAX = 2 << 20
CHUNK = 64 << 10
OLDEST = (1 << 64) - 1
_TASK = struct.Struct("<IIIi8Q2QI")


class Frame(IntEnum):
    HELLO = 1
    START = 2
    ATTACH = 3
    STDIN = 4
    STDIN_EOF = 5
    ACK = 6
    RESIZE = 7
    SIGNAL = 8
    LIST = 9
    RELEASE = 10
    OPEN = 11
    MKDIRS = 12
    STOP = 13
    QUIESCE = 14
    WELCOME = 0x81
    OK = 0x82
    ERROR = 0x83
    TASK = 0x84
    OUTPUT = 0x85
    EXIT = 0x86
    WINDOW = 0x87
    DETACHED = 0x88
    DESCRIPTOR = 0x89


class ErrorKind(IntEnum):
    BAD_FRAME = 1
    NO_SUCH_TASK = 2
    BAD_USER = 3
    TOO_MANY = 4
    SYSTEM = 5
    BAD_OFFSET = 6
    STILL_RUNNING = 7


class StartFlag(IntFlag):
    TTY = 1
    STDIN = 2
    DETACHED = 4


class TaskFlag(IntFlag):
    TTY = 1
    DETACHED = 2
    ATTACHED = 4
    EXITED = 8
    DONE = 16
    STDIN_CLOSED = 32


@dataclass(frozen=True, slots=True)
class Record:
    """A task as a TASK frame tells it."""

    info: TaskInfo
    sent: tuple[int, int]
    """Where the attachment's output begins."""
    stdin_accepted: int
    stdin_limit: int
    stdin_closed: bool


class Refused(Exception):
    """An ERROR frame, before it is known what was asked."""

    def __init__(self, payload: bytes) -> None:
        self.kind, self.errno = struct.unpack_from("<HI", payload)
        self.text = payload[6:-1].decode(errors="replace")
        super().__init__(self.text)

    def translated(self, what: str) -> ServiceError:
        """The error for what was asked for, in words such as "start a task"."""
        message = f"the guest init can't {what}"
        match self.kind:
            case ErrorKind.NO_SUCH_TASK:
                return NotFound(
                    message, cause=self.text, hint="list the runtime's tasks; finished ones are gone once seen"
                )
            case ErrorKind.BAD_USER:
                return InvalidArgument(message, cause=self.text, hint="use a user of the image, or a numeric uid:gid")
            case ErrorKind.BAD_OFFSET:
                return InvalidArgument(message, cause=self.text, hint="list the tasks to see how much there is")
            case ErrorKind.STILL_RUNNING:
                return FailedPrecondition(message, cause=self.text, hint="signal it and wait for its end")
            case ErrorKind.TOO_MANY:
                return Unavailable(message, cause=self.text, hint="end some tasks of this runtime")
            case ErrorKind.SYSTEM:
                return Unavailable(message, cause=self.text, hint="see whether the runtime is at one of its limits")
            case _:
                return InternalError(message, cause=self.text)


def pack_frame(kind: int, tag: int, payload: bytes) -> bytes:
    return HEADER.pack(len(payload), kind, tag) + payload


def pack_string(text: str, what: str) -> bytes:
    data = os.fsencode(text)
    if b"\0" in data:
        raise InvalidArgument(f"a NUL byte in the {what}", hint="leave it out")
    return data + b"\0"


def clamp_u16(value: int) -> int:
    return max(0, min(value, 0xFFFF))


def encode_start(spec: TaskSpec, env: Mapping[str, str]) -> bytes:
    if not spec.argv:
        raise InvalidArgument("there is no command to run")
    flags = StartFlag(0)
    flags |= StartFlag.TTY if spec.tty else flags
    flags |= StartFlag.STDIN if spec.stdin or spec.tty else flags  # a terminal is all three, whoever types or not
    flags |= StartFlag.DETACHED if spec.detached else flags
    request = b"".join(
        (
            struct.pack("<IHH", flags, clamp_u16(spec.rows), clamp_u16(spec.cols)),
            pack_string(spec.user or "", "user"),
            pack_string(spec.cwd or "", "working directory"),
            struct.pack("<I", len(spec.argv)),
            *(pack_string(argument, "command") for argument in spec.argv),
            struct.pack("<I", len(env)),
            *(pack_string(f"{name}={value}", "environment") for name, value in env.items()),
        )
    )
    if len(request) > FRAME_MAX:
        raise InvalidArgument("the command is too long", hint="pass large data through stdin or a file")
    return request


def decode_task(payload: bytes) -> Record:
    task_id, pid, bits, code, *numbers, argc = _TASK.unpack_from(payload)
    out_sent, out_end, out_lost = numbers[1:4]
    err_sent, err_end, err_lost = numbers[5:8]
    flags = TaskFlag(bits)
    argv = payload[_TASK.size :].split(b"\0")[:argc]
    info = TaskInfo(
        id=task_id,
        pid=pid,
        argv=tuple(os.fsdecode(argument) for argument in argv),
        detached=TaskFlag.DETACHED in flags,
        tty=TaskFlag.TTY in flags,
        attached=TaskFlag.ATTACHED in flags,
        exit_code=code if TaskFlag.EXITED in flags else None,
        stdout_offset=out_end,
        stderr_offset=err_end,
        stdout_lost=out_lost,
        stderr_lost=err_lost,
    )
    return Record(info, (out_sent, err_sent), numbers[8], numbers[9], TaskFlag.STDIN_CLOSED in flags)


def agree_on_version(versions: tuple[int, int] | None) -> int:
    """The newest version both sides speak."""
    if versions is None:
        raise gone()
    oldest, newest = versions
    if oldest > SPOKEN[-1] or newest < SPOKEN[0]:
        _disagree(oldest, newest)
    return min(newest, SPOKEN[-1])


def _disagree(oldest: int, newest: int) -> NoReturn:
    raise FailedPrecondition(
        "this version of runta can't talk to the runtime's guest init",
        cause=f"the init speaks protocol {oldest} to {newest}, runta speaks {SPOKEN[0]} to {SPOKEN[-1]}",
        hint="use the version of runta that made this runtime or checkpoint, or a newer one",
    )


def gone(why: Exception | None = None) -> Unavailable:
    reason = "it does not answer" if isinstance(why, TimeoutError) else str(why) if why else "it closed the connection"
    return Unavailable(
        "the runtime's guest init can't be reached",
        cause=reason,
        hint="the runtime may have ended: look at its status",
    )
