"""The WebSocket's protocol without its socket: bytes and JSON frames in, frames and bytes out.

Compression is not offered: on one host it costs more than it saves.
"""

from __future__ import annotations

import base64
import json
from collections.abc import Mapping
from typing import Any

from websockets.client import ClientProtocol
from websockets.exceptions import InvalidStatus
from websockets.frames import Frame as WebSocketFrame
from websockets.frames import Opcode
from websockets.protocol import CONNECTING, OPEN
from websockets.uri import WebSocketURI

from runta.client.endpoint import Endpoint
from runta.client.steps import Reply

Frame = dict[str, Any]
_encode_json = json.JSONEncoder(separators=(",", ":")).encode


class Wire:
    """One connection, from the handshake to its end."""

    def __init__(self, endpoint: Endpoint, path: str) -> None:
        place, _, query = path.partition("?")
        uri = WebSocketURI(endpoint.secure, endpoint.host, endpoint.port, endpoint.base_path + place, query)
        self._protocol = ClientProtocol(uri, max_size=None)
        request = self._protocol.connect()
        for name, value in endpoint.headers.items():
            request.headers[name] = value
        self._protocol.send_request(request)
        self._parts: list[bytes] = []
        self.ended = False
        """No frame will come any more."""

    @property
    def accepted(self) -> bool:
        """The handshake is done; the end may have come right behind it."""
        return self._protocol.state is not CONNECTING and self._protocol.handshake_exc is None

    @property
    def open(self) -> bool:
        """The handshake is done, the end not yet."""
        return self._protocol.state is OPEN

    @property
    def refusal(self) -> Reply | None:
        """The answer to a handshake that was refused."""
        error = self._protocol.handshake_exc
        if not isinstance(error, InvalidStatus):
            return None
        headers = {name.lower(): value for name, value in error.response.headers.raw_items()}
        return Reply(status=error.response.status_code, body=bytes(error.response.body or b""), headers=headers)

    @property
    def end_reason(self) -> str:
        """Why it ended, for an error's text."""
        if self._protocol.handshake_exc is not None:
            return str(self._protocol.handshake_exc)
        code, reason = self._protocol.close_code, self._protocol.close_reason
        return f"the connection was closed ({code or 1006}{': ' + reason if reason else ''})"

    def outgoing(self) -> bytes:
        """What is to be sent now."""
        return b"".join(self._protocol.data_to_send())

    def feed(self, data: bytes) -> list[Frame]:
        """Take what was received, `b""` for its end; the frames it completes."""
        if data:
            self._protocol.receive_data(data)
        else:
            self._protocol.receive_eof()
            self.ended = True
        frames = []
        for event in self._protocol.events_received():
            if isinstance(event, WebSocketFrame):
                frames += self._take(event)
        if self._protocol.handshake_exc is not None:
            self.ended = True
        return frames

    def send(self, frame: Mapping[str, Any]) -> None:
        """Queue one frame; nothing after the end."""
        if self.open:
            self._protocol.send_text(_encode_json(frame).encode())

    def close(self) -> None:
        """Queue the close."""
        if self.open:
            self._protocol.send_close(1000)

    def _take(self, event: WebSocketFrame) -> list[Frame]:
        if event.opcode is Opcode.CLOSE:
            self.ended = True
        if event.opcode not in (Opcode.TEXT, Opcode.BINARY, Opcode.CONT):
            return []
        self._parts.append(bytes(event.data))
        if not event.fin:
            return []
        text, self._parts = b"".join(self._parts), []
        frame = json.loads(text)
        return [frame] if isinstance(frame, dict) else []


def stdin_frame(data: bytes) -> Frame:
    """A piece of standard input."""
    return {"type": "stdin", "data_base64": base64.b64encode(data).decode("ascii")}


def output_of(frame: Mapping[str, Any]) -> bytes:
    """The bytes of a `stdout` or `stderr` frame."""
    return base64.b64decode(frame["data_base64"])
