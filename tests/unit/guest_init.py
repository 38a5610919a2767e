"""The real guest init as an ordinary process, for the tests of its protocol."""

from __future__ import annotations

import asyncio
import contextlib
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from runta.errors import ServiceError
from runta.guest import Guest, GuestStream
from runta.models import Exit, Output, TaskSpec

BUILD = Path(__file__).parents[2] / "build"
ENV = {"PATH": "/usr/local/bin:/usr/bin:/bin", "HOME": "/"}


def binary(name: str) -> Path:
    path = BUILD / name
    if not path.exists():
        pytest.fail(f"{path} is missing: run `make setup`")
    return path


@contextlib.contextmanager
def short_directory() -> Iterator[Path]:
    """A directory whose path leaves room for a socket's name; pytest's own may be too long for a socket address."""
    path = Path(tempfile.mkdtemp(prefix="guest-", dir="/tmp"))
    try:
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)


@contextlib.asynccontextmanager
async def running_init(*, timeout: float = 10.0) -> AsyncIterator[tuple[Guest, subprocess.Popen[bytes]]]:
    """An init and a client that is ready; both are gone afterwards."""
    with short_directory() as directory:
        process = subprocess.Popen([binary("runta-init"), "--socket", directory / "s", "--any-peer"], cwd="/")
        guest = Guest(directory / "s", connect_timeout=timeout)
        try:
            await guest.wait_ready()
            yield guest, process
            with contextlib.suppress(ServiceError):
                await guest.stop(0)
                await asyncio.to_thread(process.wait, 5)
        finally:
            await guest.aclose()
            process.kill()
            process.wait()


async def collect(stream: GuestStream) -> tuple[int, bytes, bytes]:
    """Exit code, stdout and stderr; checks that offsets leave no gap."""
    pieces: dict[str, list[bytes]] = {"stdout": [], "stderr": []}
    ends: dict[str, int] = {}
    code = None
    async for event in stream:
        match event:
            case Output(name, offset, data):
                assert ends.setdefault(name, offset) == offset
                ends[name] += len(data)
                pieces[name].append(data)
            case Exit(code):
                pass
    assert code is not None
    return code, b"".join(pieces["stdout"]), b"".join(pieces["stderr"])


async def run(guest: Guest, *argv: str, stdin: bytes = b"", **spec: object) -> tuple[int, bytes, bytes]:
    stream = await guest.start(TaskSpec(argv=argv, **spec), env=ENV)  # type: ignore[arg-type]

    async def feed() -> None:
        await stream.write_stdin(stdin)
        await stream.close_stdin()

    feeding = asyncio.create_task(feed())
    try:
        return await collect(stream)
    finally:
        await feeding
