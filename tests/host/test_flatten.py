"""A flat layer shows what its chain shows, on the kernel's own overlay."""

from __future__ import annotations

import os
import random
import shutil
import time
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runta.store.chain import read_redirect
from runta.store.flatten import flatten_trees
from tests.host.trees import ACL_ACCESS, ACL_DEFAULT, History, acl, describe, differences, exchange

IMAGE = """
mkdir -p etc/deep/er usr/bin usr/lib/x empty
for name in etc/a etc/b etc/deep/c etc/deep/er/d usr/bin/tool usr/lib/x/y; do echo image $name > $name; done
ln etc/a etc/hard; ln -s ../a etc/deep/link
"""

CASES: dict[str, list[str]] = {
    "created, changed, deleted": [
        "echo new > etc/n; echo more >> etc/a; rm etc/b",
        "rm etc/n; echo again > etc/b; chmod 2750 etc/deep; chown 7:8 etc/deep/c",
    ],
    "whiteouts outlive the layer they hid": ["echo new > etc/n", "rm etc/n usr/bin/tool", "mkdir etc/n; echo x > etc/n/x"],
    "directory deleted and made again": ["echo z > etc/deep/z; rm -r etc/deep; mkdir etc/deep", "echo 2 > etc/deep/2"],
    "deleted in one layer, made in the next": ["rm -r etc/deep", "mkdir etc/deep; echo n > etc/deep/n", "rm etc/deep/n"],
    "opaque, then merged, then deleted in": [
        "rm -r usr; mkdir -p usr/bin; echo 1 > usr/bin/one; echo 1 > usr/bin/two",
        "rm usr/bin/one; echo 3 > usr/bin/three",
        "echo 4 > usr/four; chmod 700 usr/bin",
    ],
    "an image's directory is gone": ["rm -rf etc usr", "mkdir usr"],
    "file, directory, file": [
        "rm etc/a; mkdir etc/a; echo in > etc/a/in",
        "rm -r etc/a; echo file > etc/a",
        "rm etc/a; mkdir etc/a; echo again > etc/a/again",
    ],
    "directory, file, directory": ["rm -r etc/deep; echo f > etc/deep", "rm etc/deep; mkdir etc/deep; echo g > etc/deep/g"],
    "directory becomes a link": ["rm -r usr/lib; ln -s /etc usr/lib", "rm usr/lib; mkdir usr/lib; echo 1 > usr/lib/a"],
    "renamed beside": ["mv etc/deep etc/moved", "echo n > etc/moved/n; rm etc/moved/c"],
    "renamed at the top": ["mv etc conf", "mv conf/deep conf/down; rm conf/b"],
    "renamed away": ["mv etc/deep usr/deep", "mv usr/deep/er empty/er; echo x > empty/er/x"],
    "renamed again and again": ["mv etc/deep etc/two", "mv etc/two usr/three", "mv usr/three four", "mv four etc/deep"],
    "renamed inside a renamed one": ["mv etc/deep/er etc/deep/under", "mv etc conf", "mv conf/deep/under usr/under", "mv usr u"],
    "moved into one that moves": ["mv etc/deep usr/lib/deep", "mv usr/lib lib", "rm lib/deep/c; mv lib/deep/er lib/er", "mv lib etc/lib"],
    "a new one at the old name": ["mv etc/deep etc/old; mkdir etc/deep; echo n > etc/deep/n", "rm etc/old/c; mv etc/old usr/old"],
    "a new one at the old name, a layer later": ["mv etc/deep old", "mkdir etc/deep; echo n > etc/deep/c", "mv etc/deep newer; mv old etc/deep"],
    "names swapped": ["mv etc/deep t; mv usr/lib etc/deep; mv t usr/lib", "echo 1 > etc/deep/x/1; echo 2 > usr/lib/2", "mv etc/deep/x usr/lib/er/x"],
    "renamed and its source deleted": ["mv etc/deep/er er", "rm -r etc", "mkdir -p etc/deep/er; echo new > etc/deep/er/d"],
    "out of an opaque one": ["rm -r usr; mkdir -p usr/lib/x; echo o > usr/lib/x/o", "mv usr/lib/x x; rm -r usr", "rm x/o; echo p > x/p"],
    "an image's directory below an opaque one": ["mv etc/deep keep; rm -r etc; mkdir etc; mv keep etc/keep", "mv etc/keep etc/kept; rm etc/kept/c"],
    "made, filled, and renamed a layer later": ["mkdir -p n/m; echo 1 > n/m/1; echo 2 > n/m/2", "mv n/m m; rm m/1", "mv m etc/m", "mv etc e"],
    "renamed back to where it was": ["mv etc/deep d", "rm d/c", "mv d etc/deep", "echo c > etc/deep/c"],
    "hard links": ["ln etc/b etc/b2; ln etc/b usr/b3; echo 1 > n; ln n m", "ln n o; rm m; mv usr/b3 b3", "echo more >> n"],
    "links and pipes": ["ln -s a etc/s; mkfifo etc/p; ln etc/p etc/p2; mknod etc/dev c 1 3; ln etc/s etc/s2", "mv etc/s usr/s; rm etc/p"],
    "files replaced by renaming": ["echo t > etc/t; mv etc/t etc/a", "mv etc/b usr/bin/tool", "mv usr/bin/tool etc/b"],
    "nothing changed": ["true", "true"],
    "only the root": ["chmod 711 .; chown 5:6 .", "touch -d '1960-01-01 00:00:00.123456789' ."],
}  # fmt: skip


