"""The SDK before the real service and a plain engine: blocking and asyncio, Unix socket and TCP."""

from __future__ import annotations

import asyncio
import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from runta import (
    ApiError,
    AsyncRunta,
    CheckpointState,
    ConfigError,
    EgressPolicy,
    ExecutionError,
    IngressSpec,
    PatchRuntimeResourceRequests,
    PatchRuntimeResources,
    Runta,
    RuntimeStatus,
)
from runta.client.local import inspect_runtime, list_images, list_tasks, signal_task
from tests.doors.conftest import Service

UNIX, TCP = "unix", "tcp"


def options(service: Service, way: str) -> dict[str, object]:
    if way == UNIX:
        return {"endpoint": f"unix:{service.socket}", "retry_max_attempts": 2}
    return {"endpoint": service.url, "token": service.token, "retry_max_attempts": 2}


@pytest.fixture(params=[UNIX, TCP])
def client(service: Service, request):
    with Runta(**options(service, request.param)) as client:
        yield client


@pytest.fixture
def box(client: Runta):
    return client.runtimes.create("box")


# The walk


def test_the_walk_of_the_readme(client: Runta):
    assert client.health() is True
    runtime = client.runtimes.create("src", vcpus=2, memory_mib=512)
    runtime.exec("echo hello-from-runtime > hello.txt")
    checkpoint = runtime.checkpoints.create(name="ck")
    assert checkpoint.state is CheckpointState.READY
    restored = client.runtimes.create("restored", checkpoint_id=checkpoint.id)
    assert restored.exec("cat hello.txt").stdout_text == "hello-from-runtime\n"
    assert restored.cached_info.resources.requests.vcpus == 2
    another = runtime.restore(checkpoint.id, name="another")
    assert {found.name for found in client.runtimes.list()} == {"src", "restored", "another"}
    another.delete()
    another.delete()
    assert len(client.runtimes.list()) == 2


def test_a_lazy_restore_has_a_path_of_its_own(client: Runta, service: Service):
    runtime = client.runtimes.create("src")
    checkpoint = runtime.checkpoints.create(name="ck")
    assert client.runtimes.create("soon", checkpoint_id=checkpoint.id, lazy=True).exec("true").exit_code == 0
    assert runtime.restore(checkpoint.id, name="sooner", lazy=True).name == "sooner"
    client.runtimes.create("all", checkpoint_id=checkpoint.id)
    assert service.engine.lazy == {"soon", "sooner"}
    with pytest.raises(ValueError, match="checkpoint_id"):
        client.runtimes.create("fresh", lazy=True)


def test_the_walk_with_asyncio(service: Service):
    async def walk() -> None:
        async with AsyncRunta(**options(service, UNIX)) as client:
            assert await client.health() is True
            runtime = await client.runtimes.create("src")
            await runtime.files.write("hello.txt", "hello")
            checkpoint = await runtime.checkpoints.create(name="ck")
            assert [found.id for found in await runtime.checkpoints.list()] == [checkpoint.id]
            restored = await runtime.restore(checkpoint.id, name="restored")
            assert (await restored.exec("cat hello.txt")).stdout_text == "hello"
            await restored.pause()
            assert await restored.status() is RuntimeStatus.PAUSED
            await restored.resume()
            await restored.shutdown()
            await restored.boot()
            assert (await client.runtimes.get("restored")).id == restored.id
            await restored.delete()
            await client.checkpoints.delete("ck")
            assert [found.name for found in await client.runtimes.list()] == ["src"]
            assert await client.checkpoints.list() == []

    asyncio.run(walk())


# Runtimes


def test_states(client: Runta, box):
    box.pause()
    assert box.status() is RuntimeStatus.PAUSED
    assert [found.name for found in client.runtimes.list("paused")] == ["box"]
    assert client.runtimes.list(["running", "creating"]) == []
    box.resume()
    box.shutdown()
    assert box.heartbeat() is RuntimeStatus.SHUTDOWN
    box.boot()
    assert box.cached_info.status is RuntimeStatus.RUNNING
    with pytest.raises(ValueError, match="sleeping"):
        client.runtimes.list("sleeping")


