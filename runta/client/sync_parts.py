"""What hangs on a blocking client and its runtimes: files, checkpoints, egress, secrets."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from runta.client import checkpoints, files, runtimes, secrets
from runta.client.archive import Filter
from runta.client.types import CheckpointInfo, EgressPolicy, RuntimeInfo, SecretInfo

if TYPE_CHECKING:
    from runta.client.sync import Runta, Runtime


class FileManager:
    """A runtime's files. Relative paths begin in the home directory inside."""

    def __init__(self, runtime: Runtime) -> None:
        self._ref = runtime.id
        self._driver = runtime._client.driver

    def read(self, path: str, max_bytes: int | None = None) -> bytes:
        """A file's content, cut after `max_bytes`. Raises ApiError with status 404 if there is none."""
        return self._driver.perform(files.read_file(self._ref, path, max_bytes))

    def write(self, path: str, content: bytes | str, executable: bool = False) -> None:
        """Replace a file's content; missing directories are made."""
        self._driver.perform(files.write_file(self._ref, path, content, executable))

    def upload(self, src: str | Path, dst: str) -> None:
        """Copy a local file or directory to `dst`; a file goes below it if it ends in `/`. Directories are merged."""
        files.upload(self._driver, self._ref, src, dst)

    def download(self, src: str, dst: str | Path) -> None:
        """Copy a file or directory to the local `dst`, or below it if that ends in `/` or is a directory."""
        files.download(self._driver, self._ref, src, dst)

    def download_dir_contents(
        self,
        src: str,
        dst: str | Path,
        *,
        paths: Sequence[str] | None = None,
        filter: Filter | None = None,
    ) -> None:
        """Merge a directory into a local one. `paths`: only these, relative, without what lies below them.

        `filter` is called as `tarfile` does; what it lets through must still be safe to unpack, else ApiError.
        """
        files.download_dir_contents(self._driver, self._ref, src, dst, paths=paths, choose=filter)


class RuntimeCheckpointManager:
    """The checkpoints of one runtime."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime
        self._client = runtime._client

    def create(
        self,
        kind: str = "full",
        name: str | None = None,
        *,
        wait: bool = True,
        timeout: float = 240.0,
        poll_interval: float = 0.5,
    ) -> CheckpointInfo:
        """Capture files and processes (`full`), or the files of a shut-down runtime (`cold`).

        Raises RuntimeError where that fails, TimeoutError after `timeout` seconds.
        """
        runtime = self._runtime
        info = self._client.perform(checkpoints.create_checkpoint(runtime.id, runtime.name, kind, name))
        if not wait or checkpoints.settled(info):
            return info
        return self._client.checkpoints.wait_until_ready(info.id, timeout=timeout, poll_interval=poll_interval)

    def list(self) -> list[CheckpointInfo]:
        """Those made of this runtime."""
        return self._client.perform(checkpoints.list_checkpoints_of(self._runtime.id, self._runtime.name))

    def delete(self, id: str) -> None:
        """By id or display name."""
        self._client.perform(checkpoints.delete_checkpoint(id))


class CheckpointManager:
    """All checkpoints."""

    def __init__(self, client: Runta) -> None:
        self._client = client

    def list(self) -> list[CheckpointInfo]:
        return self._client.perform(checkpoints.list_checkpoints())

    def get(self, id: str) -> CheckpointInfo:
        """By id or display name. Raises ApiError with status 404 if there is none."""
        return self._client.perform(checkpoints.get_checkpoint(id))

    def wait_until_ready(self, id: str, *, timeout: float = 240.0, poll_interval: float = 0.5) -> CheckpointInfo:
        """Return when it is ready. Raises RuntimeError if it failed, TimeoutError after `timeout` seconds."""
        return self._client.perform(checkpoints.wait_for_checkpoint(id, timeout=timeout, poll_interval=poll_interval))

    def delete(self, id: str) -> None:
        """By id or display name. Runtimes restored from it go on."""
        self._client.perform(checkpoints.delete_checkpoint(id))


class EgressManager:
    """Which hosts a runtime may talk to."""

    def __init__(self, runtime: Runtime) -> None:
        self._runtime = runtime

    def get(self) -> EgressPolicy:
        return self._runtime.refresh_info().egress_policy

    def set_policy(self, policy: EgressPolicy) -> RuntimeInfo:
        """Replace the policy. Raises ApiError for a host that is none."""
        changes = {"egress_policy": policy.normalized().to_json()}
        return self._runtime._keep(runtimes.patch_runtime(self._runtime.id, changes))


class SecretManager:
    """Secrets by id or name. They are encrypted at rest, and no call returns a value."""

    def __init__(self, client: Runta) -> None:
        self._client = client

    def set(self, name: str, val: str, *, cache_ttl_secs: int = 0) -> SecretInfo:
        return self._client.perform(secrets.set_secret(name, val, cache_ttl_secs))

    def get(self, name: str) -> SecretInfo:
        return self._client.perform(secrets.get_secret(name))

    def list(self) -> list[SecretInfo]:
        return self._client.perform(secrets.list_secrets())

    def delete(self, name: str) -> None:
        self._client.perform(secrets.delete_secret(name))
