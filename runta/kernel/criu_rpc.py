"""Asking CRIU what it can do here (criu swrk, images/rpc.proto, through pycriu's messages).

pycriu's own way to start CRIU forks the calling program, and leaves two copies of it where the binary is missing. So
the program is started here, and only the messages are pycriu's. CRIU answers one request and ends.
"""

from __future__ import annotations

import socket
import subprocess
from dataclasses import dataclass
from pathlib import Path

from runta.errors import KernelError
from runta.settings import tool_path

_ANSWER_MAX = 65536
_TIMEOUT = 20.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Features:
    """What CRIU finds in this kernel."""

    dirty_tracking: bool
    """Pages written since an earlier dump can be told: incremental dumps."""
    lazy_pages: bool
    """Memory can be filled in after a restore (userfaultfd)."""


def ask_features(program: Path) -> Features:
    """Ask CRIU to try the kernel's features. Raises KernelError if it does not answer."""
    from pycriu import rpc_pb2

    wanted = rpc_pb2.criu_features(mem_track=True, lazy_pages=True)
    request = rpc_pb2.criu_req(type=rpc_pb2.FEATURE_CHECK, features=wanted)
    answer = rpc_pb2.criu_resp()
    answer.ParseFromString(_ask(program, request.SerializeToString()))
    if not answer.success:
        raise KernelError("CRIU can't tell what this kernel can do", cause=answer.cr_errmsg or None)
    return Features(dirty_tracking=answer.features.mem_track, lazy_pages=answer.features.lazy_pages)


def _ask(program: Path, request: bytes) -> bytes:
    """One request, one answer."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours:
        ours.settimeout(_TIMEOUT)
        with theirs:
            child = subprocess.Popen(
                [program, "swrk", str(theirs.fileno())],
                pass_fds=[theirs.fileno()],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env={"PATH": tool_path()},
                cwd="/",
            )
        try:
            ours.send(request)
            answer = ours.recv(_ANSWER_MAX)
        except OSError as err:
            raise KernelError(f"{program} does not answer", cause=str(err)) from err
        finally:
            ours.close()
            child.terminate()
            child.wait()
    if not answer:
        raise KernelError(f"{program} ended without an answer")
    return answer
