"""A captured tree is the same after `tar` packed and unpacked it, and after a copy with other ids."""

from __future__ import annotations

import os
import socket
import stat
import struct
import subprocess
import tarfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runta.kernel.archive import pack_tree
from runta.kernel.tree import copy_data
from runta.kernel.walk import walk_tree
from runta.store.flatten import flatten_trees
from runta.store.staging import remove_tree
from tests.host.trees import ACL_ACCESS, ACL_DEFAULT, acl, capture, describe, differences

SHIFT = 100_000
CAPABILITY = "security.capability"
# Revision 2, effective, CAP_NET_RAW (linux/capability.h).
NET_RAW = struct.pack("<IIIII", 0x02000001, 1 << 13, 0, 0, 0)


@pytest.fixture
def scratch(tmp_path: Path) -> Iterator[Path]:
    """A directory that may get deeper than pytest can remove."""
    place = tmp_path / "scratch"
    place.mkdir()
    yield place
    remove_tree(place)


def unpack(archive: Path, target: Path, *, charset: str = "C.UTF-8") -> Path:
    """As pack_tree's documentation says it; tar must have nothing to say, but that times are odd."""
    target.mkdir()
    words = ("tar", "--warning=no-timestamp", "--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", str(archive))
    done = subprocess.run(words, cwd=target, capture_output=True, env={"PATH": os.environ["PATH"], "LC_ALL": charset})
    assert (done.returncode, done.stderr) == (0, b"")
    return target


def holes(path: Path) -> list[tuple[int, int]]:
    """Where a file holds data."""
    found, end, size = [], 0, path.stat().st_size
    with path.open("rb") as file:
        while end < size:
            try:
                start = os.lseek(file.fileno(), end, os.SEEK_DATA)
            except OSError:
                break
            end = os.lseek(file.fileno(), start, os.SEEK_HOLE)
            found.append((start, end))
    return found


def shift_ids(tree: Path) -> None:
    """Give a tree of plain ids those of a user namespace, in owners, ACLs and capabilities."""
    files = {info.st_ino: (tree / name, info) for name, info in [("", tree.lstat()), *walk_tree(tree)]}
    for path, info in files.values():
        xattrs = {
            one: os.getxattr(path, one, follow_symlinks=False) for one in os.listxattr(path, follow_symlinks=False)
        }
        os.chown(path, info.st_uid + SHIFT, info.st_gid + SHIFT, follow_symlinks=False)
        if not stat.S_ISLNK(info.st_mode):
            os.chmod(path, stat.S_IMODE(info.st_mode))
        for one, value in xattrs.items():
            if one in (ACL_ACCESS, ACL_DEFAULT):
                (user,) = struct.unpack_from("<I", value, 4 + 8 + 4)
                value = value[:16] + struct.pack("<I", user + SHIFT) + value[20:]
            elif one == CAPABILITY:
                value = struct.pack("<I", 0x03000001) + value[4:] + struct.pack("<I", SHIFT)
            os.setxattr(path, one, value, follow_symlinks=False)
        os.utime(path, ns=(info.st_atime_ns, info.st_mtime_ns), follow_symlinks=False)


def apart(found: dict[str, tuple[object, ...]]) -> dict[str, tuple[object, ...]]:
    """A description in which every name of a device or a pipe is one of its own, as tar has it."""
    return {
        name: (*what[:-1], what[-1] if what[0][:-4] in ("0o100", "0o120") else None) for name, what in found.items()
    }


def assert_survives(tree: Path, scratch: Path) -> None:
    """Through tar, and through a copy of shifted ids."""
    expected = describe(tree)
    assert pack_tree(tree, scratch / "t.tar.zst") == []
    for charset in ("C.UTF-8", "C"):
        unpacked = describe(unpack(scratch / "t.tar.zst", scratch / charset, charset=charset))
        assert differences(apart(expected), apart(unpacked)) == {}
    capture(tree, scratch / "same")
    assert differences(expected, describe(scratch / "same")) == {}
    shift_ids(scratch / "same")
    assert describe(scratch / "same")[""][1] == (SHIFT, SHIFT)
    capture(scratch / "same", scratch / "plain", shift=SHIFT)
    assert differences(expected, describe(scratch / "plain")) == {}


def name_files(tree: Path) -> None:
    names = [b"-rf", b"--help", b"new\nline", b"\xff\xfe\x80", b"a b ", b" ", b"dot.", b"dots...", b"...", b"\\n", b"*",
             b"tab\t", b"'\"", "ü€".encode(), b"%41", b"a=b", b"n" * 255, b"\xe9" * 255, b"@LongLink", b"\x01\x7f"]  # fmt: skip
    for name in names:
        (tree / os.fsdecode(name)).write_bytes(name)
        (tree / os.fsdecode(name[:250] + b".dir")).mkdir()
        (tree / os.fsdecode(name[:250] + b".dir") / os.fsdecode(name)).symlink_to(os.fsdecode(name))
        os.link(tree / os.fsdecode(name), tree / os.fsdecode(name[:250] + b".dir") / "link")


