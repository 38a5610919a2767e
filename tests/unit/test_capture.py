"""Capturing a tree in two looks: what is taken at the second, what is linked to the previous capture, what is never trusted."""

from __future__ import annotations

import mmap
import os
import shutil
import socket
import stat
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from runta.kernel import tree
from runta.kernel.mappings import UNKNOWN, find_shared_mappings
from runta.store import capture as store_capture
from runta.store.capture import Capture, read_previous


@pytest.fixture
def upper(tmp_path: Path) -> Path:
    place = tmp_path / "upper"
    place.mkdir()
    return place


@pytest.fixture
def make(upper: Path, tmp_path: Path) -> Callable[..., Capture]:
    """Each capture knows the one before it, as a runtime's do."""
    count = 0

    def capture(**options: Any) -> Capture:
        nonlocal count
        count += 1
        previous = read_previous(tmp_path / "captured.json", lambda layer: tmp_path / layer / "tree")
        return Capture(upper, tmp_path / f"layer-{count}", shift=0, previous=previous, **options)

    return capture


def keep(made: Capture, tmp_path: Path) -> None:
    made.remember(tmp_path / "captured.json", made.tree.parent.name)


def age() -> None:
    """Let file times of before and after differ by more than a tick."""
    time.sleep(store_capture._TICK_NS / 1e9 + 0.01)


def listing(tree: Path) -> dict[str, tuple[Any, ...]]:
    """Everything that makes up a tree; a whiteout says no more than that it is one."""
    found = {}
    for path in [tree, *sorted(tree.rglob("*"))]:
        info = path.lstat()
        if stat.S_ISCHR(info.st_mode):
            found[str(path.relative_to(tree))] = ("whiteout", info.st_rdev)
            continue
        content: Any = None
        if stat.S_ISREG(info.st_mode):
            content = path.read_bytes()
        elif stat.S_ISLNK(info.st_mode):
            content = os.readlink(path)
        attributes = {
            name: os.getxattr(path, name, follow_symlinks=False) for name in os.listxattr(path, follow_symlinks=False)
        }
        owner = (info.st_uid, info.st_gid)
        found[str(path.relative_to(tree))] = (info.st_mode, owner, info.st_mtime_ns, info.st_rdev, content, attributes)
    return found


def fill(upper: Path) -> None:
    (upper / "a/b").mkdir(parents=True)
    (upper / "a/file").write_text("one")
    (upper / "a/b/deep").write_text("deep")
    (upper / "a/link").symlink_to("file")
    os.mknod(upper / "gone", stat.S_IFCHR, 0)
    os.mknod(upper / "a/gone too", stat.S_IFCHR, 0)
    os.mkfifo(upper / "fifo")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(upper / "socket"))
    os.setxattr(upper / "a", "trusted.overlay.opaque", b"y")
    os.setxattr(upper / "a/file", "user.note", b"text")
    os.link(upper / "a/file", upper / "a/b/same file")
    os.utime(upper / "a", ns=(1, 1_234_567_890_123_456_789))


def test_one_look_takes_everything(upper: Path, make: Callable[..., Capture]) -> None:
    fill(upper)
    made = make()
    made.settle()
    assert listing(made.tree) == listing(upper)
    assert (made.tree / "a/file").samefile(made.tree / "a/b/same file")


CHANGES: dict[str, Callable[[Path], object]] = {
    "nothing": lambda upper: None,
    "content": lambda upper: (upper / "a/file").write_text("two"),
    "same size": lambda upper: (upper / "a/b/deep").write_text("peed"),
    "mode": lambda upper: (upper / "a/b/deep").chmod(0o600),
    "attribute": lambda upper: os.removexattr(upper / "a", "trusted.overlay.opaque"),
    "new": lambda upper: (upper / "a/b/new").write_text("new"),
    "gone": lambda upper: (upper / "a/b/deep").unlink(),
    "directory gone": lambda upper: shutil.rmtree(upper / "a"),
    "renamed file": lambda upper: (upper / "a/file").rename(upper / "renamed"),
    "renamed directory": lambda upper: (upper / "a").rename(upper / "z"),
    "replaced by rename": lambda upper: (upper / "a/file").rename(upper / "a/b/deep"),
    "swapped": lambda upper: [
        (upper / "a/file").rename(upper / "t"),
        (upper / "a/b/deep").rename(upper / "a/file"),
        (upper / "t").rename(upper / "a/b/deep"),
    ],
    "file to directory": lambda upper: [
        (upper / "fifo").unlink(),
        (upper / "fifo").mkdir(),
        (upper / "fifo/x").touch(),
    ],
    "directory to file": lambda upper: [shutil.rmtree(upper / "a"), (upper / "a").write_text("file")],
    "whiteout to file": lambda upper: [(upper / "gone").unlink(), (upper / "gone").write_text("back")],
    "another name": lambda upper: os.link(upper / "a/b/deep", upper / "another"),
    "one name less": lambda upper: (upper / "a/b/same file").unlink(),
    "symlink": lambda upper: [(upper / "a/link").unlink(), (upper / "a/link").symlink_to("elsewhere")],
}


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("aged", [True, False])
def test_the_second_look_takes_what_differs(
    upper: Path, make: Callable[..., Capture], tmp_path: Path, change: str, aged: bool
) -> None:
    fill(upper)
    if aged:
        age()
    made = make()
    made.prepare()
    CHANGES[change](upper)
    made.settle()
    assert listing(made.tree) == listing(upper)
    if aged and change == "nothing":
        assert made.files_taken == 0
    keep(made, tmp_path)
    age()
    CHANGES["new"](upper) if (upper / "a/b").is_dir() else None
    again = make()
    again.settle()
    assert listing(again.tree) == listing(upper)
    names = [name for name in listing(upper) if (upper / name).is_file() and not (upper / name).is_symlink()]
    for name in names:
        for other in names:
            assert (upper / name).samefile(upper / other) == (again.tree / name).samefile(again.tree / other)


