"""The same programs with the unmodified official package and with ours, against a service on the real kernel."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

from tests.host.conftest import House

from .service import PYTHONS

SUITE = Path(__file__).parent / "suite"
PROGRAMS = sorted(path.name for path in SUITE.glob("test_*.py"))
WITHOUT_PACKAGE = {"test_http.py", "test_stream.py"}
"""They speak to the service themselves, and use the package for the rest: once is enough."""
RUNS = [
    (program, package)
    for program in PROGRAMS
    for package in PYTHONS
    if package == "official" or program not in WITHOUT_PACKAGE
]
TIMEOUT = 280


@pytest.mark.parametrize(("program", "package"), RUNS, ids=[f"{package}-{program}" for program, package in RUNS])
def test_program(official_house: House, variables: dict[str, str], program: str, package: str) -> None:
    assert official_house.service is not None
    done = subprocess.run(
        [
            PYTHONS[package],
            "-m",
            "pytest",
            "-q",
            "-c",
            SUITE / "pytest.ini",
            f"--rootdir={SUITE}",
            "-p",
            "no:cacheprovider",
            "-p",
            "no:asyncio",
            SUITE / program,
        ],
        env={**variables, "RUNTA_TEST_SERVICE": str(official_house.service.pid), "PYTHONDONTWRITEBYTECODE": "1"},
        cwd=SUITE,
        capture_output=True,
        text=True,
        timeout=TIMEOUT,
    )
    assert done.returncode == 0, f"{done.stdout[-8000:]}{done.stderr[-2000:]}\n{official_house.log()[-12000:]}"
    assert re.search(r"\d+ passed", done.stdout) and "skipped" not in done.stdout
    left = official_house.leaks()
    assert not left


def test_the_package_is_the_official_one() -> None:
    done = subprocess.run(
        [
            PYTHONS["official"],
            "-c",
            "import runta, importlib.metadata as m; print(m.version('runta-sdk'), runta.__file__)",
        ],
        capture_output=True,
        text=True,
        check=True,
        cwd="/",
    )
    version, place = done.stdout.split()
    assert version == "0.2.5" and "build/official" in place
