"""Equal memory of forks, held once: the kernel's KSM, for what `mergeable.py` started.

ksmd scans only what was offered to it, and only while /sys/kernel/mm/ksm/run is 1, which holds for the whole host.
Sources: the kernel's admin-guide/mm/ksm.rst, proc(5) (ksm_stat), prctl(2).
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path

from runta.errors import KernelError
from runta.kernel import mergeable
from runta.kernel.process import run

RUN = Path("/sys/kernel/mm/ksm/run")
_QUICK = 10.0
_LOST = 1


def launcher_of(python: str) -> tuple[str, ...]:
    """What to put before a program's words so that it and its descendants offer their memory for merging."""
    return (python, "-I", "-S", "-E", str(Path(mergeable.__file__)))


def try_merging(python: str) -> str | None:
    """Start a program through the launcher and ask it for its flag; None, or why its memory is not offered."""
    if not RUN.exists():
        return "the kernel lacks CONFIG_KSM"
    words = launcher_of(python)
    done = run((*words, *words), timeout=_QUICK, check=False)
    if done.returncode == 0:
        return None
    return "exec drops the flag in this kernel" if done.returncode == _LOST else done.stderr.strip() or "refused"


def is_merging() -> bool:
    """Whether the kernel merges what it is offered."""
    with contextlib.suppress(OSError):
        return RUN.read_text().strip() == "1"
    return False


def start_merging() -> None:
    """Let the kernel merge, on the whole host. Nobody stops it: what is merged would be copied apart again.

    Raises KernelError where there is no KSM.
    """
    if is_merging():
        return
    try:
        RUN.write_text("1")
    except OSError as err:
        raise KernelError(f"can't write {RUN}", cause=err.strerror, hint="leave RUNTA_KSM out on this host") from err


def read_saved_bytes(pids: Iterable[int]) -> int:
    """What these processes would take more if no memory of theirs were merged; the one copy of each page counts too."""
    return sum(_read_merged_pages(pid) for pid in pids) * os.sysconf("SC_PAGE_SIZE")


def _read_merged_pages(pid: int) -> int:
    """Pages of a process that it shares with others, or with itself; 0 if it is gone or the kernel does not say."""
    with contextlib.suppress(OSError, ValueError):
        return int(Path(f"/proc/{pid}/ksm_merging_pages").read_text())
    return 0