@pytest.fixture
def history(tmp_path: Path) -> History:
    made = History(tmp_path)
    _run_in(made.image, IMAGE)
    return made


def _run_in(directory: Path, script: str) -> None:
    assert os.spawnlp(os.P_WAIT, "sh", "sh", "-euc", f"cd '{directory}'; {script}") == 0


def assert_same(history: History) -> Path:
    """The flat layer of a history, which shows the same."""
    flat = history.flatten()
    expected = history.show(history.layers)
    assert differences(expected, history.show([flat])) == {}
    return flat


@pytest.mark.parametrize("scripts", CASES.values(), ids=CASES)
def test_a_flat_layer_shows_what_its_chain_shows(history: History, scripts: list[str]) -> None:
    for script in scripts:
        history.add(script)
        assert_same(history)


@pytest.mark.parametrize("scripts", CASES.values(), ids=CASES)
def test_a_flat_layer_takes_part_in_another_chain(history: History, scripts: list[str]) -> None:
    """The older layers are flattened below the newer ones, the newer ones above the older, and flat ones again."""
    for script in scripts:
        history.add(script)
    expected, oldest = history.show(history.layers), history.layers[-1:]
    for count in reversed(range(1, len(history.layers))):
        newer, older = history.layers[:count], history.layers[count:]
        upper, lower = history.root / f"upper{count}", history.root / f"lower{count}"
        flatten_trees(newer, upper)
        assert differences(expected, history.show([upper, *older])) == {}
        flatten_trees([history.layers[count], *oldest] if oldest != older else older, lower)
        assert differences(expected, history.show([*newer, lower])) == {}
        assert differences(expected, history.show([upper, lower])) == {}
        oldest = [lower]
    flatten_trees([history.layers[0], *oldest], history.root / "all")
    assert differences(expected, history.show([history.root / "all"])) == {}


def test_the_image_is_hidden_only_where_it_has_to_be(history: History) -> None:
    history.add("mv etc/deep etc/moved; rm usr/bin/tool; mkdir n")
    flat = assert_same(history)
    assert read_redirect(flat / "etc/moved") == "deep"
    assert os.listxattr(flat / "usr/bin") == []
    assert os.getxattr(flat / "n", "trusted.overlay.opaque") == b"y"