def test_waiting(service: Service, client: Runta, box):
    service.engine.set_status(box.id, RuntimeStatus.CREATING)
    box.refresh_info()
    with pytest.raises(TimeoutError, match="creating"):
        box.wait_until_ready(timeout=0.05, poll_interval=0.01)
    threading.Timer(0.1, service.engine.set_status, (box.id, RuntimeStatus.RUNNING)).start()
    assert box.wait_until_ready(timeout=20, poll_interval=0.02).status is RuntimeStatus.RUNNING
    service.engine.set_status(box.id, RuntimeStatus.CRASHED)
    box.refresh_info()
    with pytest.raises(RuntimeError, match="crashed"):
        box.wait_until_ready()


def test_names_and_ids(client: Runta, box):
    assert client.runtimes.get("box").id == client.runtimes.get(box.id).id == box.id
    with pytest.raises(ApiError, match="bax") as caught:
        client.runtimes.get("bax")
    assert (caught.value.status_code, caught.value.code) == (404, "not_found")
    checkpoint = box.checkpoints.create(name="ck")
    assert client.checkpoints.get("ck").id == client.checkpoints.get(checkpoint.id).id


def test_resources_ingress_and_egress(client: Runta):
    box = client.runtimes.create(ingress_specs=[IngressSpec("http", 80), {"protocol": "https", "runtime_port": 443}])
    assert box.cached_info.ingress_specs == [IngressSpec("http", 80), IngressSpec("https", 443)]
    assert box.resize_memory(2048).resources.limits.memory_mib == 2048
    patch = PatchRuntimeResources(PatchRuntimeResourceRequests(memory_mib=1024))
    assert box.update_resources(patch).resources.requests.memory_mib == 1024
    policy = EgressPolicy("allowlist", allowed_hosts=["B.example.", "a.example"])
    assert box.egress.set_policy(policy).egress_policy.allowed_hosts == ["a.example", "b.example"]
    assert box.egress.get() == EgressPolicy("allowlist", ["a.example", "b.example"])
    with pytest.raises(ApiError, match="invalid egress host"):
        box.egress.set_policy(EgressPolicy("denylist", denied_hosts=["http://x"]))


def test_environment_and_image(client: Runta):
    box = client.runtimes.create("box", environment={"COLOUR": "blue"}, image="debian")
    assert box.exec("echo $COLOUR").stdout_text == "blue\n"
    with pytest.raises(ApiError, match="image"):
        client.runtimes.create("other", image="debain")


def test_many_runtimes_are_listed_whole(service: Service, client: Runta):
    made = [client.runtimes.create() for _ in range(103)]
    assert len(client.runtimes.list()) == len(made)


# Exec


def test_exec(box):
    result = box.exec("echo out; echo err >&2; exit 3")
    assert (result.exit_code, result.stdout_text, result.stderr_text) == (3, "out\n", "err\n")
    assert result.duration > 0
    assert box.exec(["printf", "%s|", "a b", "$HOME"]).stdout == b"a b|$HOME|"
    assert box.exec(["no-such-program"]).exit_code == 127
    assert box.exec("kill -TERM $$").exit_code == 143


def test_exec_env_and_cwd(box):
    assert box.exec(["sh", "-c", 'echo "$X"; pwd'], env={"X": "a  b"}, cwd="/usr").stdout_text == "a  b\n/usr\n"


def test_exec_stdin(box):
    data = os.urandom(5_000_000)
    assert box.exec("sha256sum", stdin=data).stdout_text.split()[0] == hashlib.sha256(data).hexdigest()
    assert box.exec("cat", stdin=data, max_output_bytes=6_000_000).stdout == data
    assert box.exec("cat", stdin="text").stdout == b"text"
    assert box.exec("cat; echo end").stdout == b"end\n"
    assert box.exec("cat; echo end", stdin=b"").stdout == b"end\n"
    assert box.exec("exit 4", stdin=data).exit_code == 4