def test_what_is_unchanged_is_a_link_to_the_previous_layer_and_never_to_the_upper(
    upper: Path, make: Callable[..., Capture], tmp_path: Path
) -> None:
    fill(upper)
    age()
    first = make()
    first.settle()
    keep(first, tmp_path)
    (upper / "a/b/deep").write_text("other")
    second = make()
    second.prepare()
    second.settle()
    assert (second.tree / "a/file").samefile(first.tree / "a/file")
    assert not (second.tree / "a/b/deep").samefile(first.tree / "a/b/deep")
    assert not (second.tree / "a/file").samefile(upper / "a/file")
    assert (first.tree / "a/b/deep").read_text() == "deep"


def test_a_previous_layer_that_is_gone_is_no_loss(upper: Path, make: Callable[..., Capture], tmp_path: Path) -> None:
    fill(upper)
    age()
    first = make()
    first.settle()
    keep(first, tmp_path)
    shutil.rmtree(first.tree)
    second = make()
    second.settle()
    assert listing(second.tree) == listing(upper)


def test_stores_through_a_mapping_are_seen(upper: Path, make: Callable[..., Capture], tmp_path: Path) -> None:
    """A mapping's second store leaves size and times as they were: only who has mapped what tells of it."""
    (upper / "mapped").write_bytes(b"a" * 4096)
    with (upper / "mapped").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        memory[0] = ord("b")
        age()
        inode = (upper / "mapped").stat().st_ino
        made = make(find_mapped=lambda: {inode})
        made.prepare()
        before = (upper / "mapped").stat()
        memory[0] = ord("c")
        after = (upper / "mapped").stat()
        assert (before.st_mtime_ns, before.st_ctime_ns) == (after.st_mtime_ns, after.st_ctime_ns)
        made.settle()
        assert (made.tree / "mapped").read_bytes()[:1] == b"c"
        keep(made, tmp_path)
        memory[0] = ord("d")
    again = make()  # it is mapped no more, and was during the previous capture
    again.settle()
    assert (again.tree / "mapped").read_bytes()[:1] == b"d"


