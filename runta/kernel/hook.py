"""The createRuntime hook: tells the network helper which runtime has a new network namespace, and waits for its answer.

runc starts this file as a program of its own (`python3 -I -S -E hook.py SOCKET`), at run and at restore, with the
runtime's state as JSON on stdin (OCI runtime specification, runtime.md, "State"). It imports what starts within
milliseconds only.
"""

from __future__ import annotations

import sys
from _socket import AF_UNIX, SHUT_WR, SOCK_STREAM, socket

_ANSWER_MAX = 4096
_TIMEOUT = 20.0


def main() -> int:
    """Exit status 0 where the network is up; else runc ends the start with the text on stderr."""
    peer = socket(AF_UNIX, SOCK_STREAM)
    peer.settimeout(_TIMEOUT)
    peer.connect(sys.argv[1])
    peer.send(sys.stdin.buffer.read())
    peer.shutdown(SHUT_WR)
    answer = peer.recv(_ANSWER_MAX).decode()
    if answer == "ok":
        return 0
    sys.stderr.write(answer or "the service's network helper went away\n")
    return 1


if __name__ == "__main__":
    sys.exit(main())
