"""What can go wrong: one class a fact, each with its API code, HTTP status, exit code and hint.

    RuntaError
    ├── ConfigError            the client's own settings
    ├── ApiError               an answer of the service, or none
    │   └── ExecutionError     an exec that could not be observed
    ├── CommandError           a guest command of a file transfer failed
    └── ServiceError           what the service tells its callers
        ├── InvalidArgument, NotFound, AlreadyExists, FailedPrecondition, Unauthenticated,
        ├── PermissionDenied, Unavailable, DeadlineExceeded, Unimplemented, InternalError
        └── CheckpointFailed, RestoreFailed (CRIU's refusal, with its cause)

A `ServiceError` says what happened (`message`), why (`cause`) and what to do (`hint`); its text is the user's text.
Codes are the closed list of Runta's public API.
"""

from __future__ import annotations

from typing import ClassVar


class RuntaError(Exception):
    """Anything runta raises on purpose."""


class ConfigError(RuntaError):
    """The client's settings are missing, unreadable or contradictory."""


class ApiError(RuntaError):
    """The service answered with an error, or did not answer.

    `status_code` and `code` are None where no answer came.
    """

    def __init__(self, message: str, status_code: int | None = None, code: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.status_code = status_code
        self.code = code

    def __str__(self) -> str:
        if self.status_code is None:
            return self.message
        return f"HTTP {self.status_code}: {self.code}: {self.message}" if self.code else self.message


class ExecutionError(ApiError):
    """A command's result could not be observed; it may still run."""

    def __init__(self, message: str, execution_id: str | None = None) -> None:
        super().__init__(message)
        self.execution_id = execution_id


class CommandError(RuntaError):
    """A command that a file operation needs failed inside the runtime."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class ServiceError(RuntaError):
    """An error of the service, told to the caller in the API's envelope."""

    code: ClassVar[str] = "internal"
    http_status: ClassVar[int] = 500

    def __init__(self, message: str, *, cause: str | None = None, hint: str | None = None) -> None:
        self.message = message
        self.cause = cause
        self.hint = hint
        super().__init__(message)

    def __str__(self) -> str:
        parts = [self.message]
        if self.cause:
            parts.append(f"why: {self.cause}")
        if self.hint:
            parts.append(f"what to do: {self.hint}")
        return "\n".join(parts)


class InvalidArgument(ServiceError):
    """A value no runtime could be made from."""

    code = "invalid_argument"
    http_status = 422


class MalformedRequest(InvalidArgument):
    """A body that does not fit the schema."""

    http_status = 400


class NotFound(ServiceError):
    code = "not_found"
    http_status = 404


class AlreadyExists(ServiceError):
    code = "already_exists"
    http_status = 409


class FailedPrecondition(ServiceError):
    """The thing exists but is in the wrong state for this."""

    code = "failed_precondition"
    http_status = 409


class CommandFailed(ServiceError):
    code = "command_failed"
    http_status = 422


class Unauthenticated(ServiceError):
    code = "unauthenticated"
    http_status = 401


class PermissionDenied(ServiceError):
    code = "permission_denied"
    http_status = 403


class Unavailable(ServiceError):
    code = "unavailable"
    http_status = 503


class DeadlineExceeded(ServiceError):
    code = "deadline_exceeded"
    http_status = 504


class Unimplemented(ServiceError):
    code = "unimplemented"
    http_status = 501


class InternalError(ServiceError):
    """A failure of the host or of runta itself."""


class KernelError(InternalError):
    """An effect on the host failed: a mount, a cgroup, a network namespace, runc."""


class CheckpointFailed(InternalError):
    """CRIU refused or failed to dump; the source goes on."""


class RestoreFailed(InternalError):
    """CRIU refused or failed to restore; nothing is left behind."""


class NoSpace(InternalError):
    """The disk is full, or will be."""


API_CODES: frozenset[str] = frozenset(
    {
        "already_exists",
        "command_failed",
        "deadline_exceeded",
        "failed_precondition",
        "internal",
        "invalid_argument",
        "not_found",
        "permission_denied",
        "rate_limited",
        "unauthenticated",
        "unavailable",
        "unimplemented",
    }
)
