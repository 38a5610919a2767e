"""What names and values may be, and what a state allows: each rule raises the error that says how to keep it."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterable, Mapping

from runta.errors import FailedPrecondition, InvalidArgument, PermissionDenied
from runta.models import Runtime, RuntimeStatus

NAME_PATTERN = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
SECRET_NAME_PATTERN = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]{0,127}")
MAX_SECRET_BYTES = 65536
ENV_NAME_PATTERN = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


def check_name(name: str, what: str) -> str:
    """Return the name, or raise InvalidArgument where it has characters a shell or a path would stumble over."""
    if not NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not a name for a {what}",
            cause="names have 1 to 63 letters, digits, dots, dashes and underscores, a letter or digit first",
            hint="choose another name, for instance "
            + (re.sub(r"[^A-Za-z0-9_.-]+", "-", name).strip("-._")[:63] or "box-1"),
        )
    return name


def check_env(env: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables, or raise InvalidArgument naming the one that breaks the API's rules."""
    for name, value in env.items():
        if not ENV_NAME_PATTERN.fullmatch(name):
            raise InvalidArgument(
                f"{name!r} is not an environment variable's name", hint="use letters, digits and underscores"
            )
        if name.startswith("RUNTA_"):
            raise InvalidArgument(
                f"the environment variable {name} is reserved", hint="names that begin with RUNTA_ are the service's"
            )
        if "\0" in value or len(value.encode()) > 8192:
            raise InvalidArgument(f"the value of {name} is too long or holds a NUL byte", hint="8192 bytes at most")
    if len(env) > 64 or sum(len(name.encode()) + len(value.encode()) for name, value in env.items()) > 65536:
        raise InvalidArgument("too many environment variables", hint="64 variables and 65536 bytes at most")
    return env


def check_secret(name: str, value: str) -> None:
    """Raise InvalidArgument for a name or value no secret can have, PermissionDenied for a reserved name."""
    if not SECRET_NAME_PATTERN.fullmatch(name):
        raise InvalidArgument(
            f"{name!r} is not a name for a secret",
            cause="names have 1 to 128 letters, digits, dots, dashes and underscores",
        )
    if name.upper().startswith("RUNTA_"):
        raise PermissionDenied(
            f"the secret name {name} is reserved", hint="names that begin with RUNTA_ are the service's"
        )
    if not value or len(value.encode()) > MAX_SECRET_BYTES:
        raise InvalidArgument("a secret's value has 1 to 65536 bytes")


def require_revision(runtime: Runtime, expected: int | None) -> None:
    """Raise FailedPrecondition unless the runtime is still at the revision the caller has seen."""
    if expected is not None and expected != runtime.revision:
        raise FailedPrecondition(
            f"runtime revision conflict: expected {expected}, current {runtime.revision}",
            hint="read the runtime again and repeat the request with its revision",
        )


_REMEDIES: Mapping[RuntimeStatus, str] = {
    RuntimeStatus.CREATING: "wait until it runs",
    RuntimeStatus.PAUSED: "`runta resume {name}`",
    RuntimeStatus.SUSPENDED: "`runta resume {name}`",
    RuntimeStatus.SHUTDOWN: "`runta boot {name}`",
    RuntimeStatus.CRASHED: "`runta boot {name}`",
}


def wakes_on_request(runtime: Runtime) -> bool:
    """Whether a suspended runtime's policy lets a request wake it."""
    return runtime.status is RuntimeStatus.SUSPENDED and runtime.idle.mode == "suspend_and_wakeup"


def require_running(runtime: Runtime) -> None:
    """Raise FailedPrecondition, saying what would make it run, unless the runtime accepts work."""
    if runtime.status is not RuntimeStatus.RUNNING:
        raise FailedPrecondition(
            f"runtime {runtime.name} is not running",
            cause=f"it is {runtime.status}",
            hint=_REMEDIES.get(runtime.status, "`runta inspect {name}` tells more").format(name=runtime.name),
        )


def suggest(wanted: str, known: Iterable[str]) -> str | None:
    """A hint naming what exists under a similar name, or None."""
    names = sorted(set(known))
    close = difflib.get_close_matches(wanted, names, n=3, cutoff=0.5)
    if close:
        return f"did you mean {' or '.join(close)}?"
    return f"there is: {', '.join(names[:8])}{' …' if len(names) > 8 else ''}" if names else None
