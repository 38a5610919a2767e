"""Errors for people and programs: what, why and what to do, and the exit code."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass
from typing import Any

import typer

from runta.errors import ApiError, CommandError, ConfigError, ExecutionError, RuntaError, ServiceError

ERROR = 1
USAGE = 2
INTERRUPTED = 130
PIPE_CLOSED = 141
_WHY = "\nwhy: "
_TO_DO = "\nwhat to do: "
_UsageError: Any = typer.BadParameter.__mro__[1]
"""Its name is click's, which typer brings in different ways."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Complaint:
    """An error as it is told."""

    code: str
    what: str
    why: str | None = None
    to_do: str | None = None
    status_code: int | None = None
    exit_code: int = ERROR


def explain(error: Exception) -> Complaint | None:
    """What to tell about an error; None for one nobody foresaw, whose traceback is wanted."""
    if isinstance(error, _UsageError):
        return _explain_usage(error)
    if isinstance(error, typer.Abort):
        return Complaint(code="interrupted", what="interrupted", exit_code=INTERRUPTED)
    if isinstance(error, ApiError):
        code = error.code or ("unavailable" if error.status_code is None else "internal")
        if isinstance(error, ExecutionError) and error.status_code is None:
            code = "exec_incomplete"
        return _split(error.message, code, status_code=error.status_code)
    if isinstance(error, ServiceError):
        return _split(str(error), error.code)
    if isinstance(error, RuntaError):
        return _split(str(error), {ConfigError: "config", CommandError: "command_failed"}.get(type(error), "internal"))
    if isinstance(error, TimeoutError):
        return _split(str(error) or "it took too long", "deadline_exceeded")
    if isinstance(error, OSError):
        return _explain_os(error)
    if isinstance(error, ValueError):
        return _split(str(error), "usage", exit_code=USAGE)
    return _split(str(error), "failed_precondition") if type(error) is RuntimeError else None


def print_complaint(complaint: Complaint, *, as_json: bool) -> None:
    """On stderr: three lines for people, one object for programs."""
    if as_json:
        told = {"code": complaint.code, "message": complaint.what}
        told |= {key: text for key, text in (("why", complaint.why), ("what_to_do", complaint.to_do)) if text}
        extra = {} if complaint.status_code is None else {"status_code": complaint.status_code}
        print(json.dumps({"error": {**told, **extra}}), file=sys.stderr)
        return
    print(f"runta: {complaint.what}", file=sys.stderr)
    for label, text in (("why", complaint.why), ("what to do", complaint.to_do)):
        if text:
            print(f"  {label}: " + text.replace("\n", "\n    "), file=sys.stderr)


def _split(text: str, code: str, *, status_code: int | None = None, exit_code: int = ERROR) -> Complaint:
    """The three parts of an error's text."""
    rest, _, to_do = text.partition(_TO_DO)
    what, _, why = rest.partition(_WHY)
    return Complaint(
        code=code, what=what, why=why or None, to_do=to_do or None, status_code=status_code, exit_code=exit_code
    )


def _explain_usage(error: Any) -> Complaint:
    context = getattr(error, "ctx", None)
    to_do = f"see `{context.command_path} --help`" if context is not None else "see `runta --help`"
    return Complaint(code="usage", what=error.format_message().rstrip("."), to_do=to_do, exit_code=USAGE)


def _explain_os(error: OSError) -> Complaint:
    text = error.strerror or str(error) or type(error).__name__
    return Complaint(code="os_error", what=f"{error.filename}: {text}" if error.filename else text)
