"""Images: importing what nobody vouches for, names and ids, and nothing left behind."""

from __future__ import annotations

import bz2
import gzip
import lzma
import os
import stat
import subprocess
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from runta.errors import FailedPrecondition, InternalError, InvalidArgument, KernelError, NotFound
from runta.kernel.rootfs import Rootfs
from runta.layout import Layout
from runta.models import Image
from runta.recipes import Recipe, get_recipe, list_recipes, parse_recipe
from runta.store.acl import encode_acl
from runta.store.images import Images
from runta.store.oci import host_architecture
from tests.unit.archives import MTIME, directory, docker, entry, file, hardlink, oci, sha256, symlink, tar, tree

RECIPE = Recipe(name="tiny", description="for tests", builder="busybox", env={"PATH": "/bin"})
SKELETON = {"proc", "sys", "dev", "run", "run/runta", "tmp", "root", "etc", "etc/resolv.conf"}


class Room(Rootfs):
    """Builds without the host's programs; decompresses with them."""

    def build(self, recipe: Recipe, target: Path) -> None:
        target.mkdir()
        (target / "made-by").write_text(recipe.builder)
        if recipe.description == "fails":
            raise KernelError("mmdebstrap ended with code 25", cause="no network")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    return Layout(tmp_path / "state", tmp_path / "run")


@pytest.fixture
def images(layout: Layout) -> Images:
    return Images(layout, Room(), {"tiny": RECIPE})


@pytest.fixture
def bring(images: Images, layout: Layout, tmp_path: Path) -> Callable[[bytes], tuple[Image, Path]]:
    """Import bytes; gives the image and its tree."""

    def do(content: bytes) -> tuple[Image, Path]:
        path = tmp_path / "archive.tar"
        path.write_bytes(content)
        image = images.import_archive("box", path)
        return image, layout.image_rootfs(image.id)

    return do


@pytest.fixture
def refused(images: Images, layout: Layout, tmp_path: Path) -> Callable[[bytes], InvalidArgument]:
    """Import bytes that must be refused; gives the error, after making sure that nothing was left."""

    def do(content: bytes) -> InvalidArgument:
        path = tmp_path / "archive.tar"
        path.write_bytes(content)
        outside = sorted(tmp_path.rglob("victim*"))
        with pytest.raises(InvalidArgument) as caught:
            images.import_archive("box", path)
        assert images.list() == []
        assert list(layout.staging.iterdir()) == []
        assert sorted(tmp_path.rglob("victim*")) == outside
        assert caught.value.hint
        return caught.value

    return do


# Plain archives


def test_plain_tar_with_mount_points(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    image, rootfs = bring(
        tar([directory("./"), directory("./usr"), file("./usr/hello", b"hi"), symlink("./bin", "usr")])
    )
    found = tree(rootfs)
    assert found["usr/hello"] == "hi"
    assert found["bin"] == "→usr"
    assert set(found) >= SKELETON
    assert image.name == "box"
    assert image.size_bytes > 0
    assert stat.S_IMODE((rootfs / "tmp").stat().st_mode) == 0o1777
    assert stat.S_IMODE(rootfs.stat().st_mode) == 0o755


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, bz2.compress], ids=["gzip", "xz", "bzip2"])
def test_compression_is_found_by_content(
    bring: Callable[[bytes], tuple[Image, Path]], compress: Callable[[bytes], bytes]
) -> None:
    _, rootfs = bring(compress(tar([file("etc/hello", b"hi")])))
    assert (rootfs / "etc/hello").read_text() == "hi"


def zstd(content: bytes) -> bytes:
    return subprocess.run(["zstd", "-qc"], input=content, stdout=subprocess.PIPE, check=True).stdout


