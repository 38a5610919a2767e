"""Starts a program whose memory, and that of all it starts, the kernel may merge (PR_SET_MEMORY_MERGE, prctl(2)).

A program of its own (`python3 -I -S -E mergeable.py PROGRAM ARGUMENT…`): the flag belongs to a process, and the
service's memory, which holds secrets, must not have it. fork keeps the flag, exec keeps it in newer kernels.
Exit status 125 where the kernel refuses.
"""

from __future__ import annotations

import ctypes
import os
import sys

_PR_SET_MEMORY_MERGE = 67
_PR_GET_MEMORY_MERGE = 68
_REFUSED = 125


def main(words: list[str]) -> int:
    """Become the program. Without one, say whether the flag is there: exit status 0 or 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not words:
        return 0 if libc.prctl(_PR_GET_MEMORY_MERGE, 0, 0, 0, 0) == 1 else 1
    if libc.prctl(_PR_SET_MEMORY_MERGE, 1, 0, 0, 0) != 0:
        sys.stderr.write(f"PR_SET_MEMORY_MERGE: {os.strerror(ctypes.get_errno())}\n")
        return _REFUSED
    os.execvp(words[0], words)
    return _REFUSED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
