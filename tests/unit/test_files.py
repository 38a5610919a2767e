"""Marks of directories."""

from __future__ import annotations

import subprocess
from pathlib import Path

from runta.kernel.files import spread_directories
from runta.kernel.probes import file_system_of


def test_directories_are_spread_where_the_file_system_knows_how(tmp_path: Path) -> None:
    spread_directories(tmp_path)
    if file_system_of(tmp_path) == "ext4":
        flags = subprocess.run(["lsattr", "-d", str(tmp_path)], capture_output=True, text=True, check=True).stdout
        assert "T" in flags.split()[0]
    spread_directories(Path("/proc/self"))
    spread_directories(Path("/dev/shm"))