def test_zstd(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(zstd(tar([file("etc/hello", b"hi" * 100_000)])))
    assert (rootfs / "etc/hello").stat().st_size == 200_000


def test_zstd_program_is_missing(layout: Layout, tmp_path: Path) -> None:
    (tmp_path / "a.tar.zst").write_bytes(zstd(tar([file("etc/hello")])))
    with pytest.raises(KernelError, match="zstd is not installed"):
        Images(layout, Rootfs(path="/nowhere")).import_archive("box", tmp_path / "a.tar.zst")


@pytest.mark.parametrize("compress", [gzip.compress, lzma.compress, zstd, bytes], ids=["gzip", "xz", "zstd", "plain"])
def test_truncated_archive(refused: Callable[[bytes], InvalidArgument], compress: Callable[[bytes], bytes]) -> None:
    content = compress(tar([file("etc/first", b"1"), file("etc/noise", os.urandom(300_000))]))
    refused(content[: len(content) // 2])


@pytest.mark.parametrize(
    "content", [b"", b"this is no archive at all" * 100, tar([])], ids=["empty", "text", "no entries"]
)
def test_no_archive(refused: Callable[[bytes], InvalidArgument], content: bytes) -> None:
    refused(content)


def test_modes_times_and_hard_links(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    precise = entry("bin/tool", mode=0o755, mtime=f"{MTIME}.123456789")
    _, rootfs = bring(
        tar([directory("bin", mode=0o750), (precise, b"x"), hardlink("bin/same", "bin/tool"), file("bin/z")])
    )
    info = (rootfs / "bin/tool").stat()
    assert info.st_mtime_ns == MTIME * 10**9 + 123456789
    assert (rootfs / "bin/same").stat().st_ino == info.st_ino
    assert stat.S_IMODE((rootfs / "bin").stat().st_mode) == 0o750
    assert (rootfs / "bin").stat().st_mtime == MTIME


def test_user_xattrs_stay_and_overlay_marks_go(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    marked = entry("etc/file", SCHILY__xattr__user__colour="blue", SCHILY__xattr__trusted__overlay__opaque="y")
    _, rootfs = bring(tar([(marked, b"x")]))
    assert os.getxattr(rootfs / "etc/file", "user.colour") == b"blue"
    assert [name for name in os.listxattr(rootfs / "etc/file") if name.startswith("trusted")] == []


def test_acl_of_a_tar_is_the_kernels() -> None:
    value = encode_acl("user::rw-,user:1000:r-x,group::r--,mask::rwx,other::---", "f")
    assert value.hex() == (
        "02000000"
        + "01000600ffffffff"
        + "02000500e8030000"
        + "04000400ffffffff"
        + "10000700ffffffff"
        + "20000000ffffffff"
    )


def test_acl_that_names_a_user_is_refused(refused: Callable[[bytes], InvalidArgument]) -> None:
    error = refused(tar([(entry("etc/f", SCHILY__acl__access="user::rw-,user:bob:r--"), b"")]))
    assert "user:bob:r--" in str(error)


def test_fifo_is_made_and_device_left_out(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(tar([(entry("var/pipe", tarfile.FIFOTYPE), b""), (entry("var/null", tarfile.CHRTYPE), b"")]))
    assert stat.S_ISFIFO((rootfs / "var/pipe").stat().st_mode)
    assert not (rootfs / "var/null").exists()


def test_later_entry_replaces_earlier(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(
        tar(
            [
                directory("etc/d"),
                file("etc/d/f", b"1"),
                file("etc/d", b"now a file"),
                file("etc/f", b"1"),
                file("etc/f", b"2"),
            ]
        )
    )
    assert (rootfs / "etc/d").read_text() == "now a file"
    assert (rootfs / "etc/f").read_text() == "2"


def test_whiteout_names_mean_nothing_in_a_plain_tar(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(tar([file("etc/f", b"1"), file("etc/.wh.f")]))
    assert {"etc/f", "etc/.wh.f"} <= set(tree(rootfs))


# Names that climb out


@pytest.mark.parametrize(
    "members",
    [
        [file("/etc/victim", b"x")],
        [file("../victim", b"x")],
        [file("etc/../../victim", b"x")],
        [symlink("out", "/tmp"), file("out/victim", b"x")],
        [symlink("out", ".."), file("out/victim", b"x")],
        [directory("a"), symlink("a/out", "../../.."), file("a/out/victim", b"x")],
        [symlink("a", "b"), symlink("b", "a"), file("a/victim", b"x")],
        [symlink("a", "etc"), symlink("etc", "/etc"), directory("a/victim")],
        [hardlink("etc/victim", "/etc/passwd")],
        [hardlink("etc/victim", "../../../etc/passwd")],
        [symlink("out", "/etc"), hardlink("victim", "out/passwd")],
        [hardlink("etc/victim", "etc/missing")],
        [directory("etc"), hardlink("victim", "etc")],
        [hardlink("victim", ".")],
        [file("etc", b"a file"), file("etc/victim", b"x")],
    ],
    ids=lambda members: ", ".join(f"{member.name}→{member.linkname}" for member, _ in members),
)
def test_refused(refused: Callable[[bytes], InvalidArgument], members: list[tuple[tarfile.TarInfo, bytes]]) -> None:
    assert "victim" in refused(tar(members)).message


def test_symlinks_that_stay_inside_are_followed(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(
        tar([directory("usr/lib"), symlink("lib", "usr/lib"), file("lib/x", b"1"), symlink("var", "./usr/../usr")])
    )
    assert (rootfs / "usr/lib/x").read_text() == "1"
    assert (rootfs / "lib").is_symlink()


def test_symlink_is_replaced_and_not_written_through(
    bring: Callable[[bytes], tuple[Image, Path]], tmp_path: Path
) -> None:
    victim = tmp_path / "victim"
    victim.write_text("whole")
    _, rootfs = bring(tar([symlink("etc/link", str(victim)), file("etc/link", b"inside")]))
    assert (rootfs / "etc/link").read_text() == "inside"
    assert victim.read_text() == "whole"


def test_mount_points_do_not_follow_symlinks(bring: Callable[[bytes], tuple[Image, Path]], tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    _, rootfs = bring(tar([symlink(name, str(outside)) for name in ("run", "etc", "tmp", "dev", "root", "var")]))
    assert list(outside.iterdir()) == []
    assert (rootfs / "run/runta").is_dir()
    assert not (rootfs / "etc").is_symlink()


def test_resolv_conf_is_a_file(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    _, rootfs = bring(tar([symlink("etc/resolv.conf", "../run/systemd/resolve/stub-resolv.conf")]))
    assert not (rootfs / "etc/resolv.conf").is_symlink()


def test_owner_beyond_the_id_range(refused: Callable[[bytes], InvalidArgument]) -> None:
    member = entry("etc/victim")
    member.uid = 70_000
    assert "70000" in str(refused(tar([(member, b"")])))


# Image archives

BASE = tar(
    [
        directory("etc"),
        file("etc/gone", b"1"),
        file("etc/kept", b"content"),
        directory("d"),
        file("d/old"),
        directory("d/sub"),
        file("d/sub/old"),
        file("tree/a/b", b"1"),
    ]
)
TOP = tar(
    [
        file("etc/.wh.gone"),
        directory("d"),
        file("d/new", b"new"),
        directory("d/sub"),
        file("d/sub/new"),
        file("d/.wh..wh..opq"),
        file(".wh.tree"),
        file("etc/.wh.missing"),
        file("nowhere/.wh.x"),
        file(".wh..wh.plnk"),
    ]
)


def check_layers(rootfs: Path) -> None:
    found = tree(rootfs)
    assert found["etc/kept"] == "content"
    assert {"d", "d/new", "d/sub", "d/sub/new"} == {name for name in found if name.split("/")[0] == "d"}
    assert not [name for name in found if ".wh." in name or name.startswith(("tree", "nowhere")) or name == "etc/gone"]


@pytest.mark.parametrize("compress", [False, True], ids=["plain layers", "gzip layers"])
@pytest.mark.parametrize("outer", [bytes, gzip.compress, zstd], ids=["plain", "gzip", "zstd"])
def test_oci_layout(
    bring: Callable[[bytes], tuple[Image, Path]], outer: Callable[[bytes], bytes], compress: bool
) -> None:
    image, rootfs = bring(
        outer(oci([BASE, TOP], env=["PATH=/bin", "A=b=c", "RUNTA_X=1", "odd-name=1"], compress=compress))
    )
    check_layers(rootfs)
    assert image.env == {"PATH": "/bin", "A": "b=c"}


def test_docker_archive(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    image, rootfs = bring(docker([BASE, TOP, TOP], env=["LANG=C"]))
    check_layers(rootfs)
    assert image.env == {"LANG": "C"}


def test_whiteout_hides_only_lower_layers(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    """Whatever the order in the layer."""
    top = tar([file("etc/f", b"new"), file("etc/.wh.f"), file("etc/.wh.g"), file("etc/g", b"new")])
    _, rootfs = bring(oci([tar([file("etc/f", b"old"), directory("etc/g"), file("etc/g/x")]), top]))
    assert {name: text for name, text in tree(rootfs).items() if name in ("etc/f", "etc/g")} == {
        "etc/f": "new",
        "etc/g": "new",
    }


@pytest.mark.parametrize("name", ["etc/.wh...", "etc/.wh..", ".wh."])
def test_whiteout_of_a_strange_name(refused: Callable[[bytes], InvalidArgument], name: str) -> None:
    refused(oci([tar([file("etc/x")]), tar([file(name)])]))


def test_whiteout_through_a_symlink(refused: Callable[[bytes], InvalidArgument], tmp_path: Path) -> None:
    (tmp_path / "victim").mkdir()
    (tmp_path / "victim/victim").touch()
    refused(oci([tar([symlink("out", str(tmp_path / "victim"))]), tar([file("out/.wh.victim")])]))
    refused(oci([tar([symlink("out", str(tmp_path / "victim"))]), tar([file("out/.wh..wh..opq")])]))


@pytest.mark.parametrize("damage", ["layer", "config", "manifest", "diff"])
def test_damaged_blob(refused: Callable[[bytes], InvalidArgument], damage: str) -> None:
    error = refused(oci([BASE], damage=damage))
    assert "damaged" in error.message
    assert "digest" in (error.cause or "")


def test_damaged_docker_layer(refused: Callable[[bytes], InvalidArgument]) -> None:
    assert "layer0/layer.tar in the archive is damaged" in refused(docker([BASE], damage=True)).message


def test_other_architecture(refused: Callable[[bytes], InvalidArgument]) -> None:
    assert "linux/vax" in str(refused(oci([BASE], architecture="vax")))
    assert f"linux/{host_architecture()}" in str(refused(oci([BASE], architecture="vax", platform=False)))


def test_multi_architecture_index(bring: Callable[[bytes], tuple[Image, Path]]) -> None:
    other = {"digest": sha256(b"absent"), "platform": {"os": "linux", "architecture": "vax"}}
    attestation = {"digest": sha256(b"absent too"), "platform": {"os": "unknown", "architecture": "unknown"}}
    _, rootfs = bring(oci([BASE], others=[other, attestation]))
    assert (rootfs / "etc/gone").exists()


def test_several_images(refused: Callable[[bytes], InvalidArgument]) -> None:
    assert "app:1, app:1" in str(refused(docker([BASE], count=2)))
    another = {"digest": sha256(b"x"), "platform": {"os": "linux", "architecture": host_architecture()}}
    assert "more than one image" in str(refused(oci([BASE], others=[another])))


def test_missing_blob(refused: Callable[[bytes], InvalidArgument]) -> None:
    another = {"digest": sha256(b"x")}
    content = tar([file("index.json", f'{{"manifests": [{{"digest": "{another["digest"]}"}}]}}'.encode())])
    assert "not complete" in refused(content).message


@pytest.mark.parametrize("digest", ["sha256:../../etc/passwd", "md5:0", "", 7])
def test_strange_digest(refused: Callable[[bytes], InvalidArgument], digest: object) -> None:
    content = (
        f'{{"manifests": [{{"digest": {digest if isinstance(digest, int) else chr(34) + str(digest) + chr(34)}}}]}}'
    )
    refused(tar([file("index.json", content.encode())]))


@pytest.mark.parametrize("content", [b"{}", b"[]", b"not json", b'{"manifests": 7}', b'{"manifests": []}'])
def test_strange_index(refused: Callable[[bytes], InvalidArgument], content: bytes) -> None:
    refused(tar([file("index.json", content)]))
    refused(tar([file("manifest.json", content)]))


# Names, ids, recipes


def test_build_and_get_by_name_or_id(images: Images, layout: Layout) -> None:
    first, second = images.build("tiny"), images.build("tiny")
    assert [image.id for image in images.list()] == [first.id, second.id]
    assert images.get("tiny") == second
    assert images.get(first.id) == first
    assert images.get("tiny").env == {"PATH": "/bin"}
    assert stat.S_IMODE(layout.image(first.id).stat().st_mode) == 0o700
    assert list(layout.staging.iterdir()) == []


def test_ensure_builds_once(images: Images) -> None:
    first, built = images.ensure("tiny")
    assert built
    assert images.ensure("tiny") == (first, False)


def test_unknown_image_says_what_there_is(images: Images) -> None:
    images.build("tiny")
    with pytest.raises(NotFound) as caught:
        images.get("tinny")
    assert "did you mean tiny?" in str(caught.value)
    assert "runta image build" in str(caught.value)


def test_unknown_recipe_names_the_known(images: Images) -> None:
    with pytest.raises(InvalidArgument, match="recipes: tiny"):
        images.build("huge")


def test_failed_build_leaves_nothing(layout: Layout) -> None:
    images = Images(layout, Room(), {"bad": Recipe(name="bad", description="fails", builder="busybox")})
    with pytest.raises(KernelError, match="code 25"):
        images.build("bad")
    assert images.list() == []
    assert list(layout.staging.iterdir()) == []


def test_image_in_use_stays(images: Images, layout: Layout) -> None:
    image = images.build("tiny")
    with pytest.raises(FailedPrecondition, match="box-1 stands on it"):
        images.remove("tiny", lambda image_id: ["box-1"] if image_id == image.id else [])
    assert images.list() == [image]
    images.remove("tiny", lambda _: [])
    assert images.list() == []
    assert not layout.image(image.id).exists()
    assert list(layout.staging.iterdir()) == []


def test_bad_name(images: Images, tmp_path: Path) -> None:
    (tmp_path / "a.tar").write_bytes(tar([file("etc/x")]))
    with pytest.raises(InvalidArgument, match="is not a name"):
        images.import_archive("../x", tmp_path / "a.tar")


def test_damaged_description(images: Images, layout: Layout) -> None:
    image = images.build("tiny")
    (layout.image(image.id) / "image.json").write_text("{")
    with pytest.raises(InternalError, match="can't be read"):
        images.list()


def test_recipes_of_the_package() -> None:
    recipes = list_recipes()
    assert {"busybox", "debian"} <= set(recipes)
    assert "python3" in recipes["debian"].packages
    assert get_recipe("busybox", recipes).builder == "busybox"


@pytest.mark.parametrize("text", ["name =", 'name = "x"', 'name = "x"\ndescription = ""\nbuilder = "magic"'])
def test_bad_recipe(text: str) -> None:
    with pytest.raises(InternalError):
        parse_recipe(text)
