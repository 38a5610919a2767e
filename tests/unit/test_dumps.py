"""Files without their zeros, and dumps that come home from memory."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runta.engine.dumps import Dumps
from runta.kernel.sparse import copy_sparse, punch_zeros

MIB = 1 << 20


def room(path: Path) -> int:
    return path.stat().st_blocks * 512


@pytest.mark.parametrize("tail", [b"", b"\0" * 100, b"x", b"\0" * 4096])
def test_holes_take_no_room_and_change_nothing(tmp_path: Path, tail: bytes) -> None:
    path, copy = tmp_path / "pages-1.img", tmp_path / "copy"
    content = bytes(4 * MIB) + os.urandom(4096) + bytes(4 * MIB) + b"\0" * 4095 + b"end" + tail
    path.write_bytes(content)
    copy_sparse(path, copy)
    punch_zeros(path)
    for file in (path, copy):
        assert file.read_bytes() == content
        assert room(file) <= 64 << 10
    assert punch_zeros(copy) >= 8 * MIB - 4096


@given(pieces=st.lists(st.tuples(st.booleans(), st.integers(1, 12000)), max_size=12))
def test_any_content_stays(tmp_path_factory: pytest.TempPathFactory, pieces: list[tuple[bool, int]]) -> None:
    place = tmp_path_factory.mktemp("sparse")
    content = b"".join(bytes(size) if zero else b"z" * size for zero, size in pieces)
    (place / "file").write_bytes(content)
    copy_sparse(place / "file", place / "copy")
    freed = punch_zeros(place / "file")
    assert (place / "file").read_bytes() == (place / "copy").read_bytes() == content
    assert freed <= content.count(0)


def test_a_copy_never_replaces_a_file(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"a")
    (tmp_path / "b").write_bytes(b"b")
    with pytest.raises(FileExistsError):
        copy_sparse(tmp_path / "a", tmp_path / "b")


@pytest.fixture
def staged(tmp_path: Path) -> Path:
    place = tmp_path / "staging" / "0001"
    (place / "checkpoint").mkdir(parents=True)
    return place


@pytest.fixture
def hot(tmp_path: Path) -> Path:
    place = tmp_path / "hot"
    place.mkdir()
    return place


def write_dump(dump: Path) -> None:
    (dump / "pages-1.img").write_bytes(bytes(MIB) + b"x" * 4096)
    (dump / "core-1.img").write_bytes(b"core")
    (dump / "pre").mkdir()
    (dump / "pre" / "pages-1.img").write_bytes(bytes(MIB))
    (dump / "parent").symlink_to("pre")


def check_home(dump: Path) -> None:
    assert not dump.is_symlink()
    assert (dump / "pages-1.img").read_bytes() == bytes(MIB) + b"x" * 4096
    assert room(dump / "pages-1.img") <= 16 << 10
    assert (dump / "core-1.img").read_bytes() == b"core"
    assert (dump / "parent" / "pages-1.img").read_bytes() == bytes(MIB)


def test_a_dump_on_the_disk_stays_where_it_is(staged: Path) -> None:
    dumps = Dumps()
    write_dump(dumps.prepare(staged, 0))
    with dumps.homing(staged):
        dumps.settle(staged)
    check_home(staged / "checkpoint/dump")


def test_a_dump_in_memory_comes_home(staged: Path, hot: Path) -> None:
    dumps = Dumps(hot)
    with dumps.homing(staged):
        dump = dumps.prepare(staged, 0)
        assert dump.resolve() == hot / "0001"
        write_dump(dump)
        dumps.settle(staged)
    check_home(dump)
    assert not list(hot.iterdir())


def test_a_second_try_begins_empty(staged: Path, hot: Path) -> None:
    dumps = Dumps(hot)
    write_dump(dumps.prepare(staged, 0))
    (staged / "checkpoint/dump").unlink()
    assert not list(dumps.prepare(staged, 0).iterdir())


@pytest.mark.parametrize("spoil", [lambda hot: None, lambda hot: hot.rmdir()], ids=["full", "missing"])
def test_without_room_in_memory_the_disk_does(staged: Path, hot: Path, spoil: Callable[[Path], None]) -> None:
    spoil(hot)
    dump = Dumps(hot).prepare(staged, 1 << 62)
    assert dump.is_dir()
    assert not dump.is_symlink()


def test_a_failure_leaves_nothing_in_memory(staged: Path, hot: Path) -> None:
    dumps = Dumps(hot)
    with pytest.raises(RuntimeError), dumps.homing(staged):
        write_dump(dumps.prepare(staged, 0))
        raise RuntimeError
    assert not list(hot.iterdir())


def test_a_sweep_removes_what_is_ours_and_nothing_else(staged: Path, hot: Path) -> None:
    write_dump(Dumps(hot).prepare(staged, 0))
    (hot / "somebody's").mkdir()
    odd = staged.parent / "0002" / "checkpoint"
    odd.mkdir(parents=True)
    (odd / "dump").symlink_to(hot / "somebody's")
    Dumps().sweep(staged.parent)
    assert [path.name for path in hot.iterdir()] == ["somebody's"]
