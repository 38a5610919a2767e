"""Memory: restored before it is in, kept without its zeros, shared by forks."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pycriu.images
import pytest

from runta import ApiError, Runta, Runtime
from runta.client.local import inspect_runtime
from runta.kernel.cgroups import find_cgroups
from runta.kernel.criu_rpc import ask_features
from runta.kernel.host import find_criu
from runta.kernel.lazy import find_pager, is_complete
from runta.kernel.process import is_alive
from runta.settings import load_settings
from tests.host.conftest import House
from tests.host.test_survival import ask, plant
from tests.host.test_walk import wait_for

USERFAULTFD = Path("/proc/sys/vm/unprivileged_userfaultfd")
BLOB = "import hashlib; blob = os.urandom({mib} << 20); digest = hashlib.sha256(blob).hexdigest()\n"
SAME = "hashlib.sha256(blob).hexdigest() == digest"


@contextlib.contextmanager
def host_setting(path: Path, value: str) -> Iterator[None]:
    """A setting of the whole host, put back after the block."""
    before = path.read_text().strip()
    path.write_text(value)
    try:
        yield
    finally:
        path.write_text(before)


@pytest.fixture
def userfaultfd() -> Iterator[None]:
    with host_setting(USERFAULTFD, "1"):
        yield


def make_source(runta: Runta, mib: int) -> str:
    """A checkpoint of a process with random memory; its id."""
    source = runta.runtimes.create("big", memory_mib=2048)
    plant(source, BLOB.format(mib=mib))
    checkpoint = source.checkpoints.create(name="big-ck")
    source.delete()
    return checkpoint.id


@contextlib.contextmanager
def held_pager(house: House, runtime_id: str) -> Iterator[int]:
    """A runtime's pager, stopped while there is memory left to bring in; its process group."""
    pager = find_pager(house.layout.runtime(runtime_id).log)
    assert pager is not None
    os.killpg(pager.pid, signal.SIGSTOP)
    try:
        assert is_alive(pager), "all memory was in already"
        assert not is_complete(house.layout.runtime(runtime_id).log)
        yield pager.pid
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(pager.pid, signal.SIGCONT)


def wait_all_in(house: House, runtime_id: str) -> None:
    place = house.layout.runtime(runtime_id)
    wait_for(lambda: is_complete(place.log) and not place.dump.exists())


def test_a_lazy_restore_is_refused_where_the_kernel_has_no_userfaultfd_for_it(house: House, runta: Runta) -> None:
    checkpoint = make_source(runta, 1)
    with host_setting(USERFAULTFD, "0"):
        with pytest.raises(ApiError, match="unprivileged_userfaultfd=1") as refused:
            runta.runtimes.create("lazy", checkpoint_id=checkpoint, lazy=True)
        assert refused.value.status_code == 409
        told = house.cli("snapshot", "restore", "--lazy", "big-ck", "lazy", check=False)
        assert told.returncode == 1
        assert "Operation not permitted" in told.stderr
        assert ask(runta.runtimes.create("eager", checkpoint_id=checkpoint), SAME) is True


def test_lazily_restored_memory_is_complete_and_a_checkpoint_waits_for_it(
    house: House, runta: Runta, userfaultfd: None
) -> None:
    checkpoint = make_source(runta, 512)
    lazy = runta.runtimes.create("lazy", checkpoint_id=checkpoint, lazy=True)
    made: list[str] = []
    with held_pager(house, lazy.id):
        runta.checkpoints.delete(checkpoint)
        capture = threading.Thread(target=lambda: made.append(lazy.checkpoints.create(name="lazy-ck").id))
        capture.start()
        capture.join(1)
        assert capture.is_alive()
    capture.join(60)
    assert made
    wait_all_in(house, lazy.id)
    assert ask(lazy, SAME) is True
    assert ask(runta.runtimes.create("next", checkpoint_id=made[0]), SAME) is True


def test_memory_comes_in_while_the_service_is_gone(house: House, runta: Runta, userfaultfd: None) -> None:
    lazy = runta.runtimes.create("lazy", checkpoint_id=make_source(runta, 512), lazy=True)
    with held_pager(house, lazy.id):
        house.stop(signal.SIGKILL)
    wait_for(lambda: is_complete(house.layout.runtime(lazy.id).log))
    house.start()
    wait_all_in(house, lazy.id)
    with house.connect() as client:
        assert ask(client.runtimes.get("lazy"), SAME) is True


def test_the_next_service_takes_a_pager_over(house: House, runta: Runta, userfaultfd: None) -> None:
    lazy = runta.runtimes.create("lazy", checkpoint_id=make_source(runta, 512), lazy=True)
    with held_pager(house, lazy.id) as group:
        house.stop(signal.SIGKILL)
        threading.Timer(2, os.killpg, (group, signal.SIGCONT)).start()
        house.start()
        with house.connect() as client:
            assert ask(client.runtimes.get("lazy"), SAME) is True
            wait_all_in(house, lazy.id)
            assert client.perform(inspect_runtime("lazy"))["memory"]["complete"] is True


