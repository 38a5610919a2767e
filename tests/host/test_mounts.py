"""Overlays on idmapped lower dirs, both ways of naming them, and mounts that are busy for a moment."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from runta.errors import KernelError
from runta.kernel import mounts
from runta.kernel.mounts import is_mounted, mount_overlay, mount_points, open_user_namespace, unmount
from runta.models import IdMap

IDS = IdMap(start=100_000)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Path]:
    for name in ("new", "old", "upper", "work", "merged"):
        (tmp_path / name).mkdir()
    (tmp_path / "old/file").write_text("old")
    (tmp_path / "old/below").write_text("below")
    (tmp_path / "new/file").write_text("new")
    yield tmp_path
    unmount(tmp_path / "merged")


def mount(place: Path) -> None:
    userns = open_user_namespace(IDS)
    try:
        mount_overlay(
            [place / "new", place / "old"],
            upper=place / "upper",
            work=place / "work",
            merged=place / "merged",
            attach=place / "attach",
            userns=userns,
        )
    finally:
        os.close(userns)


@pytest.mark.parametrize("old_kernel", [False, True])
def test_overlays_are_mounted_while_other_threads_start_programs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old_kernel: bool
) -> None:
    """A child holds copies of this process's descriptors until it executes its program, that of a lower dir too."""
    if old_kernel:
        refuse_detached(monkeypatch)
    ended = threading.Event()
    starters = [threading.Thread(target=start_programs, args=(ended,)) for _ in range(4)]
    for starter in starters:
        starter.start()
    try:
        for number in range(20):
            place = tmp_path / str(number)
            for name in ("new", "old", "upper", "work", "merged"):
                (place / name).mkdir(parents=True)
            mount(place)
            unmount(place / "merged")
    finally:
        ended.set()
        for starter in starters:
            starter.join()


def start_programs(ended: threading.Event) -> None:
    while not ended.is_set():
        subprocess.run(["true"], check=True)


def refuse_detached(monkeypatch: pytest.MonkeyPatch) -> None:
    """As a kernel before 6.15 does."""
    real = mounts._mount_stack

    def mount_stack(lowers: list[int], merged: Path, options: str) -> None:
        if any(os.readlink(f"/proc/self/fd/{fd}") == "/" for fd in lowers):
            raise OSError(22, "Invalid argument")
        real(lowers, merged, options)

    monkeypatch.setattr(mounts, "_mount_stack", mount_stack)


@pytest.mark.parametrize("old_kernel", [False, True])
def test_lowers_are_stacked_with_mapped_ids(place: Path, monkeypatch: pytest.MonkeyPatch, old_kernel: bool) -> None:
    if old_kernel:
        refuse_detached(monkeypatch)
    mount(place)
    assert (place / "merged/file").read_text() == "new"
    assert (place / "merged/below").stat().st_uid == IDS.start
    assert not (place / "attach").exists()
    assert [point for point in mount_points() if point.startswith(str(place))] == [str(place / "merged")]


def test_a_mount_that_is_busy_for_a_moment_is_waited_for(place: Path) -> None:
    mount(place)
    held = os.open(place / "merged/file", os.O_RDONLY)
    threading.Timer(0.2, os.close, (held,)).start()
    unmount(place / "merged")
    assert not is_mounted(place / "merged")


def test_a_mount_that_stays_busy_is_an_error(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mounts, "_BUSY_TIMEOUT", 0.05)
    mount(place)
    held = os.open(place / "merged/file", os.O_RDONLY)
    try:
        with pytest.raises(KernelError, match="can't unmount"):
            unmount(place / "merged")
    finally:
        os.close(held)
