"""runc's verbs. Sources: runc's man pages (runc-run.8, runc-checkpoint.8, runc-restore.8, runc-delete.8).

A sandbox inherits its first process's stdin, stdout and stderr from runc, so runc gets /dev/null for all three: a
file of the host could not be dumped. Its errors come from its log file.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.process import run

_TIMEOUT = 60.0
_DUMP_TIMEOUT = 600.0


@dataclass(frozen=True, slots=True)
class Runc:
    """One runc program with a state directory of its own. `path` is PATH for it: CRIU's directory first."""

    program: str
    root: Path
    path: str
    held: tuple[int, ...] = ()
    """Descriptors each call holds open: the lock of the state directory, so that a service which follows one that was
    killed waits until its last call is through."""
    launcher: tuple[str, ...] = ()
    """What starts runc where it makes processes of a container: they inherit what it sets."""

    def run(self, runtime_id: str, *, bundle: Path, log: Path, pid_file: Path) -> int:
        """Make and start the container of a bundle; returns the host pid of its first process."""
        words = ("run", "--detach", "--pid-file", pid_file, "--bundle", bundle, runtime_id)
        self._call(words, log=log, silent=True, launcher=self.launcher)
        return int(pid_file.read_text())

    def checkpoint(self, runtime_id: str, *, dump: Path, work: Path, log: Path, parent: str | None = None) -> None:
        """Dump the container's processes into `dump`; they go on. CRIU's dump.log and stats go into `work`.

        `parent` is a pre-dump's directory, relative to `dump`: only memory that was written since is dumped.
        """
        options = ("--leave-running", *(("--parent-path", parent) if parent else ()))
        words = ("checkpoint", *options, "--image-path", dump, "--work-path", work, runtime_id)
        self._call(words, log=log, timeout=_DUMP_TIMEOUT)

    def pre_dump(self, runtime_id: str, *, dump: Path, work: Path, log: Path) -> None:
        """Dump the container's memory alone into `dump`, while it runs, and have the kernel track what is written."""
        words = ("checkpoint", "--pre-dump", "--image-path", dump, "--work-path", work, runtime_id)
        self._call(words, log=log, timeout=_DUMP_TIMEOUT)

    def restore(
        self, runtime_id: str, *, bundle: Path, dump: Path, work: Path, log: Path, pid_file: Path, lazy: bool = False
    ) -> int:
        """Make the container of a bundle from a dump; returns the host pid of its first process.

        `lazy` leaves the memory to a pager that listens in `work` (`runta.kernel.lazy`).
        """
        places = ("--bundle", bundle, "--image-path", dump, "--work-path", work, "--pid-file", pid_file)
        lazily = ("--lazy-pages",) if lazy else ()
        words = ("restore", "--detach", *lazily, *places, runtime_id)
        self._call(words, log=log, silent=True, timeout=_DUMP_TIMEOUT, launcher=self.launcher)
        return int(pid_file.read_text())

    def delete(self, runtime_id: str, *, log: Path) -> None:
        """Kill what is left of the container and forget it; an unknown one is no error."""
        if (self.root / runtime_id).exists():
            self._call(("delete", "--force", runtime_id), log=log)

    def known(self) -> set[str]:
        """Ids runc has state of."""
        return {entry.name for entry in self.root.iterdir()} if self.root.is_dir() else set()

    def _call(
        self,
        words: tuple[str | Path, ...],
        *,
        log: Path,
        silent: bool = False,
        timeout: float = _TIMEOUT,
        launcher: tuple[str, ...] = (),
    ) -> None:
        """Run one verb. Raises KernelError with runc's own reason."""
        start = log.stat().st_size if log.exists() else 0
        head: tuple[str | Path, ...] = (
            *launcher,
            self.program,
            "--root",
            self.root,
            "--log",
            log,
            "--log-format",
            "json",
        )
        done = run((*head, *words), timeout=timeout, path=self.path, check=False, silent=silent, held=self.held)
        if done.returncode != 0:
            raise KernelError(f"runc {words[0]} failed", cause=_read_reason(log, start) or done.stderr.strip() or None)


def _read_reason(log: Path, start: int) -> str | None:
    """The last error runc logged since `start`."""
    if not log.exists():
        return None
    reason = None
    for line in log.read_bytes()[start:].decode(errors="replace").splitlines():
        try:
            entry = json.loads(line)
        except ValueError:
            continue
        if entry.get("level") in ("error", "fatal"):
            reason = str(entry.get("msg"))
    return reason
