"""Values: names, ids, records, resources, and what runc and CRIU are told."""

from __future__ import annotations

import json
import struct
import uuid
from dataclasses import replace
from pathlib import Path

import pytest

from runta.engine.bundle import compose_config, compose_criu_options, compose_hook, compose_post_dump
from runta.engine.undo import Undo
from runta.errors import AlreadyExists, FailedPrecondition, InvalidArgument
from runta.kernel.cgroups import find_cgroups
from runta.kernel.criu import explain
from runta.kernel.xattrs import is_kept, shift_xattr
from runta.layout import Layout
from runta.models import (
    Checkpoint,
    CheckpointKind,
    CheckpointState,
    IdMap,
    Resources,
    Runtime,
    RuntimeSpec,
    RuntimeStatus,
    may_follow,
    new_id,
    now,
)
from runta.rules import check_env, check_name, require_revision, suggest
from runta.store.codec import decode, encode
from runta.store.database import Database


def make_runtime(name: str = "one") -> Runtime:
    spec = RuntimeSpec(image="i", ids=IdMap(start=100000), init="d", layers=("l2", "l1"), env={"A": "b"})
    return Runtime(
        id=new_id(),
        name=name,
        status=RuntimeStatus.CREATING,
        desired_status=RuntimeStatus.RUNNING,
        spec=spec,
        created_at=now(),
        updated_at=now(),
    )


def make_checkpoint(name: str = "ck") -> Checkpoint:
    runtime = make_runtime()
    return Checkpoint(
        id=new_id(),
        name=name,
        state=CheckpointState.READY,
        kind=CheckpointKind.FULL,
        spec=runtime.spec,
        source_id=runtime.id,
        source_name="one",
        created_at=now(),
    )


def test_ids_are_uuid_v7_and_sort_by_time() -> None:
    ids = [new_id() for _ in range(100)]
    assert {uuid.UUID(one).version for one in ids} == {7}
    assert [one[:13] for one in ids] == sorted(one[:13] for one in ids)


@pytest.mark.parametrize("name", ["a", "box-1", "A.b_c", "x" * 63])
def test_good_names(name: str) -> None:
    assert check_name(name, "runtime") == name


@pytest.mark.parametrize("name", ["", "-a", ".", "a b", "a/b", "ä", "x" * 64, "a\n", "../x"])
def test_bad_names(name: str) -> None:
    with pytest.raises(InvalidArgument) as refused:
        check_name(name, "runtime")
    assert "what to do" in str(refused.value)


@pytest.mark.parametrize(
    "env",
    [{"1A": "x"}, {"A B": "x"}, {"RUNTA_X": "x"}, {"A": "x" * 8193}, {"A": "\0"}, {f"V{i}": "" for i in range(65)}],
)
def test_bad_environment(env: dict[str, str]) -> None:
    with pytest.raises(InvalidArgument):
        check_env(env)


def test_suggestions() -> None:
    assert suggest("alpa", ["alpha", "beta"]) == "did you mean alpha?"
    assert suggest("zzz", ["alpha", "beta"]) == "there is: alpha, beta"
    assert suggest("zzz", []) is None


def test_no_state_follows_deleting() -> None:
    assert not any(may_follow(RuntimeStatus.DELETING, then) for then in RuntimeStatus)
    assert may_follow(RuntimeStatus.RUNNING, RuntimeStatus.PAUSED)
    assert not may_follow(RuntimeStatus.SHUTDOWN, RuntimeStatus.PAUSED)


def test_revisions() -> None:
    require_revision(make_runtime(), 1)
    require_revision(make_runtime(), None)
    with pytest.raises(FailedPrecondition, match="runtime revision conflict: expected 2, current 1"):
        require_revision(make_runtime(), 2)


@pytest.mark.parametrize("record", [make_runtime(), make_checkpoint()])
def test_records_come_back_from_json(record: Runtime | Checkpoint) -> None:
    text = json.dumps(encode(record))
    assert decode(type(record), json.loads(text)) == record
    newer = {**json.loads(text), "field_of_a_newer_version": 1}
    assert decode(type(record), newer) == record


def test_database(tmp_path: Path) -> None:
    database = Database(tmp_path / "runta.db")
    database.open()
    runtime = make_runtime()
    database.add_runtime(runtime, "key")
    assert database.find_runtime("one") == database.find_runtime(runtime.id) == database.find_by_key("key") == runtime
    with pytest.raises(AlreadyExists):
        database.add_runtime(make_runtime(), "key-2")
    database.save_runtime(replace(runtime, status=RuntimeStatus.RUNNING, name="two"))
    assert database.find_runtime("one") is None
    assert [found.status for found in database.runtimes()] == [RuntimeStatus.RUNNING]
    checkpoint = make_checkpoint()
    database.add_checkpoint(checkpoint)
    with pytest.raises(AlreadyExists):
        database.add_checkpoint(make_checkpoint())
    database.save_checkpoints([replace(checkpoint, source_gone=True)])
    database.remove_runtime(runtime.id)
    assert database.find_by_key("key") is None
    database.close()
    database.open()
    assert [found.source_gone for found in database.checkpoints()] == [True]
    database.close()


def test_undo_runs_in_reverse_and_never_hides_the_cause() -> None:
    done: list[str] = []

    def fail() -> None:
        raise OSError("busy")

    with pytest.raises(ValueError, match="cause") as failed, Undo() as undo:
        undo.push("first", lambda: done.append("first"))
        undo.push("second", fail)
        undo.push("third", lambda: done.append("third"))
        raise ValueError("cause")
    assert done == ["third", "first"]
    assert failed.value.__notes__ == ["undoing second failed too: busy"]
    with Undo() as undo:
        undo.push("kept", lambda: done.append("kept"))
    assert "kept" not in done


