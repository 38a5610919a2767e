"""A service with a port, and the official package in a virtual environment of its own (`make test` puts it there)."""

from __future__ import annotations

import contextlib
import os
import shlex
import shutil
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from runta.kernel.mounts import mounts_below
from tests.host.conftest import House

OFFICIAL = Path(__file__).parent.parent.parent / "build/official"
PYTHONS = {"official": OFFICIAL / "bin/python", "ours": Path(sys.executable)}
"""Package to the interpreter that has it."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def service_with_port() -> Iterator[House]:
    root = Path(f"/var/tmp/runta-official-{os.getpid()}")
    house = House(root, extra_env={"RUNTA_LISTEN": f"127.0.0.1:{free_port()}"})
    house.make()
    house.start()
    try:
        yield house
    finally:
        with contextlib.suppress(Exception):
            house.clear()
        house.stop()
        for point in mounts_below(root):
            subprocess.run(["umount", str(point)], check=False)
        shutil.rmtree(root, ignore_errors=True)


def read_variables(house: House) -> dict[str, str]:
    """What `eval "$(runta env)"` sets, in an environment without any other of ours."""
    bare = {name: value for name, value in os.environ.items() if not name.startswith(("RUNTA_", "PYTEST_"))}
    lines = house.cli("env").stdout.splitlines()
    told = dict(shlex.split(line)[1].split("=", 1) for line in lines)
    assert set(told) == {"RUNTA_ENDPOINT", "RUNTA_TOKEN"}
    return {**bare, **told}
