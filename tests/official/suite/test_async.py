"""The same through the asyncio SDK, several at a time."""

from __future__ import annotations

import asyncio
import contextlib

import pytest

from runta import ApiError, AsyncRunta, RuntimeStatus


@contextlib.asynccontextmanager
async def made(client, name, **options):
    runtime = await client.runtimes.create(name, **options)
    try:
        yield runtime
    finally:
        await runtime.delete()


def test_life(name):
    async def live():
        async with AsyncRunta() as client, made(client, name, memory_mib=256) as box:
            assert await client.health() is True
            assert (await box.exec("echo hi")).stdout_text == "hi\n"
            await box.pause()
            assert await box.status() is RuntimeStatus.PAUSED
            await box.resume()
            await box.shutdown()
            await box.boot()
            assert (await box.resize_memory(300)).resources.limits.memory_mib == 300
            assert box.id in [one.id for one in await client.runtimes.list(status="running")]
            with pytest.raises(ApiError) as missing:
                await box.files.read("/nowhere")
            assert missing.value.status_code == 404

    asyncio.run(live())


def test_many_commands_at_once(name):
    async def run():
        async with AsyncRunta() as client, made(client, name) as box:
            results = await asyncio.gather(*(box.exec(f"echo {number}") for number in range(8)))
            assert [result.stdout_text for result in results] == [f"{number}\n" for number in range(8)]
            running = box.exec_detached("sleep 600")
            await asyncio.sleep(1.5)
            running.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await running
            for _ in range(50):
                if (await box.exec("pgrep -fc '^sleep 600'")).stdout_text.strip() == "0":
                    return
            raise AssertionError("a cancelled command runs on")

    asyncio.run(run())


def test_checkpoint_and_forks_at_once(name):
    async def run():
        async with AsyncRunta() as client, made(client, name) as box:
            await box.files.write("/tmp/state", "one state")
            await box.exec(
                "setsid sh -c 'i=0; while :; do i=$((i+1)); echo $i > /tmp/n.new; mv /tmp/n.new /tmp/n; sleep 0.02; done'"
                " >/dev/null 2>&1 </dev/null & until [ -e /tmp/n ]; do sleep 0.02; done"
            )
            checkpoint = await box.checkpoints.create(name=f"{name}-state")
            try:
                names = [f"{name}-{number}" for number in range(3)]
                forks = await asyncio.gather(*(box.restore(checkpoint.id, name=fork) for fork in names))
                try:
                    for fork in forks:
                        assert await fork.files.read("/tmp/state") == b"one state"
                        first = int((await fork.exec("cat /tmp/n")).stdout_text)
                        later = int((await fork.exec("sleep 0.2; cat /tmp/n")).stdout_text)
                        assert later > first > 0
                finally:
                    await asyncio.gather(*(fork.delete() for fork in forks))
            finally:
                await client.checkpoints.delete(checkpoint.id)

    asyncio.run(run())


def test_transfers_at_once(name, tmp_path):
    source = tmp_path / "source"
    (source / "deep/er").mkdir(parents=True)
    (source / "deep/er/file").write_bytes(bytes(range(256)) * 4096)

    async def run():
        async with AsyncRunta() as client, made(client, name) as box:
            await asyncio.gather(*(box.files.upload(str(source), f"/srv/{number}") for number in range(8)))
            await asyncio.gather(*(box.files.download(f"/srv/{number}", f"{tmp_path}/{number}") for number in range(8)))

    asyncio.run(run())
    for number in range(8):
        assert (tmp_path / str(number) / "deep/er/file").read_bytes() == (source / "deep/er/file").read_bytes()


def test_secrets(name):
    async def run():
        async with AsyncRunta() as client:
            secret = await client.secrets.set(name, "value", cache_ttl_secs=3)
            assert (await client.secrets.get(name)).id == secret.id
            assert name in [one.display_name for one in await client.secrets.list()]
            await client.secrets.delete(name)
            with pytest.raises(ApiError):
                await client.secrets.get(name)

    asyncio.run(run())
