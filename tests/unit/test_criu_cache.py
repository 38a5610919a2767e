"""Where CRIU keeps what it knows of the kernel."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from runta.kernel import criu_cache
from runta.kernel.criu_cache import drop_cache, provide_cache
from runta.kernel.mounts import is_mounted


@pytest.fixture
def criu(tmp_path: Path) -> Path:
    """A program that tells what it sees below /run, and writes there."""
    program = tmp_path / "criu"
    program.write_text("#!/bin/sh\nls /run; stat -f -c %T /run; echo $* >> /run/criu.kdat; cat /run/criu.kdat\n")
    program.chmod(0o755)
    return program


@pytest.fixture
def run_dir(tmp_path: Path) -> Iterator[Path]:
    place = tmp_path / "run"
    place.mkdir()
    yield place
    drop_cache(place)


def test_a_tmpfs_needs_nothing(criu: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_cache, "file_system_of", lambda _: "tmpfs")
    assert provide_cache(criu, run_dir) == criu.parent
    assert list(run_dir.iterdir()) == []


def test_elsewhere_criu_is_shown_one_that_stays(criu: Path, run_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_cache, "file_system_of", lambda _: "ext4")
    before = sorted(path.name for path in Path("/run").iterdir())
    wrapped = provide_cache(criu, run_dir) / "criu"
    told = [subprocess.run([wrapped, word], capture_output=True, text=True, check=True).stdout for word in ("a", "b c")]
    assert told == ["tmpfs\na\n", "criu.kdat\ntmpfs\na\nb c\n"]
    assert provide_cache(criu, run_dir) == wrapped.parent
    assert sorted(path.name for path in Path("/run").iterdir()) == before
    drop_cache(run_dir)
    assert not is_mounted(run_dir / "criu-run")


def test_the_run_directory_stays_in_sight(criu: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(criu_cache, "file_system_of", lambda _: "ext4")
    run_dir = Path("/run/runta-test-cache")
    run_dir.mkdir()
    try:
        (run_dir / "state").touch()
        criu.write_text("#!/bin/sh\nls /run/runta-test-cache\n")
        done = subprocess.run([provide_cache(criu, run_dir) / "criu"], capture_output=True, text=True, check=True)
        assert "state" in done.stdout.split()
    finally:
        drop_cache(run_dir)
        subprocess.run(["rm", "-r", str(run_dir)], check=True)
