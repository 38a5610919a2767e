"""The service killed at any instant, a full disk, a missing or old CRIU: nothing half, nothing left behind."""

from __future__ import annotations

import contextlib
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from runta import Runta
from runta.errors import ApiError
from tests.host.conftest import House
from tests.host.test_walk import wait_for

DELAYS = (0.01, 0.03, 0.06, 0.1, 0.15, 0.2, 0.3)


def kill_during(house: House, delay: float, work: Callable[[Runta], object]) -> None:
    """Kill the service so many seconds after a request began, and start it again."""

    def ask() -> None:
        with contextlib.suppress(Exception), house.connect() as client:
            work(client)

    thread = threading.Thread(target=ask)
    thread.start()
    time.sleep(delay)
    house.stop(signal.SIGKILL)
    thread.join(30)
    house.start()


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_while_a_checkpoint_is_taken(house: House, runta: Runta, delay: float) -> None:
    source = runta.runtimes.create("source")
    source.exec("setsid sh -c 'while :; do date +%s%N > /tmp/clock; sleep 0.01; done' >/dev/null 2>&1 & sleep 0.1")
    kill_during(house, delay, lambda client: client.runtimes.get("source").checkpoints.create(name="interrupted"))
    with house.connect() as client:
        again = client.runtimes.get("source")
        assert str(again.status()) == "running"
        seen = again.exec("cat /tmp/clock").stdout_text
        wait_for(lambda: again.exec("cat /tmp/clock").stdout_text not in ("", seen))
        for checkpoint in client.checkpoints.list():
            assert str(checkpoint.state) == "ready"
            client.runtimes.create("from-it", checkpoint_id=checkpoint.id).exec("cat /tmp/clock")
        again.checkpoints.create(name="afterwards")


@pytest.mark.parametrize("delay", DELAYS)
def test_killed_while_a_runtime_is_restored(house: House, runta: Runta, delay: float) -> None:
    checkpoint = runta.runtimes.create("source").checkpoints.create(name="origin")
    kill_during(house, delay, lambda client: client.runtimes.create("interrupted", checkpoint_id=checkpoint.id))
    with house.connect() as client:
        states = {runtime.name: str(runtime.status()) for runtime in client.runtimes.list()}
        assert states.pop("source") == "running"
        assert set(states.values()) <= {"running", "error"}, states
        assert client.runtimes.create("afterwards", checkpoint_id=checkpoint.id).exec("true").exit_code == 0


@pytest.mark.parametrize("delay", DELAYS[:4])
def test_killed_while_a_runtime_is_deleted(house: House, runta: Runta, delay: float) -> None:
    runta.runtimes.create("doomed")
    kill_during(house, delay / 4, lambda client: client.runtimes.get("doomed").delete())
    with house.connect() as client:
        states = [str(runtime.status()) for runtime in client.runtimes.list()]
        assert states in ([], ["running"])


@pytest.fixture
def small_house(house_root: Path) -> Iterator[House]:
    """A service whose state lies on a small file system."""
    root = house_root.with_name(f"{house_root.name}-small")
    small = House(root)
    root.mkdir(mode=0o711)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=320m,mode=0711", "small", str(root)], check=True)
    try:
        small.make()
        small.start()
        try:
            yield small
            small.clear()
            assert not small.leaks()
        finally:
            small.stop()
    finally:
        subprocess.run(["umount", str(root)], check=True)
        root.rmdir()


def test_a_full_disk(small_house: House) -> None:
    with small_house.connect() as runta:
        runtime = runta.runtimes.create("hoarder", memory_mib=512)
        assert runtime.exec("head -c 130000000 /dev/urandom > /srv/data; sync").exit_code == 0
        free = shutil.disk_usage(small_house.root).free
        with pytest.raises(ApiError, match="no room"):
            runtime.checkpoints.create(name="too-much")
        assert list(runta.checkpoints.list()) == []
        assert runtime.exec("stat -c %s /srv/data").stdout_text == "130000000\n"
        assert abs(shutil.disk_usage(small_house.root).free - free) < 2_000_000
        runtime.exec("head -c 140000000 /dev/zero > /srv/more")
        refused = small_house.cli("run", "--name", "another", check=False)
        assert refused.returncode == 1
        assert "no room" in refused.stderr
        assert "what to do" in refused.stderr
        runtime.exec("rm /srv/data /srv/more")
        assert str(runtime.checkpoints.create(name="fits").state) == "ready"


@pytest.mark.parametrize(
    ("script", "said"),
    [(None, "CRIU is not installed"), ("#!/bin/sh\necho 'Version: 4.1.1'\n", "CRIU 4.1.1 is too old")],
)
def test_no_criu_or_an_old_one(house: House, tmp_path: Path, script: str | None, said: str) -> None:
    """The service does not start, and says why."""
    empty = {
        "RUNTA_LIB_DIR": str(tmp_path / "lib"),
        "RUNTA_STATE_DIR": str(tmp_path / "s"),
        "RUNTA_RUN_DIR": str(tmp_path / "r"),
    }
    if script:
        program = tmp_path / "lib" / "criu" / "bin" / "criu"
        program.parent.mkdir(parents=True)
        program.write_text(script)
        program.chmod(0o755)
    elif shutil.which("criu"):
        empty["PATH"] = "/nowhere"
    words = [sys.executable, "-m", "runta", "serve"]
    done = subprocess.run(words, env={**house.env, **empty}, capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert said in done.stderr
    assert "make setup" in done.stderr