def test_config() -> None:
    layout = Layout(Path("/state"), Path("/run/runta"))
    hook = compose_hook(layout.network_fifo, layout.runtime("id").hook_fifo)
    config = compose_config(
        runtime_id="id",
        name="box",
        runtime_dir=layout.runtime("id"),
        resources=Resources(vcpus=2, memory_mib=100, memory_max_mib=200),
        ids=IdMap(start=100000),
        cgroups_path="/runta/id",
        hook=hook,
        limited=True,
    )
    assert config["hooks"]["createRuntime"][0]["args"][-2:] == [
        "/run/runta/network.fifo",
        f"{layout.runtime('id').hook_fifo}",
    ]
    assert json.loads(json.dumps(config)) == config
    linux = config["linux"]
    assert linux["uidMappings"] == linux["gidMappings"] == [{"containerID": 0, "hostID": 100000, "size": 65536}]
    assert linux["resources"] == {
        "memory": {"limit": 200 << 20},
        "cpu": {"quota": 200000, "period": 100000},
        "pids": {"limit": 4096},
    }
    assert all("path" not in namespace for namespace in linux["namespaces"])
    refused = {name for rule in linux["seccomp"]["syscalls"] for name in rule["names"]}
    assert {"io_uring_setup", "io_uring_enter", "io_uring_register"} <= refused
    assert config["process"]["noNewPrivileges"] is True
    assert "CAP_SYS_ADMIN" not in config["process"]["capabilities"]["bounding"]


def test_criu_options() -> None:
    lines = compose_criu_options(Path("/empty"), action_script=Path("/x/y")).splitlines()
    assert {"link-remap", "file-locks", "manage-cgroups=ignore", "empty-ns net", "action-script /x/y"} <= set(lines)
    assert any(line.startswith("ghost-limit ") for line in lines)
    assert "'/a b/upper'" in compose_post_dump(Path("/a b/upper"), Path("/out"))


HYBRID = """22 27 0:21 / /proc rw - proc proc rw
30 27 0:30 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct
31 27 0:31 / /sys/fs/cgroup/freezer rw - cgroup cgroup rw,freezer
32 27 0:32 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""


def test_cgroup_hierarchies() -> None:
    hybrid = find_cgroups(HYBRID)
    assert not hybrid.unified
    assert hybrid.v1["cpuacct"] == Path("/sys/fs/cgroup/cpu,cpuacct")
    assert hybrid.v2 == Path("/sys/fs/cgroup/unified")
    meanwhile = find_cgroups(HYBRID + "99 1 0:44 / /state/log/.criu.cgyard.x/freezer rw - cgroup none rw,freezer\n")
    assert meanwhile == hybrid
    unified = find_cgroups("32 27 0:32 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
    assert unified.unified
    assert unified.path("x") == "/runta/x"


NOISE = "(00.02) Error (criu/util.c:1534): rlimit: Can't setup RLIMIT_NOFILE for self: Operation not permitted\n"


@pytest.mark.parametrize(
    ("line", "said"),
    [
        (
            "(00.1)    5: Error (criu/namespaces.c:460): Can't dump nested user namespace for 42",
            "namespaces of its own",
        ),
        ("(00.1) Error (criu/sk-unix.c:881): Can't dump half of stream unix connection. name: x", "Unix socket"),
        (
            "(00.1) Error (criu/files-ext.c:98): Can't dump file 5 of that type [600] (unknown anon_inode:[io_uring])",
            "io_uring",
        ),
        ("(00.1) Error (criu/files-reg.c:1031): Can't dump ghost file /x of 2000 size, increase limit", "deleted file"),
        ("(00.1) Error (criu/tty.c:1): ctty inheritance detected sid/pgrp 1", "controlling terminal"),
        ("(00.1) Error (criu/files-reg.c:2175): File x has bad size 5 (expect 6)", "differs"),
    ],
)
def test_causes(line: str, said: str) -> None:
    reason = explain(f"{NOISE}{line}\n(00.2) Error (criu/cr-dump.c:1): Dumping FAILED.\n")
    assert said in reason.what
    assert "RLIMIT" not in reason.line


def test_noise_is_never_the_cause() -> None:
    assert "RLIMIT" not in explain(NOISE + "(00.3) Error (criu/x.c:1): something new\n").line
    assert "RLIMIT" not in explain("(00.1) begin\n" + NOISE + "(00.2) done").line


def test_acls_and_capabilities_hold_plain_ids() -> None:
    acl = (
        struct.pack("<I", 2)
        + struct.pack("<HHI", 1, 7, 0xFFFFFFFF)
        + struct.pack("<HHI", 2, 5, 101000)
        + struct.pack("<HHI", 8, 4, 100005)
    )
    plain = shift_xattr("system.posix_acl_access", acl, 100000)
    assert struct.unpack_from("<HHI", plain, 4) == (1, 7, 0xFFFFFFFF)
    assert struct.unpack_from("<HHI", plain, 12) == (2, 5, 1000)
    assert struct.unpack_from("<HHI", plain, 20) == (8, 4, 5)
    third = struct.pack("<IIIIII", 0x03000001, 1 << 10, 0, 0, 0, 100000)
    assert shift_xattr("security.capability", third, 100000) == struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    second = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0)
    assert shift_xattr("security.capability", second, 100000) == second


def test_which_xattrs_belong_to_a_layer() -> None:
    assert all(
        is_kept(name)
        for name in ("user.x", "trusted.overlay.opaque", "trusted.overlay.redirect", "security.capability")
    )
    assert not any(is_kept(f"trusted.overlay.{name}") for name in ("origin", "impure", "nlink", "upper", "uuid"))
