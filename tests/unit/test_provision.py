"""Preparing a host: subordinate ids on files of our own, and the private CRIU's pieces."""

from __future__ import annotations

from pathlib import Path

import pytest

from runta.errors import KernelError
from runta.kernel import criu_prefix
from runta.kernel.subids import Entry, ensure_subordinate_ids, find_subordinate_ids, read_entries
from runta.models import IdMap


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "subuid", tmp_path / "subgid"


def test_nothing_there(files: tuple[Path, Path]) -> None:
    assert find_subordinate_ids(*files) is None
    assert ensure_subordinate_ids(*files) == (IdMap(start=100_000, size=65_536), True)
    assert [path.read_text() for path in files] == ["runta:100000:65536\n"] * 2
    assert [path.stat().st_mode & 0o777 for path in files] == [0o644] * 2
    assert find_subordinate_ids(*files) == IdMap(start=100_000)


def test_second_time_writes_nothing(files: tuple[Path, Path]) -> None:
    ensure_subordinate_ids(*files)
    before = [path.stat().st_ino for path in files]
    assert ensure_subordinate_ids(*files) == (IdMap(start=100_000), False)
    assert [path.stat().st_ino for path in files] == before


def test_rest_of_the_files_stays(files: tuple[Path, Path]) -> None:
    text = "# made by hand\nalice:100000:65536\n\nodd line\n"
    for path in files:
        path.write_text(text)
        path.chmod(0o640)
    ensure_subordinate_ids(*files)
    assert [path.read_text() for path in files] == [f"{text}runta:165536:65536\n"] * 2
    assert [path.stat().st_mode & 0o777 for path in files] == [0o640] * 2
    assert sorted(path.name for path in files[0].parent.iterdir()) == ["subgid", "subuid"]


@pytest.mark.parametrize(
    ("users", "groups", "start"),
    [
        ("alice:100000:65536", "", 165_536),
        ("", "alice:100000:65536", 165_536),
        ("alice:90000:20000", "bob:165536:1", 231_072),
        ("alice:165536:65536", "", 100_000),
        ("alice:100000:1000000", "", 1_148_576),
        ("runta:100000:65536", "bob:100000:65536", 165_536),
        ("runta:300000:65536", "", 300_000),
        ("runta:300000:65536", "runta:400000:65536", 300_000),
        ("runta:100000:1000", "", 100_000),
    ],
)
def test_first_free_range(files: tuple[Path, Path], users: str, groups: str, start: int) -> None:
    """Free in both files, which hold the same range afterwards; a range one of them gave already is kept."""
    for path, text in zip(files, (users, groups), strict=True):
        path.write_text(f"{text}\n" if text else "")
    assert ensure_subordinate_ids(*files) == (IdMap(start=start), True)
    for path in files:
        assert [entry for entry in read_entries(path) if entry.owner == "runta"] == [Entry("runta", start, 65_536)]
    assert find_subordinate_ids(*files) == IdMap(start=start)


def test_file_without_a_last_newline(files: tuple[Path, Path]) -> None:
    files[0].write_text("alice:500000:65536")
    ensure_subordinate_ids(*files)
    assert files[0].read_text() == "alice:500000:65536\nrunta:100000:65536\n"


def test_no_range_is_free(files: tuple[Path, Path]) -> None:
    files[0].write_text("alice:0:4294967295\n")
    with pytest.raises(KernelError, match="no range") as caught:
        ensure_subordinate_ids(*files)
    assert caught.value.hint
    assert files[0].read_text() == "alice:0:4294967295\n"


def test_unwritable_place_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="can't write subordinate ids") as caught:
        ensure_subordinate_ids(tmp_path / "no/subuid", tmp_path / "no/subgid")
    assert caught.value.hint


@pytest.mark.parametrize("triple", ["x86_64-linux-gnu/ld-linux-x86-64.so.2", "aarch64-linux-gnu/ld-linux-aarch64.so.1"])
def test_wrapper_finds_its_loader(tmp_path: Path, triple: str) -> None:
    loader, program = tmp_path / "prefix/usr/lib" / triple, tmp_path / "prefix/usr/sbin/criu"
    for path in (loader, program):
        path.parent.mkdir(parents=True)
        path.touch()
    criu_prefix._write_wrapper(tmp_path, Path("/lib dir/criu"))
    wrapper = tmp_path / "bin/criu"
    assert wrapper.read_text() == (
        f"#!/bin/sh\nexec '/lib dir/criu/prefix/usr/lib/{triple}' --argv0 criu"
        f" --library-path '/lib dir/criu/prefix/usr/lib/{triple.partition('/')[0]}'"
        " '/lib dir/criu/prefix/usr/sbin/criu' \"$@\"\n"
    )
    assert wrapper.stat().st_mode & 0o777 == 0o755


def test_incomplete_download(tmp_path: Path) -> None:
    with pytest.raises(KernelError, match="not complete"):
        criu_prefix._write_wrapper(tmp_path, tmp_path)


def test_failed_install_keeps_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    old = criu_prefix.criu_program(tmp_path)
    old.parent.mkdir(parents=True)
    old.write_text("old")

    def fail(_: Path) -> None:
        raise KernelError("can't fetch CRIU from the Debian archive")

    monkeypatch.setattr(criu_prefix, "_fill", fail)
    monkeypatch.setattr(criu_prefix, "_KEYRING", tmp_path)
    with pytest.raises(KernelError, match="can't fetch"):
        criu_prefix.install_criu(tmp_path)
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["criu"]


def test_replacing_an_old_one(tmp_path: Path) -> None:
    place, staged = tmp_path / "criu", tmp_path / "criu.new"
    for path, text in ((place, "old"), (staged, "new")):
        path.mkdir()
        (path / "it").write_text(text)
    criu_prefix._replace(staged, place)
    assert (place / "it").read_text() == "new"
    assert [path.name for path in tmp_path.iterdir()] == ["criu"]
