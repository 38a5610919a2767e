"""What an answer means: the data of a success, or the ApiError of a failure."""

from __future__ import annotations

import json
from typing import Any

from runta.client.steps import Reply
from runta.errors import API_CODES, ApiError

SUCCESS = range(200, 300)


def data_of(reply: Reply) -> Any:
    """The `data` of a successful answer.

    Raises ApiError for a failure, or for a body that is not the API's.
    """
    raise_for_status(reply)
    try:
        return json.loads(reply.body)["data"]
    except (ValueError, KeyError, TypeError) as err:
        raise ApiError(f"the service's answer is not the API's: {reply.body[:200]!r}", reply.status) from err


def raise_for_status(reply: Reply) -> None:
    """Raise the ApiError an unsuccessful answer stands for."""
    if reply.status not in SUCCESS:
        raise error_of(reply)


def error_of(reply: Reply) -> ApiError:
    """The error an answer tells: the envelope's, or its bare text."""
    try:
        error = json.loads(reply.body)["error"]
        code, message = error["code"], str(error["message"])
    except (ValueError, KeyError, TypeError):
        text = reply.body.decode(errors="replace").strip()
        return ApiError(text or f"the service answered {reply.status}", reply.status)
    for field, label in (("cause", "why"), ("hint", "what to do")):
        if error.get(field) and f"\n{label}: " not in message:
            message += f"\n{label}: {error[field]}"
    return ApiError(message, reply.status, code if code in API_CODES else None)
