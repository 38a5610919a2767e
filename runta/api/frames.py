"""The words of the exec WebSocket: what clients may say, and what is said to them (API reference, section 5)."""

from __future__ import annotations

import base64
import binascii
import json
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from runta.errors import InvalidArgument, ServiceError
from runta.models import Exit, Output, TaskInfo, TaskSpec

CHUNK = 65536
"""The most bytes of output in one frame, before base64."""

ROWS, COLS = 24, 80
"""A terminal whose client does not say its size."""

HEARTBEAT = '{"type":"heartbeat"}'

SIGNALS: Mapping[str, int] = {
    "INT": signal.SIGINT,
    "TERM": signal.SIGTERM,
    "HUP": signal.SIGHUP,
    "QUIT": signal.SIGQUIT,
    "KILL": signal.SIGKILL,
    "USR1": signal.SIGUSR1,
    "USR2": signal.SIGUSR2,
}
"""The first two are the public API's; the others are ours."""


class Start(BaseModel):
    """The first frame. From `cwd` on the fields are ours, optional; unknown ones are ignored (section 5.1)."""

    model_config = ConfigDict(extra="ignore", frozen=True, strict=True)

    command: str = ""
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] = Field(default_factory=dict)
    tty: bool = False
    rows: int | None = Field(default=None, ge=1, le=65535)
    cols: int | None = Field(default=None, ge=1, le=65535)
    cwd: str | None = None
    user: str | None = None
    timeout: float | None = Field(default=None, gt=0)
    """Seconds; the exit code is then 124."""
    detached: bool = False
    """Answer with one `started` frame, close, and let the task go on."""
    stdin: bool | None = None
    """Whether the task has an input; None: unless it is detached."""
    announce: bool = False
    """Send a `started` frame, and offsets with the output."""

    def to_spec(self) -> TaskSpec:
        """Raise InvalidArgument where no process could be started from it."""
        if not self.command:
            raise InvalidArgument("command is required")
        argv = (self.command, *self.args)
        if any("\0" in text for text in (*argv, *self.env, *self.env.values(), self.cwd or "")):
            raise InvalidArgument("a command, its arguments and its environment hold no NUL bytes")
        if wrong := next((name for name in self.env if not name or "=" in name), None):
            raise InvalidArgument(f"{wrong!r} is not an environment variable's name")
        return TaskSpec(
            argv=argv,
            env=self.env,
            cwd=self.cwd,
            user=self.user,
            tty=self.tty,
            rows=self.rows or ROWS,
            cols=self.cols or COLS,
            stdin=not self.detached if self.stdin is None else self.stdin,
            detached=self.detached,
            timeout=self.timeout,
        )


@dataclass(frozen=True, slots=True)
class Stdin:
    data: bytes


@dataclass(frozen=True, slots=True)
class CloseStdin:
    pass


@dataclass(frozen=True, slots=True)
class Signal:
    number: int


@dataclass(frozen=True, slots=True)
class Resize:
    rows: int
    cols: int


@dataclass(frozen=True, slots=True)
class Heartbeat:
    pass


Frame = Stdin | CloseStdin | Signal | Resize | Heartbeat


def parse_start(message: Mapping[str, Any]) -> Start:
    """The first message; raise InvalidArgument unless it is a `start` frame."""
    fields = _parse_object(message)
    if fields.get("type") != "start":
        raise InvalidArgument("first websocket frame must be start")
    try:
        return Start.model_validate(fields)
    except ValidationError as err:
        first = err.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidArgument(f"start frame, {where}: {first['msg']}") from None


def parse_frame(message: Mapping[str, Any]) -> Frame:
    """A later message; raise InvalidArgument where it is none of the known ones."""
    fields = _parse_object(message)
    match fields.get("type"):
        case "stdin":
            return Stdin(_parse_data(fields))
        case "close_stdin":
            return CloseStdin()
        case "signal":
            return Signal(parse_signal(fields.get("signal")))
        case "resize":
            return Resize(_parse_size(fields, "rows"), _parse_size(fields, "cols"))
        case "heartbeat":
            return Heartbeat()
        case "start":
            raise InvalidArgument("start comes once, as the first frame")
        case other:
            raise InvalidArgument(f"unknown frame type {other!r}")


def parse_signal(name: object) -> int:
    """`TERM`, `SIGTERM`, in any case."""
    number = SIGNALS.get(name.upper().removeprefix("SIG")) if isinstance(name, str) else None
    if number is None:
        raise InvalidArgument(f"unsupported signal '{name}'", hint=f"use {', '.join(SIGNALS)}")
    return number


def render_outputs(output: Output, *, offsets: bool) -> Iterator[str]:
    """One frame for each 64 KiB of output."""
    for start in range(0, len(output.data), CHUNK):
        encoded = base64.b64encode(output.data[start : start + CHUNK]).decode()
        place = f',"offset":{output.offset + start}' if offsets else ""
        yield f'{{"type":"{output.stream}","data_base64":"{encoded}"{place}}}'


def render_exit(event: Exit) -> str:
    return f'{{"type":"exit","code":{event.code}}}'


def render_started(task: TaskInfo) -> str:
    """Ours; sent only to clients that asked for it."""
    return f'{{"type":"started","task_id":{task.id},"pid":{task.pid}}}'


def render_error(error: ServiceError) -> str:
    """The last frame of a stream that has no exit code to tell; `code` is ours."""
    return json.dumps({"type": "error", "message": str(error), "code": error.code})


def _parse_object(message: Mapping[str, Any]) -> Mapping[str, Any]:
    try:
        fields = json.loads(message.get("text") or "")
    except ValueError:
        fields = None
    if not isinstance(fields, dict):
        raise InvalidArgument("a websocket frame must be one JSON object in a text message")
    return fields


def _parse_data(fields: Mapping[str, Any]) -> bytes:
    try:
        return base64.b64decode(fields["data_base64"], validate=True)
    except (KeyError, TypeError, binascii.Error, ValueError):
        raise InvalidArgument("stdin frame: data_base64 must be standard base64") from None


def _parse_size(fields: Mapping[str, Any], name: str) -> int:
    value = fields.get(name)
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 65536:
        raise InvalidArgument(f"resize frame: {name} must be a number from 1 to 65535")
    return value