def test_exec_output_is_whole_or_flagged(box):
    result = box.exec("head -c 9000000 /dev/zero; head -c 100 /dev/zero >&2", max_output_bytes=9_000_000)
    assert (len(result.stdout), result.stdout_truncated) == (9_000_000, False)
    result = box.exec("head -c 5000000 /dev/zero; echo end >&2")
    assert (len(result.stdout), result.stdout_truncated, result.stderr_truncated) == (4 << 20, True, False)
    assert box.exec("echo 12345", max_output_bytes=0).stdout_truncated


def test_exec_timeout(box):
    result = box.exec("echo before; sleep 60", timeout=0.3)
    assert (result.exit_code, result.stdout) == (124, b"before\n")
    assert "timed out after 0.3 seconds" in result.stderr_text


def test_exec_refusals(client: Runta, box):
    box.pause()
    with pytest.raises(ExecutionError, match="paused") as caught:
        box.exec("true")
    assert caught.value.status_code == 409
    box.delete()
    with pytest.raises(ExecutionError) as caught:
        box.exec("true")
    assert caught.value.status_code == 404


def test_exec_detached_and_many_at_once(box):
    futures = [box.exec_detached("sleep 0.1; echo $N", env={"N": str(number)}) for number in range(20)]
    assert [future.result().stdout_text for future in futures] == [f"{number}\n" for number in range(20)]
    with ThreadPoolExecutor(8) as pool:
        names = list(pool.map(lambda number: box.exec(f"echo {number}").stdout_text.strip(), range(40)))
    assert names == [str(number) for number in range(40)]


def test_exec_with_asyncio(service: Service):
    data = os.urandom(3_000_000)

    async def work() -> None:
        async with AsyncRunta(**options(service, TCP)) as client:
            box = await client.runtimes.create("box")
            assert (await box.exec("exit 3")).exit_code == 3
            assert (await box.exec("cat", stdin=data)).stdout == data
            assert (await box.exec("sleep 60", timeout=0.2)).exit_code == 124
            tasks = [box.exec_detached(f"sleep 0.1; echo {number}") for number in range(30)]
            assert [int(result.stdout) for result in await asyncio.gather(*tasks)] == list(range(30))
            with pytest.raises(ExecutionError, match="paused"):
                await box.pause()
                await box.exec("true")

    asyncio.run(work())


def test_cancelling_an_exec_ends_the_command(service: Service):
    async def work() -> None:
        async with AsyncRunta(**options(service, UNIX)) as client:
            box = await client.runtimes.create("box")
            task = box.exec_detached(["sleep", "61"])
            while not [one for one in await client.perform(list_tasks(box.id)) if one["pid"]]:
                await asyncio.sleep(0.01)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            while (await client.perform(list_tasks(box.id)))[0]["exit_code"] is None:
                await asyncio.sleep(0.01)

    asyncio.run(work())


# Files


@pytest.fixture
def tree(tmp_path):
    root = tmp_path / "tree"
    (root / "sub/empty").mkdir(parents=True)
    (root / "big").write_bytes(os.urandom(3_000_000))
    (root / "sub/script").write_text("#!/bin/sh\necho ran\n")
    (root / "sub/script").chmod(0o755)
    (root / "link").symlink_to("big")
    return root


def test_reading_and_writing(box):
    data = os.urandom(3_000_000)
    box.files.write("deep/er/file", data)
    assert box.files.read("deep/er/file") == data
    assert box.files.read("deep/er/file", max_bytes=10) == data[:10]
    box.files.write("script", "#!/bin/sh\necho ran\n", executable=True)
    assert box.exec("./script").stdout_text == "ran\n"
    with pytest.raises(ApiError) as caught:
        box.files.read("/no/such/file")
    assert caught.value.status_code == 404


