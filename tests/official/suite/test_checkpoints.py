"""Checkpoints, restores, forks."""

from __future__ import annotations

import pytest

from runta import ApiError, CheckpointState, RuntimeStatus

COUNT = (
    "setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.02; done'"
    " >/dev/null 2>&1 </dev/null & until [ -e /tmp/n ]; do sleep 0.02; done"
)


def test_programs_go_on_in_every_fork(client, make, name):
    box = make(name)
    box.exec(COUNT)
    box.exec("echo written > /root/state")
    checkpoint = box.checkpoints.create(name=f"{name}-ck")
    assert (checkpoint.state, checkpoint.kind, checkpoint.display_name) == (CheckpointState.READY, "full", f"{name}-ck")
    at = int(box.exec("cat /tmp/n").stdout_text)
    forks = [make(f"{name}-a", checkpoint_id=checkpoint.id), box.restore(checkpoint.id, name=f"{name}-b")]
    try:
        for fork in forks:
            assert fork.cached_info.status is RuntimeStatus.RUNNING
            assert fork.files.read("/root/state") == b"written\n"
            count = int(fork.exec("cat /tmp/n").stdout_text)
            assert 0 < count < at + 500
            assert int(fork.exec("sleep 0.2; cat /tmp/n").stdout_text) > count
            assert fork.exec("hostname").stdout_text.strip() == fork.name
        forks[0].exec("echo other > /root/state")
        assert forks[1].files.read("/root/state") == box.files.read("/root/state") == b"written\n"
    finally:
        forks[1].delete()


def test_unnamed_ones_belong_to_their_runtime(client, make, name):
    box, other = make(name), make(f"x{name}")
    first, second = box.checkpoints.create(), box.checkpoints.create(name=f"{name}-two")
    assert {one.id for one in box.checkpoints.list()} == {first.id, second.id}
    assert first.display_name.startswith(f"{name}-")
    assert other.checkpoints.list() == []
    assert client.checkpoints.get(second.display_name).id == second.id
    box.checkpoints.delete(first.id)
    assert [one.id for one in box.checkpoints.list()] == [second.id]
    with pytest.raises(ApiError) as gone:
        client.checkpoints.get(first.id)
    assert gone.value.status_code == 404


def test_source_and_checkpoint_may_go(client, make, name):
    box = make(name)
    box.files.write("/root/state", "kept")
    checkpoint = box.checkpoints.create(name=f"{name}-ck")
    box.delete()
    fork = make(f"{name}-f", checkpoint_id=checkpoint.id)
    client.checkpoints.delete(checkpoint.id)
    assert fork.files.read("/root/state") == b"kept"
    with pytest.raises(ApiError) as gone:
        client.runtimes.create(checkpoint_id=checkpoint.id)
    assert gone.value.status_code == 404


def test_refusals(client, make, name):
    box = make(name)
    checkpoint = box.checkpoints.create(name=f"{name}-ck")
    with pytest.raises(ApiError) as fixed:
        client.runtimes.create(checkpoint_id=checkpoint.id, resources={"requests": {"memory_mib": 64, "vcpus": 1}})
    assert (fixed.value.status_code, fixed.value.code) == (422, "invalid_argument")
    box.shutdown()
    with pytest.raises(ApiError) as dead:
        box.checkpoints.create()
    assert (dead.value.status_code, dead.value.code) == (409, "failed_precondition")


def test_wait_later(client, make, name):
    box = make(name)
    begun = box.checkpoints.create(name=f"{name}-ck", wait=False)
    assert client.checkpoints.wait_until_ready(begun.id).state is CheckpointState.READY