def test_xattrs_and_acls(history: History) -> None:
    def decorate(merged: Path) -> None:
        for path in (merged, merged / "etc", merged / "etc/a", merged / "etc/deep"):
            os.setxattr(path, "user.mine", os.fsencode(path.name) + b"\0\xff")
            os.setxattr(path, ACL_ACCESS, acl(1234))
        os.setxattr(merged / "etc/deep", ACL_DEFAULT, acl(99))
        (merged / "etc/deep/heir").write_text("inherits")

    def undecorate(merged: Path) -> None:
        os.removexattr(merged / "etc", "user.mine")
        os.removexattr(merged / "etc/a", ACL_ACCESS)
        (merged / "etc/deep").rename(merged / "usr/deep")

    history.add(decorate)
    assert_same(history)
    history.add(undecorate)
    history.add("echo x > usr/deep/x; echo y > etc/y")
    assert_same(history)


def test_directories_exchanged(history: History) -> None:
    history.add(lambda merged: exchange(merged / "etc/deep", merged / "usr/lib"))
    assert_same(history)
    history.add(lambda merged: exchange(merged / "etc/deep", merged / "etc/a"))
    history.add("rm usr/lib/c; echo 1 > etc/a/1")
    assert_same(history)


def test_odd_names(history: History) -> None:
    names = [b"-x", b"new\nline", b"\xff\xfe", b" ", b"dot.", b"comma,colon:", b"back\\slash", b"x" * 255]

    def make(merged: Path) -> None:
        for name in names:
            directory = merged / os.fsdecode(name)
            (directory / "in").mkdir(parents=True)
            (directory / "in" / os.fsdecode(name)).write_bytes(name)

    def move(merged: Path) -> None:
        for name in names:
            (merged / os.fsdecode(name) / "in").rename(merged / os.fsdecode(name) / f"{os.fsdecode(name)[:200]} 2")
            (merged / os.fsdecode(name)).rename(merged / f"{os.fsdecode(name)[:200]} 3")

    history.add(make)
    history.add(move)
    assert_same(history)


def test_the_flat_layer_outlives_its_chain(history: History) -> None:
    for script in CASES["moved into one that moves"]:
        history.add(
            f"{script}; echo {len(history.layers)} > f{len(history.layers)}; ln f{len(history.layers)} g{len(history.layers)}"
        )
    expected = history.show(history.layers)
    flat = history.flatten()
    for layer in history.layers:
        shutil.rmtree(layer)
    assert differences(expected, history.show([flat])) == {}
    assert (flat / "f3").stat().st_nlink == 2


def test_groups_stay_together_on_another_file_system(history: History) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.exists() or shared_memory.stat().st_dev == history.root.stat().st_dev:
        pytest.skip("there is no second file system")
    history.add("echo 1 > n; ln n m; ln -s n s; ln s s2; rm etc/a etc/b; mv etc e")
    history.add("ln n etc; truncate -s 1M sparse; touch -d '2100-01-01 00:00:00.5' m")
    place = shared_memory / f"flat-{os.getpid()}"
    try:
        flatten_trees(history.layers, place)
        assert differences(history.show(history.layers), history.show([place])) == {}
    finally:
        shutil.rmtree(place)


def test_groups_stay_together_where_links_run_out(tmp_path: Path) -> None:
    """More names than half of what the file system takes: a second set of them on the same file would not fit."""
    layer, count = tmp_path / "layer", 40_000
    layer.mkdir()
    (layer / "0").write_text("many")
    for number in range(1, count):
        os.link(layer / "0", layer / str(number))
    (layer / "single").write_text("one")
    flatten_trees([layer], tmp_path / "flat")
    assert {entry.stat().st_ino for entry in os.scandir(tmp_path / "flat") if entry.name != "single"} == {
        (tmp_path / "flat/7").stat().st_ino
    }
    assert (tmp_path / "flat/7").stat().st_nlink == count
    assert (tmp_path / "flat/7").read_text() == "many"
    assert (tmp_path / "flat/single").stat().st_ino == (layer / "single").stat().st_ino


def test_the_target_must_be_new(history: History) -> None:
    history.add("true")
    with pytest.raises(FileExistsError):
        flatten_trees(history.layers, history.layers[0])