def test_a_pager_that_was_killed_with_the_service_is_missed(house: House, runta: Runta, userfaultfd: None) -> None:
    lazy = runta.runtimes.create("lazy", checkpoint_id=make_source(runta, 512), lazy=True)
    with held_pager(house, lazy.id) as group:
        house.stop(signal.SIGKILL)
        os.killpg(group, signal.SIGKILL)
    house.start()
    with house.connect() as client:
        wait_for(lambda: client.runtimes.get("lazy").cached_info.status == "crashed")
        assert not house.layout.runtime(lazy.id).dump.exists()


def test_a_runtime_whose_pager_is_killed_does_not_go_on_with_zeros(
    house: House, runta: Runta, userfaultfd: None
) -> None:
    lazy = runta.runtimes.create("lazy", checkpoint_id=make_source(runta, 512), lazy=True)
    with held_pager(house, lazy.id) as group:
        os.killpg(group, signal.SIGKILL)
    wait_for(lambda: runta.runtimes.get("lazy").cached_info.status == "crashed")
    assert "memory" in runta.perform(inspect_runtime("lazy"))["error_message"]
    assert not house.layout.runtime(lazy.id).dump.exists()
    lazy.boot()
    assert lazy.exec("true").exit_code == 0


def test_a_runtime_may_be_deleted_before_its_memory_is_in(house: House, runta: Runta, userfaultfd: None) -> None:
    lazy = runta.runtimes.create("lazy", checkpoint_id=make_source(runta, 512), lazy=True)
    with held_pager(house, lazy.id) as group:
        lazy.delete()
        assert not Path(f"/proc/{group}").exists() or Path(f"/proc/{group}/stat").read_text().split()[2] == "Z"


def test_memory_that_holds_zeros_takes_no_room_in_a_checkpoint(house: House, runta: Runta) -> None:
    source = runta.runtimes.create("zeros", memory_mib=1024)
    areas = "untouched = mmap.mmap(-1, 256 << 20); zeros = mmap.mmap(-1, 256 << 20, flags=mmap.MAP_PRIVATE)\n"
    plant(source, areas + "for at in range(0, 256 << 20, 1 << 20): zeros[at:at + (1 << 20)] = bytes(1 << 20)\n")
    checkpoint = source.checkpoints.create(name="zeros-ck")
    pages = [path.stat() for path in house.layout.checkpoint(checkpoint.id).dump.glob("pages-*.img")]
    assert sum(info.st_size for info in pages) > 256 << 20
    assert sum(info.st_blocks for info in pages) * 512 < 32 << 20
    fork = runta.runtimes.create("zeros-fork", checkpoint_id=checkpoint.id)
    assert ask(fork, "not any(zeros[::4096]) and not any(untouched[::4096]) and len(zeros)") == 256 << 20


@pytest.fixture
def hot(house: House) -> Iterator[Path]:
    """The service with its dumps in memory."""
    place = Path(f"/dev/shm/runta-test-{os.getpid()}")
    place.mkdir(mode=0o700)
    house.stop()
    house.extra_env["RUNTA_DUMP_DIR"] = str(place)
    house.start()
    yield place
    house.stop()
    del house.extra_env["RUNTA_DUMP_DIR"]
    house.start()
    place.rmdir()


def test_a_dump_in_memory_moves_to_the_disk(house: House, hot: Path) -> None:
    with house.connect() as client:
        source = client.runtimes.create("hot")
        plant(source, BLOB.format(mib=16))
        checkpoint = source.checkpoints.create(name="hot-ck")
        dump = house.layout.checkpoint(checkpoint.id).dump
        assert not dump.is_symlink()
        assert not list(hot.iterdir())
        assert ask(client.runtimes.create("hot-fork", checkpoint_id=checkpoint.id), SAME) is True


def try_checkpoint(source: Runtime) -> None:
    with contextlib.suppress(ApiError):
        source.checkpoints.create()


def test_forks_are_restored_from_a_dump_that_is_still_in_memory(house: House, hot: Path) -> None:
    with house.connect() as runta:
        box = runta.runtimes.create("box")
        box.exec(
            "echo state > /root/state; setsid sleep 600 >/dev/null 2>&1 & until pgrep -f '^sleep 600'; do sleep 0.02; done"
        )
        forks = [one.result() for one in box.fork(3, name="fork")]
        for fork in forks:
            assert (
                fork.exec("cat /root/state; pgrep -fc '^sleep 600'; hostname").stdout_text == f"state\n1\n{fork.name}\n"
            )
        assert list(hot.iterdir()) == []
        grandchild = forks[0].fork(name="grandchild")[0].result()
        assert grandchild.exec("cat /root/state").stdout_text == "state\n"
    assert list(hot.iterdir()) == []


def test_a_crash_leaves_no_dump_in_memory(house: House, hot: Path) -> None:
    with house.connect() as client:
        source = client.runtimes.create("hot", memory_mib=2048)
        plant(source, BLOB.format(mib=256))
        taking = threading.Thread(target=try_checkpoint, args=(source,))
        taking.start()
        wait_for(lambda: list(hot.iterdir()))
        house.stop(signal.SIGKILL)
        taking.join()
        house.start()
        assert not list(hot.iterdir())
        assert ask(client.runtimes.get("hot"), SAME) is True