def test_a_directory_there_and_back(box, tree, tmp_path):
    box.files.upload(str(tree), "/root/copy")
    assert box.exec("copy/sub/script; readlink copy/link; stat -c %s copy/big").stdout_text == "ran\nbig\n3000000\n"
    box.exec("echo more > copy/more")
    box.files.download("/root/copy", str(tmp_path / "back"))
    assert (tmp_path / "back/big").read_bytes() == (tree / "big").read_bytes()
    assert (tmp_path / "back/more").read_text() == "more\n"
    assert (tmp_path / "back/sub/empty").is_dir()
    assert os.readlink(tmp_path / "back/link") == "big"
    box.files.download("/root/copy/sub", f"{tmp_path}/into/")
    assert (tmp_path / "into/sub/script").stat().st_mode & 0o777 == 0o755


def test_single_files(box, tree, tmp_path):
    box.files.upload(tree / "big", "/root/here/")
    box.files.upload(str(tree / "sub/script"), "/root/there/named")
    assert box.exec(["/bin/sh", "-c", "there/named; stat -c %s here/big"]).stdout_text == "ran\n3000000\n"
    box.files.download("/root/here/big", tmp_path / "got")
    assert (tmp_path / "got").read_bytes() == (tree / "big").read_bytes()
    box.files.download("/root/here/big", str(tmp_path))
    assert (tmp_path / "big").exists()
    with pytest.raises(FileNotFoundError):
        box.files.upload(str(tmp_path / "nothing"), "/root/x")


def test_contents_are_merged(box, tmp_path):
    box.exec("mkdir -p src/a; echo new > src/a/file; echo two > src/two; ln -s two src/link")
    target = tmp_path / "target"
    (target / "a").mkdir(parents=True)
    (target / "a/file").write_text("old")
    (target / "a/kept").write_text("kept")
    box.files.download_dir_contents("/root/src", str(target))
    assert ((target / "a/file").read_text(), (target / "a/kept").read_text()) == ("new\n", "kept")
    box.files.download_dir_contents("/root/src", tmp_path / "some", paths=["a/file", "link"])
    assert [path.name for path in (tmp_path / "some").rglob("*")] == ["a", "file"]
    skip = lambda member, _: None if member.name == "two" else member  # noqa: E731
    box.files.download_dir_contents("/root/src", tmp_path / "filtered", filter=skip)
    assert sorted(path.name for path in (tmp_path / "filtered").iterdir()) == ["a", "link"]
    with pytest.raises(ApiError):
        box.files.download_dir_contents("/root/src", tmp_path / "missing", paths=["a/file", "nothing"])
    assert not (tmp_path / "missing").exists()
    with pytest.raises(NotADirectoryError):
        box.files.download_dir_contents("/root/src/two", tmp_path / "file")


def test_nothing_is_left_behind_by_a_refused_download(box, tmp_path):
    box.exec("mkdir bad; ln -s /etc/passwd bad/link; echo x > bad/file")
    with pytest.raises(ApiError, match="can't be unpacked"):
        box.files.download("/root/bad", str(tmp_path / "bad"))
    assert list(tmp_path.glob("*bad*")) == []


def test_files_with_asyncio(service: Service, tree, tmp_path):
    async def work() -> None:
        async with AsyncRunta(**options(service, UNIX)) as client:
            box = await client.runtimes.create("box")
            await box.files.upload(str(tree), "/root/copy")
            await box.files.download("/root/copy", str(tmp_path / "back"))
            await box.files.download_dir_contents("/root/copy", str(tmp_path / "merged"), paths=["big"])
            assert len(await box.files.read("copy/big", max_bytes=7)) == 7

    asyncio.run(work())
    assert (tmp_path / "back/big").read_bytes() == (tmp_path / "merged/big").read_bytes()


# Checkpoints


def test_checkpoints(service: Service, client: Runta, box):
    made = box.checkpoints.create()
    assert made.display_name.startswith("box-")
    assert (made.kind, made.state) == ("full", CheckpointState.READY)
    other = client.runtimes.create("other")
    assert [found.id for found in box.checkpoints.list()] == [made.id]
    assert other.checkpoints.list() == []
    with pytest.raises(ValueError, match="kind"):
        box.checkpoints.create("lukewarm")
    with pytest.raises(ApiError):
        box.checkpoints.create("cold")
    box.checkpoints.delete(made.display_name)
    assert client.checkpoints.list() == []


