"""Images as root makes them: owners, file capabilities, setuid bits, device nodes; and the recipes' own."""

from __future__ import annotations

import os
import stat
import subprocess
from pathlib import Path

import pytest

from runta.kernel.rootfs import Rootfs
from runta.layout import Layout
from runta.models import Image
from runta.recipes import list_recipes
from runta.store.images import Images
from tests.unit.archives import docker, entry, file, tar

# linux/capability.h: revision 2, effective, CAP_NET_RAW permitted
CAP_NET_RAW = bytes.fromhex("0100000200200000000000000000000000000000")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def images(layout: Layout) -> Images:
    return Images(layout, Rootfs())


def gnu_tar(tree: Path, target: Path) -> None:
    keep = ["--xattrs", "--xattrs-include=*", "--acls", "--numeric-owner", "--sparse", "--format=posix"]
    subprocess.run(["tar", "-C", tree, *keep, "-I", "zstd", "-cf", target, "."], check=True)


def test_everything_of_a_tree_comes_through(images: Images, layout: Layout, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "bin").mkdir(parents=True)
    (tree / "dev").mkdir()
    ping = tree / "bin/ping"
    ping.write_bytes(b"#!")
    os.chown(ping, 0, 1234)
    ping.chmod(0o6755)
    os.setxattr(ping, "security.capability", CAP_NET_RAW)
    os.setxattr(ping, "user.note", b"\x00\xff\n=binary")
    os.setxattr(ping, "trusted.overlay.origin", b"x")
    os.setxattr(tree / "bin", "trusted.overlay.opaque", b"y")
    (tree / "bin/ping6").hardlink_to(ping)
    shared = tree / "shared"
    shared.mkdir()
    acl = bytes.fromhex(
        "02000000"
        + "01000700ffffffff"
        + "0200070031d40000"
        + "04000500ffffffff"
        + "10000700ffffffff"
        + "20000500ffffffff"
    )
    os.setxattr(shared, "system.posix_acl_access", acl)
    os.setxattr(shared, "system.posix_acl_default", acl)
    os.mknod(tree / "dev/null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    os.mknod(tree / "gone", stat.S_IFCHR, os.makedev(0, 0))
    with (tree / "sparse").open("wb") as sparse:
        sparse.write(b"start")
        sparse.seek(64 << 20)
        sparse.write(b"end")
    link = tree / "link"
    link.symlink_to("bin/ping")
    os.chown(link, 42, 43, follow_symlinks=False)
    os.utime(link, ns=(1, 1_600_000_000_123_456_789), follow_symlinks=False)
    gnu_tar(tree, tmp_path / "tree.tar.zst")

    image = images.import_archive("box", tmp_path / "tree.tar.zst")
    rootfs = layout.image_rootfs(image.id)

    info = (rootfs / "bin/ping").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode), info.st_nlink) == (0, 1234, 0o6755, 2)
    assert info.st_mtime_ns == ping.stat().st_mtime_ns
    assert os.getxattr(rootfs / "bin/ping", "security.capability") == CAP_NET_RAW
    assert os.getxattr(rootfs / "bin/ping", "user.note") == b"\x00\xff\n=binary"
    assert not [name for path in ("bin", "bin/ping") for name in os.listxattr(rootfs / path) if "overlay" in name]
    assert os.getxattr(rootfs / "shared", "system.posix_acl_access") == acl
    assert os.getxattr(rootfs / "shared", "system.posix_acl_default") == acl
    assert list((rootfs / "dev").iterdir()) == []
    assert not (rootfs / "gone").exists()
    assert (rootfs / "sparse").read_bytes() == (tree / "sparse").read_bytes()
    assert (rootfs / "sparse").stat().st_blocks * 512 < 1 << 20
    owner = (rootfs / "link").lstat()
    assert (owner.st_uid, owner.st_gid, owner.st_mtime_ns) == (42, 43, 1_600_000_000_123_456_789)


def test_owners_of_an_image_archive(images: Images, layout: Layout, tmp_path: Path) -> None:
    member = entry("var/data", mode=0o4750)
    member.uid, member.gid = 33, 44
    (tmp_path / "image.tar").write_bytes(docker([tar([(member, b"x")]), tar([file("etc/more")])]))
    image = images.import_archive("app", tmp_path / "image.tar")
    info = (layout.image_rootfs(image.id) / "var/data").stat()
    assert (info.st_uid, info.st_gid, stat.S_IMODE(info.st_mode)) == (33, 44, 0o4750)


def test_nobody_else_reaches_an_image(images: Images, layout: Layout, tmp_path: Path) -> None:
    tmp_path.chmod(0o711)
    (tmp_path / "a.tar").write_bytes(tar([file("etc/hello", b"hi")]))
    image = images.import_archive("box", tmp_path / "a.tar")
    place = layout.image_rootfs(image.id) / "etc/hello"
    done = subprocess.run(["cat", place], user=65534, group=65534, extra_groups=[], capture_output=True, check=False)
    assert done.returncode != 0


def run_inside(rootfs: Path, script: str) -> str:
    done = subprocess.run(
        ["chroot", rootfs, "/bin/sh", "-ec", script],
        env={"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_busybox(images: Images, layout: Layout) -> None:
    image = images.build("busybox")
    rootfs = layout.image_rootfs(image.id)
    assert run_inside(rootfs, ". /etc/profile; whoami; echo a b | awk '{print $2}'; pwd") == "root\nb\n/\n"
    assert image.size_bytes < 4 << 20
    assert image.source == "recipe busybox"


@pytest.fixture(scope="module")
def debian() -> tuple[Image, Path]:
    """The host's own, which set-up has built."""
    layout = Layout(Path("/var/lib/runta"), Path("/run/runta"))
    image = Images(layout, Rootfs()).get("debian")
    return image, layout.image_rootfs(image.id)


def test_debian_has_the_tools(debian: tuple[Image, Path]) -> None:
    image, rootfs = debian
    tools = "bash tar awk python3 curl ps kill setsid stdbuf timeout apt-get"
    assert [tool for tool in tools.split() if not os.path.lexists(rootfs / "bin" / tool)] == []
    assert (rootfs / "sbin/ip").exists()
    assert image.env == dict(list_recipes()["debian"].env)


def test_debian_holds_nothing_of_this_host(debian: tuple[Image, Path]) -> None:
    _, rootfs = debian
    for name in ("etc/resolv.conf", "etc/hostname", "etc/machine-id"):
        assert (rootfs / name).read_bytes() == b""
    for name in ("dev", "tmp", "var/tmp", "var/lib/apt/lists", "proc", "sys", "run/runta"):
        assert list((rootfs / name).iterdir()) == []
    devices = [
        path for path in rootfs.rglob("*") if stat.S_ISCHR(path.lstat().st_mode) or stat.S_ISBLK(path.lstat().st_mode)
    ]
    assert devices == []
