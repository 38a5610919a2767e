"""What a runtime does, whether it was started, restored or forked."""

from __future__ import annotations

import hashlib
import time

import pytest

from runta import Runta
from runta.errors import ApiError
from tests.host.conftest import House
from tests.host.test_walk import wait_for


@pytest.fixture
def box(bring_up):
    return bring_up()


def test_commands(box) -> None:
    result = box.exec("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout, result.stderr) == (3, b"out\n", b"err\n")
    assert box.exec(["sh", "-c", "echo $X; pwd"], env={"X": "value"}, cwd="/usr").stdout_text == "value\n/usr\n"
    assert box.exec("cat", stdin=b"a" * 3_000_000).stdout == b"a" * 3_000_000
    assert box.exec(["no-such-program"]).exit_code == 127
    assert box.exec(["/etc/passwd"]).exit_code == 126
    assert box.exec("kill -TERM $$").exit_code == 143
    assert box.exec("sleep 30", timeout=0.2).exit_code == 124


def test_output_is_complete(box) -> None:
    result = box.exec("head -c 20000000 /dev/urandom > /tmp/r; cat /tmp/r", max_output_bytes=30_000_000)
    assert hashlib.sha256(result.stdout).hexdigest() == box.exec("sha256sum < /tmp/r").stdout_text.split()[0]


def test_what_outlives_a_command(box) -> None:
    box.exec("sleep 300 & echo $! > /tmp/plain; setsid sleep 300 & sleep 0.1; pgrep -n sleep > /tmp/own")
    assert box.exec("kill -0 $(cat /tmp/plain)").exit_code != 0
    assert box.exec("kill -0 $(cat /tmp/own)").exit_code == 0


def test_files(box, tmp_path) -> None:
    box.files.write("/srv/deep/er/file", b"content", executable=True)
    assert box.files.read("/srv/deep/er/file") == b"content"
    assert box.exec("stat -c '%a %u %g' /srv/deep/er/file").stdout_text == "755 0 0\n"
    tree = tmp_path / "tree"
    (tree / "sub").mkdir(parents=True)
    (tree / "sub" / "x").write_bytes(b"x" * 100_000)
    (tree / "link").symlink_to("sub/x")
    box.files.upload(tree, "/srv/tree")
    assert box.exec("cat /srv/tree/link | wc -c; stat -c %u /srv/tree/sub/x").stdout_text == "100000\n0\n"
    box.exec("echo inside > /srv/tree/new; chown 1000:1000 /srv/tree/new")
    box.files.download("/srv/tree", tmp_path / "back")
    assert (tmp_path / "back" / "new").read_text() == "inside\n"
    with pytest.raises(ApiError) as missing:
        box.files.read("/no/such/file")
    assert missing.value.status_code == 404


def test_names_can_not_lead_out_of_the_runtime(box) -> None:
    box.exec("ln -s /../../../../etc /tmp/up; ln -s / /tmp/root")
    assert box.files.read("/tmp/up/os-release") == box.files.read("/etc/os-release")
    box.files.write("/tmp/root/../../../../tmp/probe", b"inside")
    assert box.exec("cat /tmp/probe").stdout_text == "inside"


def test_isolation(box) -> None:
    assert box.exec("cat /proc/self/uid_map").stdout_text.split()[1] != "0"
    assert box.exec("grep NoNewPrivs /proc/self/status").stdout_text.split() == ["NoNewPrivs:", "1"]
    assert box.exec("cat /proc/kcore | head -c 1 | wc -c").stdout_text == "0\n"
    assert box.exec("echo 1 > /proc/sys/kernel/panic").exit_code != 0
    assert box.exec("mount -t tmpfs none /mnt").exit_code != 0
    assert box.exec("ls /sys/fs/cgroup").stdout_text == ""
    uring = "import ctypes; l = ctypes.CDLL(None, use_errno=True); print(l.syscall(425, 1, 0), ctypes.get_errno())"
    assert box.exec(["python3", "-c", uring]).stdout_text == "-1 38\n"
    assert int(box.exec("ls -d /proc/[0-9]* | wc -l").stdout_text) < 10
    assert box.exec("test -S /run/runta/init.sock && rm /run/runta/init.sock").exit_code != 0
    connect = (
        "import socket; s = socket.socket(socket.AF_UNIX); s.connect('/run/runta/init.sock'); print(len(s.recv(10)))"
    )
    refused = box.exec(["python3", "-c", connect])
    assert refused.exit_code != 0 or refused.stdout_text == "0\n"


def test_identity(box) -> None:
    assert box.exec("hostname").stdout_text == f"{box.name}\n"
    assert box.exec("cat /run/runta/generation").stdout_text.split()[1] == box.id
    assert (
        box.exec("python3 -c \"import socket; socket.create_server(('127.0.0.1', 80)); print('bound')\"").stdout_text
        == "bound\n"
    )


def test_limits(bring_up) -> None:
    box = bring_up(memory_mib=128)
    hungry = box.exec(["python3", "-c", "x = bytearray(400 << 20); print(len(x))"])
    assert hungry.exit_code == 137
    assert box.exec("echo alive").stdout_text == "alive\n"


def test_a_fork_bomb_meets_the_limit_of_processes(bring_up) -> None:
    box = bring_up(memory_mib=8192)
    bomb = "import os, signal\ntry:\n    while True:\n        os.fork() == 0 and signal.pause()\nexcept OSError: os.write(1, b'refused')\nos.killpg(0, 9)"
    assert b"refused" in box.exec(["python3", "-S", "-c", bomb], timeout=100).stdout
    assert box.exec("echo alive").stdout_text == "alive\n"


def test_pause_and_resume(runta: Runta, box) -> None:
    box.exec("setsid sh -c 'while :; do date +%s%N > /tmp/clock; sleep 0.01; done' >/dev/null 2>&1 & sleep 0.1")
    box.pause()
    with pytest.raises(ApiError) as refused:
        box.exec("true")
    assert "paused" in str(refused.value)
    checkpoint = box.checkpoints.create(name="while-paused")
    twin = runta.runtimes.create("twin", checkpoint_id=checkpoint.id)
    first = wait_for(lambda: twin.exec("cat /tmp/clock").stdout_text.strip())
    wait_for(lambda: twin.exec("cat /tmp/clock").stdout_text.strip() not in ("", first))
    box.resume()
    before = box.exec("cat /tmp/clock").stdout_text
    wait_for(lambda: box.exec("cat /tmp/clock").stdout_text != before)


def test_shutdown_and_boot_keep_the_disk(box) -> None:
    box.exec("echo kept > /root/kept; setsid sleep 300 >/dev/null 2>&1 &")
    box.shutdown()
    with pytest.raises(ApiError):
        box.exec("true")
    box.boot()
    assert box.exec("cat /root/kept; pgrep -c sleep").stdout_text == "kept\n0\n"


def test_the_service_may_die_and_come_back(house: House, box) -> None:
    import signal as signals

    box.exec(
        "setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/n; sleep 0.02; done' >/dev/null 2>&1 & sleep 0.2"
    )
    started = house.cli(
        "exec", "-d", box.name, "--", "sh", "-c", "for i in $(seq 300); do echo $i; sleep 0.01; done; sleep 300"
    )
    assert started.returncode == 0
    house.stop(signals.SIGKILL)
    time.sleep(0.2)
    house.start()
    with house.connect() as client:
        again = client.runtimes.get(box.name)
        before = int(wait_for(lambda: again.exec("cat /tmp/n").stdout_text.strip()))
        wait_for(lambda: int(again.exec("cat /tmp/n").stdout_text or 0) > before)
        assert "seq 300" in house.cli("tasks", box.name, "--json").stdout
        log = next((house.layout.runtime(box.id).log).glob("task-*.log"))
        wait_for(lambda: log.read_text().split() == [str(i) for i in range(1, 301)])


def test_a_paused_runtime_outlives_the_service(house: House, box) -> None:
    box.exec("echo kept > /tmp/kept")
    box.pause()
    house.stop()
    house.start()
    with house.connect() as client:
        again = client.runtimes.get(box.name)
        assert str(again.status()) == "paused"
        twin = client.runtimes.create("twin", checkpoint_id=again.checkpoints.create(name="of-paused").id)
        assert twin.exec("cat /tmp/kept").stdout_text == "kept\n"
        again.resume()
        assert again.exec("cat /tmp/kept").stdout_text == "kept\n"


def test_a_killed_init_is_noticed(runta: Runta, house: House, box) -> None:
    import json
    import os
    import signal as signals

    pid = json.loads(house.cli("inspect", box.name, "--json").stdout)["init_pid"]
    os.kill(pid, signals.SIGKILL)
    wait_for(lambda: str(box.status()) == "crashed")
    box.boot()
    assert box.exec("echo back").stdout_text == "back\n"
