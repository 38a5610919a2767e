"""podman, as its users run it: an image of the same root file system, `container checkpoint -R -e`, `container restore
-i`. All it keeps lies below the bench's root, and its cgroups below a name of the bench's own."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from runta.kernel.cgroups import find_cgroups
from runta.kernel.mounts import mounts_below, unmount
from runta.settings import tool_path
from tests.bench.clock import timed
from tests.bench.parties import Restored, Taken
from tests.bench.workload import READY, Load

MISSING = "podman is not installed: run `make bench-setup`, or leave it out with `--without podman`"
_IMAGE = "localhost/bench:debian"
_TIMEOUT = 300
_LIMIT = "4096:4096"
"""podman asks for the kernel's largest limits, which a root without CAP_SYS_RESOURCE may not set."""
_HOME = Path("/var/lib/containers")
"""podman keeps a cache of image parts here, whatever its `--root`."""


class Podman:
    """Containers of podman; a container is its name."""

    name = "podman"

    def __init__(self, root: Path, criu: Path, rootfs: Path) -> None:
        self._root = root / "podman"
        self._root.mkdir()
        self._parent = f"/{root.name}-podman"
        self._had_home = _HOME.exists()
        self._env = {**os.environ, "PATH": f"{criu.parent}:{tool_path()}", "TMPDIR": str(self._root)}
        self._count = 0
        self._import_image(rootfs)

    def _import_image(self, rootfs: Path) -> None:
        archive = self._root / "image.tar"
        subprocess.run(["tar", "-C", str(rootfs), "--numeric-owner", "-cf", str(archive), "."], check=True)
        self.call("import", str(archive), _IMAGE)
        archive.unlink()

    def call(self, *words: str) -> str:
        """What one podman command prints. Raises RuntimeError with what it says."""
        places = ("--root", "root", "--runroot", "run", "--tmpdir", "tmp")
        paths = [word if word.startswith("-") else str(self._root / word) for word in places]
        options = ("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--storage-driver", "overlay")
        done = subprocess.run(
            ["podman", *paths, *options, "--events-backend", "none", *words],
            env=self._env,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=_TIMEOUT,
        )
        if done.returncode != 0:
            raise RuntimeError(f"podman {' '.join(words)}: {done.stderr.strip()}")
        return done.stdout

    def _new_name(self) -> str:
        self._count += 1
        return f"box-{self._count}"

    def create(self, load: Load) -> tuple[str, float]:
        name = self._new_name()
        limits = ("--ulimit", f"nofile={_LIMIT}", "--ulimit", f"nproc={_LIMIT}")
        options = ("--network", "none", "--cgroup-parent", self._parent, *limits, "--name", name)
        argv = load.argv or ("sleep", "infinity")
        _, spent = timed(lambda: self.call("run", "--detach", *options, _IMAGE, *argv))
        if load.argv:
            ready = self._merged(name) / READY.lstrip("/")
            while not ready.exists():
                time.sleep(0.02)
        return name, spent

    def _merged(self, box: str) -> Path:
        return Path(self.call("inspect", "--format", "{{.GraphDriver.Data.MergedDir}}", box).strip())

    def run(self, box: str, argv: Sequence[str]) -> None:
        self.call("exec", box, *argv)

    def exec_true(self, box: str) -> float:
        return timed(lambda: self.run(box, ["true"]))[1]

    def checkpoint(self, box: str) -> Taken:
        archive = self._root / f"{self._new_name()}.tar.zst"
        words = ("container", "checkpoint", "--leave-running", "--print-stats", "--export", str(archive), box)
        text, spent = timed(lambda: self.call(*words))
        stats = json.loads(text[: text.rindex("}") + 1])["container_statistics"][0]["criu_statistics"]
        return Taken(archive, spent, stats["frozen_time"] / 1000)

    def restore(self, taken: Taken) -> Restored:
        name = self._new_name()
        _, spent = timed(lambda: self.call("container", "restore", "--import", str(taken.handle), "--name", name))
        return Restored(name, spent, spent + self.exec_true(name))

    def read(self, box: str, path: str) -> str:
        return (self._merged(box) / path.lstrip("/")).read_text()

    def delete(self, box: str) -> float:
        return timed(lambda: self.call("rm", "--force", "--time", "0", box))[1]

    def forget(self, taken: Taken) -> None:
        Path(taken.handle).unlink()

    def close(self) -> None:
        with contextlib.suppress(Exception):
            self.call("rm", "--all", "--force", "--time", "0")
        for point in mounts_below(self._root):
            unmount(point)
        cgroups = find_cgroups()
        for mount in {*cgroups.v1.values(), *([cgroups.v2] if cgroups.v2 else [])}:
            _remove_cgroup(mount / self._parent.lstrip("/"))
        if not self._had_home:
            shutil.rmtree(_HOME, ignore_errors=True)


def require_podman() -> None:
    """Raises SystemExit, with what to do, where podman is missing."""
    if shutil.which("podman", path=tool_path()) is None:
        raise SystemExit(MISSING)


def _remove_cgroup(path: Path) -> None:
    """A cgroup and those below it, as far as they are empty."""
    if path.is_dir():
        for child in [entry for entry in path.iterdir() if entry.is_dir()]:
            _remove_cgroup(child)
        with contextlib.suppress(OSError):
            path.rmdir()