def test_a_change_within_the_tick_of_the_first_look_is_seen(
    upper: Path, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on a kernel whose file times stand still for a tick."""
    (upper / "file").write_text("old")
    stood = (upper / "file").stat()
    made = make()
    made.prepare()
    (upper / "file").write_text("new")
    real = store_capture._stamp_of

    def coarse(info: os.stat_result) -> tuple[int, int, int, int]:
        stamp = real(info)
        if stamp[0] != stood.st_ino:
            return stamp
        return (stamp[0], stamp[1], stood.st_mtime_ns, stood.st_ctime_ns)

    monkeypatch.setattr(store_capture, "_stamp_of", coarse)
    made.settle()
    assert (made.tree / "file").read_text() == "new"


def test_a_symlink_put_in_the_way_is_not_followed(
    upper: Path, make: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest replaces a directory by a link to the host's while it is being walked."""
    (tmp_path / "host").mkdir()
    (tmp_path / "host/secret").write_text("secret")
    (upper / "dir").mkdir()
    (upper / "dir/file").write_text("file")
    real = Capture._enter

    def enter(self: Capture, source: int, target: int, name: str, *rest: Any) -> None:
        (upper / "dir").rename(upper / "moved")
        (upper / "dir").symlink_to(tmp_path / "host")
        real(self, source, target, name, *rest)

    monkeypatch.setattr(Capture, "_enter", enter)
    made = make()
    made.prepare()
    assert not (made.tree / "dir/secret").exists()
    monkeypatch.setattr(Capture, "_enter", real)
    made.settle()
    assert listing(made.tree) == listing(upper)


def test_a_symlink_that_becomes_a_file_changes_nothing_on_the_host(
    upper: Path, make: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guest replaces a link to the host's file by a file of its own, between the copy and its attributes."""
    (tmp_path / "host").write_text("secret")
    (tmp_path / "host").chmod(0o600)
    (upper / "link").symlink_to(tmp_path / "host")
    real = tree.copy_metadata

    def copy_metadata(*args: Any, **options: Any) -> None:
        (upper / "link").unlink()
        (upper / "link").write_text("mine")
        (upper / "link").chmod(0o777)
        real(*args, **options)

    monkeypatch.setattr(tree, "copy_metadata", copy_metadata)
    made = make()
    made.prepare()
    assert stat.S_IMODE((tmp_path / "host").stat().st_mode) == 0o600
    monkeypatch.setattr(tree, "copy_metadata", real)
    made.settle()
    assert listing(made.tree) == listing(upper)


def test_a_symlink_that_vanishes_meanwhile_is_not_captured(
    upper: Path, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    (upper / "lock").symlink_to("pid 5")
    real = tree.copy_metadata

    def copy_metadata(*args: Any, **options: Any) -> None:
        (upper / "lock").unlink()
        real(*args, **options)

    monkeypatch.setattr(tree, "copy_metadata", copy_metadata)
    made = make()
    made.prepare()
    monkeypatch.setattr(tree, "copy_metadata", real)
    made.settle()
    assert listing(made.tree) == listing(upper)


def test_a_file_mapped_by_a_name_that_is_gone_is_taken_again(
    upper: Path, make: Callable[..., Capture], tmp_path: Path
) -> None:
    (upper / "a").write_bytes(b"a" * 4096)
    os.link(upper / "a", upper / "b")
    with (upper / "a").open("r+b") as file, mmap.mmap(file.fileno(), 4096) as memory:
        memory[0] = ord("b")
        (upper / "a").unlink()
        os.link(upper / "b", upper / "c")
        age()
        made = make(find_mapped=lambda: {UNKNOWN})
        made.prepare()
        memory[0] = ord("c")
        made.settle()
        assert (made.tree / "b").read_bytes()[:1] == (made.tree / "c").read_bytes()[:1] == b"c"
        keep(made, tmp_path)
        memory[0] = ord("d")
    again = make()
    again.settle()
    assert (again.tree / "b").read_bytes()[:1] == b"d"


def test_a_first_look_without_end_is_broken_off(
    upper: Path, make: Callable[..., Capture], monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(upper)
    monkeypatch.setattr(store_capture, "_PREPARE_SECONDS", -1.0)
    made = make()
    made.prepare()
    assert list(made.tree.iterdir()) == []
    made.settle()
    assert listing(made.tree) == listing(upper)


def test_a_memory_of_before_a_reboot_is_of_no_use(
    upper: Path, make: Callable[..., Capture], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(upper)
    age()
    first = make()
    first.settle()
    keep(first, tmp_path)
    monkeypatch.setattr(store_capture, "boot_id", lambda: "another")
    second = make()
    second.settle()
    assert not (second.tree / "a/file").samefile(first.tree / "a/file")


def test_shared_mappings_are_found_by_what_the_kernel_shows(upper: Path) -> None:
    """Here the upper dir's own device, as before Linux 6.8."""
    (upper / "mapped\nfile").write_bytes(b"a" * 4096)
    (upper / "private").write_bytes(b"a" * 4096)
    with (
        (upper / "mapped\nfile").open("r+b") as one,
        (upper / "private").open("r+b") as other,
        mmap.mmap(one.fileno(), 4096),
        mmap.mmap(other.fileno(), 4096, flags=mmap.MAP_PRIVATE),
    ):
        found = find_shared_mappings([os.getpid()], merged=Path("/proc"), upper=upper)
        assert (upper / "mapped\nfile").stat().st_ino in found
        assert (upper / "private").stat().st_ino not in found
    assert find_shared_mappings([2**22 + 1], merged=Path("/proc"), upper=upper) == set()


def test_more_names_than_two_layers_can_share(upper: Path, make: Callable[..., Capture], tmp_path: Path) -> None:
    """ext4 gives a file 65,000 names: a second layer of 40,000 of them must copy."""
    (upper / "0").write_text("many")
    for number in range(1, 40_000):
        os.link(upper / "0", upper / str(number))
    age()
    first = make()
    first.settle()
    keep(first, tmp_path)
    second = make()
    second.settle()
    for made in (first, second):
        assert (made.tree / "39999").stat().st_nlink == 40_000
    assert not (second.tree / "0").samefile(first.tree / "0")


def test_directories_nested_too_deeply_are_an_error_with_words(upper: Path, make: Callable[..., Capture]) -> None:
    place = upper
    for _ in range(300):
        place = place / "d"
    place.mkdir(parents=True)
    with pytest.raises(OSError, match="nested deeper"):
        make().settle()
