"""fork -n and rollback on the real kernel."""

from __future__ import annotations

import os
import threading
import time
from pathlib import Path

import pytest

from runta import ApiError, Runta, RuntimeStatus
from tests.host.conftest import House
from tests.host.test_crash import kill_during

COUNT = (
    "setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.02; done'"
    " >/dev/null 2>&1 </dev/null & until [ -e /tmp/n ]; do sleep 0.02; done"
)


def count(runtime) -> int:
    return int(runtime.exec("cat /tmp/n").stdout_text)


def test_forks_of_one_instant(runta: Runta, house: House) -> None:
    source = runta.runtimes.create("src", memory_mib=256)
    source.exec(COUNT)
    source.exec("echo before > /root/state")
    forks = [one.result() for one in source.fork(4, name="f")]
    at = count(source)
    assert [fork.name for fork in forks] == ["f-1", "f-2", "f-3", "f-4"]
    for fork in forks:
        assert 0 < count(fork) < at + 500
        assert fork.exec("cat /root/state; hostname").stdout_text == f"before\n{fork.name}\n"
        assert fork.cached_info.resources.limits.memory_mib == 256
    bytes_drawn = {fork.exec("head -c 16 /dev/urandom | od -An -tx1").stdout for fork in forks}
    assert len(bytes_drawn) == 4
    forks[0].exec("echo changed > /root/state")
    assert {fork.exec("cat /root/state").stdout_text for fork in (source, *forks[1:])} == {"before\n"}
    assert runta.checkpoints.list() == []
    source.delete()
    assert count(forks[1]) > 0
    again = forks[1].fork(name="second generation")
    assert again[0].error is not None and again[0].error.status_code == 422
    grandchild = forks[1].fork(name="second-generation")[0].result()
    assert grandchild.exec("cat /root/state").stdout_text == "before\n"


def test_a_fork_that_fails_is_alone(runta: Runta, house: House) -> None:
    source = runta.runtimes.create("src")
    runta.runtimes.create("f-2")
    made = source.fork(3, name="f")
    assert [one.error.code if one.error else None for one in made] == [None, "already_exists", None]
    assert made[2].result().exec("true").exit_code == 0


def test_a_fork_costs_little(runta: Runta, house: House) -> None:
    source = runta.runtimes.create("src")
    source.exec("mkdir /srv/many && cd /srv/many && seq 3000 | xargs touch && head -c 50000000 /dev/urandom > /srv/big")
    fork = source.fork(name="f")[0].result()
    assert fork.exec("ls /srv/many | wc -l").stdout_text == "3000\n"
    place = house.layout.runtime(fork.id).root
    used = sum(
        info.st_blocks * 512
        for path in place.rglob("*")
        if not path.is_relative_to(place / "merged") and (info := path.lstat()).st_nlink == 1
    )
    assert used < 200_000, f"{used} bytes"


def test_fork_of_a_paused_runtime(runta: Runta, house: House) -> None:
    source = runta.runtimes.create("src")
    source.exec(COUNT)
    source.pause()
    fork = source.fork(name="f")[0].result()
    assert source.status() is RuntimeStatus.PAUSED
    assert count(fork) > 0
    source.shutdown()
    with pytest.raises(ApiError) as refused:
        source.fork(name="g")
    assert refused.value.status_code == 409


def test_rollback(runta: Runta, house: House) -> None:
    box = runta.runtimes.create("box")
    box.exec(COUNT)
    box.exec("echo good > /root/state; mkdir /srv/kept; ls /root > /srv/kept/list")
    checkpoint = box.checkpoints.create(name="ck")
    at = count(box)
    box.exec("echo bad > /root/state; rm -r /srv/kept; pkill -f 'while :'; echo new > /root/new")
    before = box.cached_info
    box.roll_back(checkpoint.id)
    assert (box.id, box.name, box.cached_info.status) == (before.id, before.display_name, RuntimeStatus.RUNNING)
    assert box.exec("cat /root/state; ls /srv/kept; ls /root; hostname").stdout_text == "good\nlist\nstate\nbox\n"
    assert 0 < count(box) < at + 500
    later = box.checkpoints.create(name="later")
    box.exec("echo worse > /root/state")
    for target in (later, checkpoint):
        box.roll_back(target.id)
        assert box.files.read("/root/state") == b"good\n"
    box.shutdown()
    box.roll_back("ck")
    assert count(box) > 0