def test_waiting_for_a_checkpoint(service: Service, client: Runta, box):
    made = box.checkpoints.create(name="slow")
    held = service.engine.checkpoints

    def become(**changes: object) -> None:
        held[made.id] = replace(held[made.id], **changes)

    become(state=CheckpointState.CREATING)
    with pytest.raises(TimeoutError, match="slow"):
        client.checkpoints.wait_until_ready(made.id, timeout=0.05, poll_interval=0.01)
    threading.Timer(0.1, become, kwargs={"state": CheckpointState.READY}).start()
    assert client.checkpoints.wait_until_ready(made.id, timeout=20, poll_interval=0.02).state is CheckpointState.READY
    become(state=CheckpointState.FAILED, error_code="dump_failed")
    with pytest.raises(RuntimeError, match="dump_failed"):
        client.checkpoints.wait_until_ready("slow")


# Errors and settings


def test_errors_keep_their_status_code_and_reason(client: Runta, box):
    with pytest.raises(ApiError) as caught:
        client.runtimes.create("box")
    assert (caught.value.status_code, caught.value.code) == (409, "already_exists")
    assert "what to do: choose another name" in caught.value.message
    assert str(caught.value).startswith("HTTP 409: already_exists: ")


def test_a_wrong_token_is_refused_everywhere(service: Service):
    with Runta(endpoint=service.url, token="rt_wrong") as client:
        assert client.health() is True
        with pytest.raises(ApiError) as caught:
            client.runtimes.list()
        assert caught.value.status_code == 401
        with pytest.raises(ApiError) as caught:
            client.driver.open_channel("/v2/runtimes/x/exec/stream")
        assert caught.value.status_code == 401


def test_nobody_answers(tmp_path):
    with Runta(endpoint="http://127.0.0.1:1", token="t", retry_max_attempts=1) as client:
        with pytest.raises(ApiError, match="can't connect") as caught:
            client.runtimes.list()
        assert caught.value.status_code is None
    with Runta(endpoint=f"unix:{tmp_path}/none.sock", retry_max_attempts=1) as client, pytest.raises(ApiError):
        client.health()

    async def ask() -> None:
        async with AsyncRunta(endpoint="http://127.0.0.1:1", token="t", retry_max_attempts=1) as client:
            with pytest.raises(ApiError, match="can't connect"):
                await client.runtimes.list()

    asyncio.run(ask())


def test_the_environment_says_where(service: Service, monkeypatch):
    monkeypatch.setenv("RUNTA_RUN_DIR", str(service.settings.run_dir))
    monkeypatch.delenv("RUNTA_ENDPOINT", raising=False)
    with Runta() as client:
        assert client.health()
    monkeypatch.setenv("RUNTA_ENDPOINT", service.url)
    monkeypatch.delenv("RUNTA_TOKEN", raising=False)
    with pytest.raises(ConfigError, match="token"):
        Runta()
    monkeypatch.setenv("RUNTA_TOKEN", service.token)
    with Runta() as client:
        assert client.runtimes.list() == []


def test_wrong_options():
    for wrong in ({"timeout": 0}, {"retry_max_attempts": 17}, {"connection_pool_maxsize": 0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Runta(**wrong)


def test_a_connection_the_service_closed_is_replaced(service: Service, client: Runta, box):
    box.refresh_info()
    for _, connection in client.driver._pool._idle:
        connection.sock.shutdown(2)
    assert box.refresh_info().id == box.id


# Ours, beside the public API


def test_local_operations(client: Runta, box):
    assert client.perform(inspect_runtime("box"))["name"] == "box"
    assert [image["name"] for image in client.perform(list_images())] == ["debian"]
    running = box.exec_detached("sleep 60")
    while not [task for task in client.perform(list_tasks("box")) if task["pid"]]:
        pass
    client.perform(signal_task("box", client.perform(list_tasks("box"))[0]["id"], "TERM"))
    assert running.result().exit_code == 143