def make_kinds(tree: Path) -> None:
    os.mkfifo(tree / "pipe", 0o622)
    os.mknod(tree / "null", 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    os.mknod(tree / "disk", 0o660 | stat.S_IFBLK, os.makedev(254, 70_000))
    for name in ("gone", "gone2"):
        os.mknod(tree / name, stat.S_IFCHR, 0)
    (tree / "empty").touch()
    (tree / "dangling").symlink_to("/nowhere/" + "x" * 4086)
    (tree / "up").symlink_to("../../..")
    for name in ("pipe", "null", "gone", "up"):
        os.link(tree / name, tree / f"{name}.link", follow_symlinks=False)


def set_modes(tree: Path) -> None:
    for mode in (0, 0o1, 0o4755, 0o2755, 0o6711, 0o1777, 0o7777, 0o2000):
        (tree / f"f{mode:o}").write_text(f"{mode:o}")
        os.chown(tree / f"f{mode:o}", 65_535, 65_534)
        os.chmod(tree / f"f{mode:o}", mode)
        (tree / f"d{mode:o}").mkdir()
        (tree / f"d{mode:o}" / "in").write_text("in")
        os.chown(tree / f"d{mode:o}", 1, 65_535)
        os.chmod(tree / f"d{mode:o}", mode)
    (tree / "link").symlink_to("f0")
    os.chown(tree / "link", 12, 13, follow_symlinks=False)


def set_acls(tree: Path) -> None:
    for name in ("with", "without"):
        (tree / name / "sub").mkdir(parents=True)
        (tree / name / "file").write_text(name)
        os.mkfifo(tree / name / "pipe", 0o604)
    os.setxattr(tree / "with", ACL_DEFAULT, acl(65_535))
    os.setxattr(tree / "with", ACL_ACCESS, acl(0))
    os.setxattr(tree / "without/file", ACL_ACCESS, acl(7, bits=2))
    os.setxattr(tree / "without/pipe", ACL_ACCESS, acl(8))
    os.setxattr(tree / "without/sub", ACL_DEFAULT, acl(9))
    os.setxattr(tree, ACL_DEFAULT, acl(10))


def set_capabilities(tree: Path) -> None:
    for name, owner in (("ping", 0), ("other", 1000)):
        (tree / name).write_text("program")
        os.chown(tree / name, owner, owner)
        os.chmod(tree / name, 0o4755)
        os.setxattr(tree / name, CAPABILITY, NET_RAW)


def set_xattrs(tree: Path) -> None:
    (tree / "one").touch()
    os.setxattr(tree / "one", "user.long", os.urandom(3900))
    (tree / "many").mkdir()
    for number in range(50):
        os.setxattr(tree / "many", f"user.number{number}", b"%d\0\n" % number * 8)
    (tree / "odd").touch()
    for name in ("user.a=b", "user.p%c", "user.new\nline", "user." + "n" * 250, "user.ü"):
        os.setxattr(tree / "odd", name, name.encode())
    os.setxattr(tree / "odd", "user.empty", b"")
    (tree / "link").symlink_to("odd")
    os.setxattr(tree / "link", "trusted.mine", b"a link's own", follow_symlinks=False)


def set_marks(tree: Path) -> None:
    for name, mark, value in (
        ("opaque", "opaque", b"y"),
        ("moved", "redirect", b"/usr/\xff\n/there"),
        ("beside", "redirect", "ü here".encode()),
    ):
        (tree / name / "in").mkdir(parents=True)
        os.setxattr(tree / name, f"trusted.overlay.{mark}", value)
        os.mknod(tree / name / "gone", stat.S_IFCHR, 0)


def set_times(tree: Path) -> None:
    second = 10**9
    for index, time in enumerate(
        (0, 1, -1, -second - 1, -(2**31) * second, 2**31 * second + 123_456_789, 2**33 * second + 999_999_999)
    ):
        (tree / f"d{index}" / "sub").mkdir(parents=True)
        (tree / f"d{index}" / "f").touch()
        (tree / f"d{index}" / "absolute").symlink_to("/absolute")
        for name in ("f", "absolute", "sub", ""):
            os.utime(tree / f"d{index}" / name, ns=(time, time), follow_symlinks=False)
    os.utime(tree, ns=(5, 5))


def make_sparse(tree: Path) -> None:
    for name, size, data in (
        ("hole", 1 << 20, ()),
        ("huge", 1 << 40, (0, 1 << 30, (1 << 40) - 5)),
        ("middle", 1 << 20, (300_000,)),
        ("ends", 9 << 12, (0, 8 << 12)),
        ("x" * 200, 1 << 20, (1 << 19,)),
    ):
        with (tree / name).open("wb") as file:
            for offset in data:
                os.pwrite(file.fileno(), b"data", offset)
            file.truncate(size)
        os.setxattr(tree / name, "user.sparse", b"yes")
    os.link(tree / "hole", tree / "hole2")


def nest(tree: Path) -> None:
    """As deep as a capture goes."""
    place = tree / "/".join(["d"] * 249)
    os.makedirs(place)
    (place / "leaf").write_text("deep")


EXAMPLES: list[Callable[[Path], None]] = [
    name_files, make_kinds, set_modes, set_acls, set_capabilities, set_xattrs, set_marks, set_times, nest,
]  # fmt: skip


@pytest.mark.parametrize("make", EXAMPLES, ids=lambda make: make.__name__)
def test_odd_trees_survive(scratch: Path, make: Callable[[Path], None]) -> None:
    tree = scratch / "tree"
    tree.mkdir()
    make(tree)
    assert_survives(tree, scratch)


def test_holes_are_kept(tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    tree.mkdir()
    make_sparse(tree)
    pack_tree(tree, tmp_path / "t.tar.zst")
    unpack(tmp_path / "t.tar.zst", tmp_path / "unpacked")
    capture(tree, tmp_path / "copy")
    for path in tree.iterdir():
        for other in (tmp_path / "unpacked" / path.name, tmp_path / "copy" / path.name):
            assert other.stat().st_size == path.stat().st_size
            assert other.stat().st_blocks == path.stat().st_blocks, path.name[:20]
            assert holes(other) == holes(path), path.name[:20]
    assert (tmp_path / "unpacked/hole").samefile(tmp_path / "unpacked/hole2")


def test_sixty_thousand_names_of_one_file(tmp_path: Path) -> None:
    tree, count = tmp_path / "tree", 60_000
    tree.mkdir()
    (tree / "0").write_text("many")
    for number in range(1, count):
        os.link(tree / "0", tree / str(number))
    pack_tree(tree, tmp_path / "t.tar.zst")
    unpack(tmp_path / "t.tar.zst", tmp_path / "unpacked")
    capture(tree, tmp_path / "copy")
    for place in ("unpacked", "copy"):
        assert {entry.stat().st_nlink for entry in os.scandir(tmp_path / place)} == {count}


def test_a_link_remap_that_vanishes_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """CRIU makes and removes such names while the copy runs, here right after the content was read."""
    tree = tmp_path / "tree"
    tree.mkdir()
    (tree / "link_remap.1").write_text("open file")
    os.link(tree / "link_remap.1", tree / "other")

    def copy_and_remove(reader: int, writer: int, size: int) -> None:
        copy_data(reader, writer, size)
        (tree / "link_remap.1").unlink(missing_ok=True)

    monkeypatch.setattr("runta.store.capture.copy_data", copy_and_remove)
    capture(tree, tmp_path / "copy")
    assert (tmp_path / "copy/other").read_text() == "open file"


def test_sockets_are_left_out_and_told_of(tmp_path: Path) -> None:
    """Tar knows no sockets."""
    tree = tmp_path / "tree"
    (tree / "run/a b\n").mkdir(parents=True)
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as other:
        one.bind(str(tree / "run/s"))
        other.bind(str(tree / "run/a b\n/-t"))
    os.chmod(tree / "run/s", 0o600)
    capture(tree, tmp_path / "copy")
    assert differences(describe(tree), describe(tmp_path / "copy")) == {}
    assert pack_tree(tree, tmp_path / "t.tar.zst") == ["run/a b\n/-t", "run/s"]
    assert sorted(describe(unpack(tmp_path / "t.tar.zst", tmp_path / "unpacked"))) == ["", "run", "run/a b\n"]


def test_trees_deeper_than_a_path_is_long(scratch: Path) -> None:
    """They are flattened, packed and removed; tar itself does not unpack such names."""
    tree = scratch / "tree"
    tree.mkdir()
    names = ["n" * 100] * 99 + ["\udcff"] * 99
    fd = os.open(tree, os.O_PATH)
    for name in names:
        os.mkdir(name, dir_fd=fd)
        below = os.open(name, os.O_PATH, dir_fd=fd)
        os.close(fd)
        fd = below
    for name in ("leaf", "tree"):
        os.close(os.open(name, os.O_CREAT | os.O_WRONLY, 0o640, dir_fd=fd))
    os.utime("leaf", ns=(1, 1), dir_fd=fd)
    os.link("leaf", "other", src_dir_fd=fd, dst_dir_fd=fd)
    os.close(fd)
    expected = _outline(tree)
    flatten_trees([tree], scratch / "flat")
    assert expected == _outline(scratch / "flat")
    pack_tree(tree, scratch / "t.tar")
    deepest = "/".join((".", *names, "leaf"))
    listing = subprocess.run(("zstd", "-dcq", scratch / "t.tar"), capture_output=True, check=True).stdout
    (scratch / "plain.tar").write_bytes(listing)
    with tarfile.open(scratch / "plain.tar", errors="surrogateescape") as archive:
        assert deepest in archive.getnames()
    for name in ("tree", "flat"):
        remove_tree(scratch / name)
        assert not (scratch / name).exists()


def _outline(tree: Path) -> dict[str, tuple[int, int, int]]:
    return {
        name: (info.st_mode, info.st_size if stat.S_ISREG(info.st_mode) else 0, info.st_mtime_ns)
        for name, info in walk_tree(tree)
    }


def test_removing_leaves_what_links_lead_to(tmp_path: Path) -> None:
    (tmp_path / "kept/in").mkdir(parents=True)
    (tmp_path / "tree/deep/er").mkdir(parents=True)
    (tmp_path / "tree/deep/er/link").symlink_to(tmp_path / "kept")
    remove_tree(tmp_path / "tree")
    remove_tree(tmp_path / "tree")
    (tmp_path / "link").symlink_to(tmp_path / "kept")
    with pytest.raises(NotADirectoryError):
        remove_tree(tmp_path / "link")
    assert [path.name for path in (tmp_path / "kept").iterdir()] == ["in"]


TIMES = st.integers(-(2**31) * 10**9, 2**33 * 10**9)
NAMES = (
    st.binary(min_size=1, max_size=30)
    .map(lambda name: name.replace(b"/", b"_").replace(b"\0", b"-"))
    .filter(lambda name: name not in (b".", b".."))
)
ENTRIES = st.fixed_dictionaries({
    "name": NAMES,
    "kind": st.sampled_from(("file", "file", "directory", "directory", "symlink", "pipe", "whiteout", "link")),
    "content": st.binary(max_size=40),
    "hole": st.integers(0, 100_000),
    "mode": st.integers(0, 0o7777),
    "owner": st.tuples(st.integers(0, 65_535), st.integers(0, 65_535)),
    "xattrs": st.dictionaries(st.sampled_from(("user.a", "user.b=c", "trusted.d")), st.binary(max_size=300)),
    "acl": st.none() | st.integers(0, 65_535),
    "time": TIMES,
    "place": st.integers(0, 100),
})  # fmt: skip


@settings(max_examples=80, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(entries=st.lists(ENTRIES, max_size=12))
def test_any_tree_survives(tmp_path_factory: pytest.TempPathFactory, entries: list[dict[str, object]]) -> None:
    root = tmp_path_factory.mktemp("tree")
    try:
        tree = root / "tree"
        tree.mkdir()
        plant(tree, entries)
        assert_survives(tree, root)
    finally:
        remove_tree(root)


def plant(tree: Path, entries: list[dict[str, object]]) -> None:
    """Make the entries, each in one of the directories that came before, and then give them their metadata."""
    made: list[tuple[Path, dict[str, object]]] = []
    for entry in entries:
        directories = [tree, *(path for path, other in made if other["kind"] == "directory")]
        path = directories[entry["place"] % len(directories)] / os.fsdecode(entry["name"])
        files = [other for other, _ in made if not other.is_dir() or other.is_symlink()]
        if not os.path.lexists(path) and make(path, entry, files):
            made.append((path, entry))
    for path, entry in reversed(made):
        decorate(path, entry)


def make(path: Path, entry: dict[str, object], files: list[Path]) -> bool:
    match entry["kind"]:
        case "file":
            with path.open("wb") as file:
                file.seek(entry["hole"])
                file.write(entry["content"])
        case "directory":
            path.mkdir()
        case "symlink":
            path.symlink_to(os.fsdecode(entry["content"].replace(b"\0", b"/")) or "x")
        case "pipe":
            os.mkfifo(path)
        case "whiteout":
            os.mknod(path, stat.S_IFCHR, 0)
        case "link" if files:
            os.link(files[entry["place"] % len(files)], path, follow_symlinks=False)
            return False
        case _:
            return False
    return True


def decorate(path: Path, entry: dict[str, object]) -> None:
    kind = entry["kind"]
    os.chown(path, *entry["owner"], follow_symlinks=False)
    if kind != "symlink":
        os.chmod(path, entry["mode"])
    if entry["acl"] is not None and kind in ("file", "directory", "pipe"):
        os.setxattr(path, ACL_DEFAULT if kind == "directory" else ACL_ACCESS, acl(entry["acl"]))
    for name, value in entry["xattrs"].items() if kind != "whiteout" else ():
        if kind in ("file", "directory") or name.startswith("trusted."):
            os.setxattr(path, name, value, follow_symlinks=False)
    os.utime(path, ns=(entry["time"], entry["time"]), follow_symlinks=False)