def test_rollback_to_what_is_not_its_own(runta: Runta, house: House) -> None:
    box, other = runta.runtimes.create("box"), runta.runtimes.create("other")
    parent = box.checkpoints.create(name="ck")
    fork = runta.runtimes.create("fork", checkpoint_id=parent.id)
    fork.exec("echo x > /root/x")
    fork.roll_back("ck")
    assert fork.exec("ls /root").stdout_text == ""
    with pytest.raises(ApiError, match="does not come from it") as refused:
        other.roll_back("ck")
    assert refused.value.status_code == 409
    assert other.exec("true").exit_code == 0


def test_a_rollback_that_fails_keeps_the_disk(runta: Runta, house: House) -> None:
    """The dump is broken after it was verified: CRIU refuses it."""
    box = runta.runtimes.create("box")
    checkpoint = box.checkpoints.create(name="ck")
    box.exec("echo kept > /root/state")
    dump = house.layout.checkpoint(checkpoint.id).dump
    info = (dump / "inventory.img").stat()
    with (dump / "inventory.img").open("r+b") as file:  # same size and times: only reading it would tell
        file.write(b"\0" * 8)
    os.utime(dump / "inventory.img", ns=(info.st_atime_ns, info.st_mtime_ns))
    with pytest.raises(ApiError):
        box.roll_back("ck")
    assert box.status() is RuntimeStatus.SHUTDOWN
    box.boot()
    assert box.files.read("/root/state") == b"kept\n"


@pytest.mark.parametrize("delay", [0.01, 0.05, 0.1, 0.2, 0.3])
def test_killed_during_a_rollback(house: House, runta: Runta, delay: float) -> None:
    box = runta.runtimes.create("box")
    box.exec("echo old > /root/state")
    checkpoint = box.checkpoints.create(name="ck")
    box.exec("echo new > /root/state")
    kill_during(house, delay, lambda client: client.runtimes.get("box").roll_back(checkpoint.id))
    with house.connect() as client:
        found = client.runtimes.get("box")
        if found.cached_info.status is not RuntimeStatus.RUNNING:
            found.boot()
        assert found.files.read("/root/state") in (b"old\n", b"new\n")
    assert list(Path(house.layout.replaced).iterdir()) == []


@pytest.mark.parametrize("delay", [0.02, 0.1, 0.2, 0.3])
def test_killed_during_a_fork(house: House, runta: Runta, delay: float) -> None:
    runta.runtimes.create("box")
    kill_during(house, delay, lambda client: client.runtimes.get("box").fork(3, name="f"))
    with house.connect() as client:
        assert client.runtimes.get("box").exec("true").exit_code == 0
        assert {str(one.status()) for one in client.runtimes.list()} <= {"running", "error"}


@pytest.mark.parametrize("delay", [0.0, 0.02, 0.05, 0.1])
def test_a_fork_during_a_rollback_is_of_one_state(runta: Runta, house: House, delay: float) -> None:
    """The layers below and the files above belong together, or the fork is refused."""
    box = runta.runtimes.create("box")
    box.exec("echo 1 > /root/a; echo 1 > /root/b")
    old = box.checkpoints.create(name="old")
    later = runta.runtimes.create("later", checkpoint_id=old.id)
    later.exec("echo 2 > /root/a; echo 2 > /root/b")
    newer = later.checkpoints.create(name="newer")
    later.roll_back(newer.id)
    later.exec("echo 3 > /root/a; echo 3 > /root/b")
    asking = threading.Thread(target=lambda: later.roll_back(old.id))
    asking.start()
    time.sleep(delay)
    try:
        with house.connect() as client:
            (fork,) = client.runtimes.get("later").fork(name="fork")
            states = fork.result().exec("cat /root/a /root/b").stdout_text.split()
            assert states in (["1", "1"], ["3", "3"])
    except ApiError as err:
        assert err.status_code in (409, 503), err
    asking.join()