def test_a_long_chain_takes_seconds(tmp_path: Path) -> None:
    history = History(tmp_path)
    for number in range(40):
        layer = tmp_path / f"l{number}"
        for directory in range(25):
            place = layer / f"d{directory}" / f"{(number + directory) % 7}" / "deep"
            place.mkdir(parents=True)
            for file in range(20):
                (place / f"{file * number % 97}").write_text(f"{number}")
        history.layers.insert(0, layer)
    began = time.process_time()
    flatten_trees(history.layers, tmp_path / "flat")
    assert time.process_time() - began < 5
    assert differences(history.show(history.layers), history.show([tmp_path / "flat"])) == {}


NAMES = ("a", "b", "c")
KINDS = (
    "write", "mkdir", "remove", "renew", "rename", "rename", "rename", "exchange",
    "link", "symlink", "chmod", "chown", "xattr", "acl", "append",
)  # fmt: skip
OPERATIONS = st.tuples(st.sampled_from(KINDS), st.integers(0, 40), st.integers(0, 40), st.sampled_from(NAMES))
GENERATIONS = st.lists(st.lists(OPERATIONS, min_size=1, max_size=10), min_size=1, max_size=5)


def _apply(merged: Path, operations: list[tuple[str, int, int, str]]) -> list[str]:
    """Do what can be done, and tell what became of each."""
    return [_outcome(merged, operation) for operation in operations]


def _outcome(merged: Path, operation: tuple[str, int, int, str]) -> str:
    kind, first, second, name = operation
    paths = sorted(path for path in merged.rglob("*"))
    directories = [merged, *(path for path in paths if path.is_dir() and not path.is_symlink())]
    path = paths[first % len(paths)] if paths else merged / "a"
    other = paths[second % len(paths)] if paths else merged / "b"
    new = directories[second % len(directories)] / name
    try:
        _operate(kind, path, other, new, first)
    except OSError as err:
        return f"{kind} {path.name}: {err.strerror}"
    return kind


def _operate(kind: str, path: Path, other: Path, new: Path, number: int) -> None:
    match kind:
        case "write":
            new.write_text(f"{kind} {number}")
        case "mkdir":
            new.mkdir()
        case "remove":
            _remove(path)
        case "renew":
            _remove(path)
            path.mkdir()
        case "rename":
            path.rename(new)
        case "exchange":
            exchange(path, other)
        case "link":
            os.link(path, new, follow_symlinks=False)
        case "symlink":
            new.symlink_to(path.name)
        case "append":
            with path.open("a") as file:
                file.write("more")
        case "chmod":
            os.chmod(path, 0o700 + number)
        case "chown":
            os.chown(path, number, number, follow_symlinks=False)
        case "xattr":
            os.setxattr(path, "user.x", b"%d" % number)
        case "acl":
            os.setxattr(path, ACL_DEFAULT if path.is_dir() else ACL_ACCESS, acl(number))


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink()


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
@given(seed=st.integers(0, 999), generations=GENERATIONS, last=st.lists(OPERATIONS, max_size=10))
def test_any_history(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    generations: list[list[tuple[str, int, int, str]]],
    last: list[tuple[str, int, int, str]],
) -> None:
    """Whatever was done, a flat layer shows it, and the same is done next with the same result."""
    root = tmp_path_factory.mktemp("history")
    try:
        history = History(root)
        _plant(history.image, random.Random(seed), depth=3)
        for operations in generations:
            history.add(lambda merged, operations=operations: _apply(merged, operations) and None)
        flat = assert_same(history)
        with history.mount(history.layers) as chained, history.mount([flat]) as flattened:
            assert _apply(chained, last) == _apply(flattened, last)
            assert differences(describe(chained, times=False), describe(flattened, times=False)) == {}
    finally:
        shutil.rmtree(root)


def _plant(directory: Path, chance: random.Random, *, depth: int) -> None:
    for name in NAMES:
        match chance.choice(("file", "directory", "directory", "nothing")):
            case "file":
                (directory / name).write_text(f"image {name}")
            case "directory":
                (directory / name).mkdir()
                if depth:
                    _plant(directory / name, chance, depth=depth - 1)
