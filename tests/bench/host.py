"""What the figures were measured on."""

from __future__ import annotations

import os
import platform
import subprocess
from pathlib import Path
from typing import Any

from runta.kernel.cgroups import find_cgroups
from runta.kernel.host import criu_version, find_criu, runc_version
from runta.settings import load_settings


def describe(root: Path, *, podman: bool) -> dict[str, Any]:
    """The machine and the versions; `root` is where the state directories are."""
    return {
        "cpus": os.cpu_count(),
        "memory_mib": os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") >> 20,
        "kernel": platform.release(),
        "file_system": file_system(root),
        "cgroups": cgroup_mode(),
        "criu": ".".join(map(str, criu_version(find_criu(load_settings())))),
        "runc": runc_version("runc"),
        "podman": podman_version() if podman else None,
        "python": platform.python_version(),
    }


def file_system(path: Path) -> str:
    """The type of the file system a path is on (proc(5), mountinfo)."""
    found: dict[Path, str] = {}
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        left, _, right = line.partition(" - ")
        found[Path(left.split()[4])] = right.split()[0]
    return next(found[one] for one in (path, *path.parents) if one in found)


def cgroup_mode() -> str:
    """`v2`, `v1`, or `hybrid`: v1 controllers beside a cgroup2 hierarchy."""
    cgroups = find_cgroups()
    if cgroups.unified:
        return "v2"
    return "hybrid" if cgroups.v2 else "v1"


def podman_version() -> str:
    done = subprocess.run(["podman", "--version"], capture_output=True, text=True, check=True)
    return done.stdout.split()[-1]
