"""Incremental dumps: asked for only where CRIU's own probe finds that the kernel tracks what is written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from runta.engine import ahead
from runta.engine.ahead import Ahead, find_tracking
from runta.errors import KernelError
from runta.kernel.criu import link_dump, read_memory_bytes
from runta.kernel.criu_rpc import Features
from runta.kernel.runc import Runc
from runta.settings import tool_path

RECORDER = """#!/usr/bin/env python3
import json, pathlib, sys
with open(pathlib.Path(__file__).with_name("calls"), "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
"""


class PlainRunc:
    """Records pre-dumps; writes what one leaves, or fails."""

    def __init__(self, error: KernelError | None = None) -> None:
        self.calls: list[tuple[str, Path, Path]] = []
        self._error = error

    def pre_dump(self, runtime_id: str, *, dump: Path, work: Path, log: Path) -> None:
        self.calls.append((runtime_id, dump, work))
        (dump / "pages-1.img").write_bytes(bytes(4096))
        if self._error:
            raise self._error


@pytest.fixture
def places(tmp_path: Path) -> dict[str, Path]:
    found = {"dump": tmp_path / "dump", "work": tmp_path / "log", "log_file": tmp_path / "runc.log"}
    found["dump"].mkdir()
    found["work"].mkdir()
    return found


def test_nothing_is_attempted_without_tracking(places: dict[str, Path]) -> None:
    runc = PlainRunc()
    assert Ahead().dump(runc, "r", **places) is None
    assert runc.calls == []
    assert list(places["dump"].iterdir()) == []


def test_the_pre_dump_lies_within_the_dump(places: dict[str, Path]) -> None:
    runc = PlainRunc()
    assert Ahead(tracking=True).dump(runc, "r", **places) == "pre"
    assert runc.calls == [("r", places["dump"] / "pre", places["work"] / "pre")]
    assert read_memory_bytes(places["dump"]) == 4096


def test_a_failed_pre_dump_means_a_full_dump(places: dict[str, Path]) -> None:
    assert Ahead(tracking=True).dump(PlainRunc(KernelError("no")), "r", **places) is None
    assert list(places["dump"].iterdir()) == []


def test_criu_itself_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for found in (True, False):
        monkeypatch.setattr(
            ahead, "ask_features", lambda _, found=found: Features(dirty_tracking=found, lazy_pages=True)
        )
        assert find_tracking(Path("criu")) == Ahead(tracking=found)

    def fail(_: Path) -> Features:
        raise KernelError("it does not answer")

    monkeypatch.setattr(ahead, "ask_features", fail)
    assert find_tracking(Path("criu")) == Ahead()


def test_what_runc_is_told(tmp_path: Path) -> None:
    program = tmp_path / "runc"
    program.write_text(RECORDER)
    program.chmod(0o755)
    runc = Runc(str(program), tmp_path / "root", tool_path())
    dump, work, log = tmp_path / "dump", tmp_path / "work", tmp_path / "log"
    runc.pre_dump("r", dump=dump / "pre", work=work, log=log)
    runc.checkpoint("r", dump=dump, work=work, log=log, parent="pre")
    runc.checkpoint("r", dump=dump, work=work, log=log)
    calls = [json.loads(line) for line in (tmp_path / "calls").read_text().splitlines()]
    assert ["--pre-dump" in words for words in calls] == [True, False, False]
    assert ["--leave-running" in words for words in calls] == [False, True, True]
    assert calls[1][calls[1].index("--parent-path") + 1] == "pre"
    assert "--parent-path" not in calls[2]


def test_a_chain_is_linked_whole(tmp_path: Path) -> None:
    dump, target = tmp_path / "dump", tmp_path / "target"
    (dump / "pre").mkdir(parents=True)
    (dump / "pre/pages-1.img").write_text("before")
    (dump / "pages-1.img").write_text("after")
    (dump / "parent").symlink_to("pre")
    target.mkdir()
    link_dump(dump, target, "name")
    assert (target / "parent/pages-1.img").read_text() == "before"
    assert (target / "parent").resolve() == target / "pre"
    assert (target / "pre/pages-1.img").samefile(dump / "pre/pages-1.img")
    assert (target / "pre").stat().st_mode & 0o777 == 0o700
