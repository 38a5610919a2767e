"""The walk of README, word for word, through the CLI and the SDK."""

from __future__ import annotations

import time

from runta import Runta
from tests.host.conftest import House

COUNTER = "i=0; while :; do i=$((i+1)); echo $i > /tmp/n; sleep 0.05; done"


def wait_for(what, timeout: float = 10.0):
    deadline = time.monotonic() + timeout
    while time.monotonic() < deadline:
        if found := what():
            return found
        time.sleep(0.02)
    raise AssertionError("it did not happen in time")


def test_walk_through_the_cli(house: House) -> None:
    run = house.cli
    run("run", "--name", "src", "--cpus", "2", "--memory", "1024")
    run("exec", "src", "--", "sh", "-lc", "echo hello-from-runtime > /tmp/hello.txt")
    run("exec", "-d", "src", "--", "sh", "-c", COUNTER)
    wait_for(lambda: run("exec", "src", "--", "cat", "/tmp/n", check=False).stdout.strip() not in ("", "1"))
    checkpoint_id = run("snapshot", "create", "src", "ck").stdout.strip()
    assert checkpoint_id in run("snapshot", "ls", "--json").stdout
    at_checkpoint = int(wait_for(lambda: run("exec", "src", "--", "cat", "/tmp/n").stdout.strip()))
    run("snapshot", "restore", "ck", "restored")
    assert run("exec", "restored", "--", "cat", "/tmp/hello.txt").stdout == "hello-from-runtime\n"
    first = int(wait_for(lambda: run("exec", "restored", "--", "cat", "/tmp/n").stdout.strip()))
    assert 1 < first
    wait_for(
        lambda: int(run("exec", "restored", "--", "cat", "/tmp/n").stdout.strip() or 0) > max(first, at_checkpoint)
    )
    run("snapshot", "restore", "ck", "forked")
    forked = int(wait_for(lambda: run("exec", "forked", "--", "cat", "/tmp/n").stdout.strip()))
    restored = int(wait_for(lambda: run("exec", "restored", "--", "cat", "/tmp/n").stdout.strip()))
    assert forked < restored, "the fork counts on its own, from the checkpoint"
    assert run("exec", "forked", "--", "hostname").stdout == "forked\n"


def test_walk_through_the_sdk(house: House, monkeypatch) -> None:
    for name, value in house.env.items():
        if name.startswith("RUNTA_"):
            monkeypatch.setenv(name, value)
    runta = Runta()
    runtime = runta.runtimes.create("src2", vcpus=2, memory_mib=1024)
    runtime.exec("echo hello-from-runtime > /tmp/hello.txt")
    checkpoint = runtime.checkpoints.create(name="ck2")
    assert [(found.id, str(found.state)) for found in runta.checkpoints.list()] == [(checkpoint.id, "ready")]
    restored = runta.runtimes.create("restored2", checkpoint_id=checkpoint.id)
    result = restored.exec("cat /tmp/hello.txt")
    assert result.stdout_text == "hello-from-runtime\n"
    runta.close()
