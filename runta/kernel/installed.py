"""Programs and data this host has for us: where they are, and of which version."""

from __future__ import annotations

import os
import re
import shutil
from importlib import resources
from pathlib import Path

from runta.errors import FailedPrecondition, KernelError
from runta.kernel.criu_prefix import criu_program
from runta.kernel.process import run
from runta.settings import Settings, tool_path

MIN_CRIU = (4, 2)
"""Before 4.2 a fork gets the random state of its source where the kernel keeps one in the vDSO."""

_QUICK = 10.0
_VERSION = re.compile(r"\d+(?:\.\d+)+")


def is_root() -> bool:
    return os.geteuid() == 0


def find_program(name: str) -> Path | None:
    """A program on PATH or in the system directories."""
    found = shutil.which(name, path=tool_path())
    return Path(found) if found else None


def find_host_criu() -> Path | None:
    """The host's own CRIU."""
    return find_program("criu")


def find_criu(settings: Settings) -> Path:
    """The CRIU to use: the private one if it was installed, else the host's.

    runc finds it by its directory, first in PATH. Raises FailedPrecondition if there is none.
    """
    private = criu_program(settings.lib_dir)
    found = private if private.exists() else find_host_criu()
    if found is None:
        raise FailedPrecondition(
            "CRIU is not installed",
            cause=f"neither {private} nor a criu on PATH exists",
            hint="`make setup` installs a private one",
        )
    return found


def criu_version(path: Path) -> tuple[int, ...]:
    """CRIU's version, for instance (4, 2, 1). Raises KernelError if it can't be run or does not tell."""
    return parse_version(run([path, "--version"], timeout=_QUICK).stdout, of=str(path))


def runc_version(program: str) -> str:
    """The OCI runtime's version, for instance 1.1.5. Raises KernelError if it can't be run or does not tell."""
    version = parse_version(run([program, "--version"], timeout=_QUICK).stdout, of=program)
    return ".".join(map(str, version))


def parse_version(text: str, *, of: str = "the program") -> tuple[int, ...]:
    """The first version number in what a program says: `Version: 4.2.1`, `runc version 1.1.5+ds1`."""
    found = _VERSION.search(text)
    if found is None:
        raise KernelError(f"{of} does not tell its version", cause=text.strip()[:200] or "it said nothing")
    return tuple(int(part) for part in found[0].split("."))


def find_init_binary() -> Path:
    """The guest init that came with this installation. Raises FailedPrecondition if it did not."""
    path = Path(str(resources.files("runta") / "data" / "runta-init"))
    if not os.access(path, os.X_OK):
        raise FailedPrecondition(
            "the guest init is missing",
            cause=f"{path} does not exist or is not executable",
            hint="`make setup` builds it",
        )
    return path