KSM = Path("/sys/kernel/mm/ksm")


@pytest.fixture
def merging(house: House) -> Iterator[None]:
    """The service with RUNTA_KSM=1, and a ksmd in a hurry; both as before after the test."""
    with contextlib.ExitStack() as stack:
        for name, value in (("run", "0"), ("pages_to_scan", "20000")):
            stack.enter_context(host_setting(KSM / name, value))
        house.stop()
        house.extra_env["RUNTA_KSM"] = "1"
        house.start()
        yield
        house.stop()
        del house.extra_env["RUNTA_KSM"]
        house.start()


def saved_bytes(runta: Runta, name: str) -> int:
    return int(runta.perform(inspect_runtime(name))["memory"]["ksm_saved_bytes"])


def test_forks_share_equal_memory(house: House, merging: None) -> None:
    assert (KSM / "run").read_text().strip() == "1"
    with house.connect() as client:
        source = client.runtimes.create("twin")
        plant(source, BLOB.format(mib=64))
        checkpoint = source.checkpoints.create(name="twin-ck")
        source.delete()
        forks = [client.runtimes.create(f"twin-{index}", checkpoint_id=checkpoint.id) for index in range(2)]
        wait_for(lambda: all(saved_bytes(client, fork.name) > 60 << 20 for fork in forks), timeout=30)
        assert ask(forks[0], "(blob := bytes(64 << 20)) and len(blob)") == 64 << 20
        assert ask(forks[1], SAME) is True
        again = client.runtimes.create("twin-2", checkpoint_id=forks[1].checkpoints.create(name="twin-ck-2").id)
        assert ask(again, SAME) is True


def test_nothing_is_merged_unless_it_is_wanted(house: House, runta: Runta) -> None:
    before = (KSM / "run").read_text()
    runta.runtimes.create("single")
    pids = find_cgroups().processes(runta.runtimes.get("single").id)
    assert all("ksm_merge_any: no" in Path(f"/proc/{pid}/ksm_stat").read_text() for pid in pids)
    assert "ksm_merge_any: no" in Path(f"/proc/{house.service.pid}/ksm_stat").read_text()
    assert (KSM / "run").read_text() == before
    assert saved_bytes(runta, "single") == 0


def move_into_parent(dump: Path) -> None:
    """Make an incremental dump of a full one: every second run of pages is in `pre` only.

    This kernel can't make one itself; CRIU's format is that of images/pagemap.proto (flags 1: the pages are the
    parent's).
    """
    (dump / "pre").mkdir(mode=0o700)
    (dump / "parent").symlink_to("pre")
    for path in dump.glob("pagemap-[0-9]*.img"):
        with path.open("rb") as file:
            image = pycriu.images.load(file)
        head, *runs = image["entries"]
        pages = dump / f"pages-{head['pages_id']}.img"
        shutil.copy(path, dump / "pre")
        content, kept = pages.read_bytes(), b""
        pages.rename(dump / "pre" / pages.name)
        for index, run in enumerate(runs):
            size = run["nr_pages"] * 4096
            kept += content[:size] if index % 2 else b""
            content = content[size:]
            if not index % 2:
                run.update(flags=1, in_parent=True)
        pages.write_bytes(kept)
        with path.open("wb") as file:
            pycriu.images.dump(image, file)


def renew_digests(root: Path) -> None:
    manifest = json.loads((root / "manifest.json").read_text())
    files = [path for path in root.rglob("*") if path.is_file() and path.name != "manifest.json"]
    for path in files:
        path.chmod(0o644)
    manifest["digests"] = {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
    (root / "manifest.json").write_text(json.dumps(manifest))


def test_an_incremental_dump_is_restored_with_all_its_parts(house: House, runta: Runta) -> None:
    checkpoint = make_source(runta, 16)
    place = house.layout.checkpoint(checkpoint)
    move_into_parent(place.dump)
    renew_digests(place.root)
    assert any("dump/pre/pages-" in name for name in json.loads(place.manifest.read_text())["digests"])
    forks = [runta.runtimes.create(f"parts-{index}", checkpoint_id=checkpoint) for index in range(2)]
    assert [ask(fork, SAME) for fork in forks] == [True, True]
    with host_setting(USERFAULTFD, "1"):
        lazy = runta.runtimes.create("parts-lazy", checkpoint_id=checkpoint, lazy=True)
        assert ask(lazy, SAME) is True
        wait_all_in(house, lazy.id)


def test_no_pre_dump_is_attempted_where_the_kernel_tracks_nothing(house: House, runta: Runta) -> None:
    tracks = ask_features(find_criu(load_settings())).dirty_tracking
    checkpoint = make_source(runta, 1)
    assert (house.layout.checkpoint(checkpoint).dump / "pre").is_dir() is tracks
    assert ask(runta.runtimes.create("next", checkpoint_id=checkpoint), SAME) is True
