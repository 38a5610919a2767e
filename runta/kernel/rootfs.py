"""Making a root file system with the host's programs: mmdebstrap, busybox, zstd."""

from __future__ import annotations

import contextlib
import os
import shutil
import stat
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from runta.errors import InvalidArgument, KernelError
from runta.kernel.process import run
from runta.recipes import Recipe
from runta.settings import tool_path

_BUILD_TIMEOUT = 1800.0
_QUICK = 60.0
_MODE_TREE = 0o755
_MODE_ROOT_HOME = 0o700
_MODE_PROGRAM = 0o755
_MODE_STICKY = 0o1777

# What mmdebstrap copies from this host or leaves from the build; an image holds neither.
_REMOVED = (
    "etc/apt/apt.conf.d/99mmdebstrap",
    "etc/hostname",
    "etc/resolv.conf",
    "var/cache/apt/archives",
    "var/cache/ldconfig",
    "var/log/alternatives.log",
    "var/log/apt",
    "var/log/bootstrap.log",
    "var/log/dpkg.log",
)
_BUSYBOX_FILES = {
    "etc/passwd": "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/nonexistent:/bin/false\n",
    "etc/group": "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n",
    "etc/profile": "export PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nPS1='\\u@\\h:\\w\\$ '\n",
    "etc/nsswitch.conf": "hosts: files dns\n",
}
_BUSYBOX_DIRECTORIES = ("bin", "sbin", "usr/bin", "usr/sbin", "usr/local/bin", "etc", "home", "var/log", "var/lib")


@dataclass(frozen=True, slots=True)
class Rootfs:
    """The host's programs that make root file systems. `path`: where to look for them."""

    path: str | None = None

    def build(self, recipe: Recipe, target: Path) -> None:
        """Fill `target`, which must not exist, by the recipe. The caller removes it on failure.

        Raises KernelError with what the builder said.
        """
        builders = {"mmdebstrap": self._build_debian, "busybox": self._build_busybox}
        builders[recipe.builder](recipe, target)

    @contextlib.contextmanager
    def open_zstd(self, path: Path) -> Iterator[BinaryIO]:
        """The decompressed content of a zstd file, as a stream.

        Raises KernelError without zstd, InvalidArgument where a stream read to its end turns out to be damaged.
        """
        program = self._find("zstd")
        with subprocess.Popen(
            [program, "-dc", "--long=31", "--", path],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        ) as child:
            if child.stdout is None or child.stderr is None:
                raise KernelError("zstd gave no output")
            try:
                yield _as_binary(child.stdout)
                ended = child.stdout.read(1) == b""
            except BaseException:
                child.kill()
                raise
            if not ended:
                child.kill()
                return
            said = child.stderr.read().decode(errors="replace").strip()
        if child.returncode != 0:
            raise InvalidArgument(
                f"{path.name} is a damaged zstd file", cause=said or None, hint="fetch or make it again"
            )

    def _find(self, program: str) -> str:
        found = shutil.which(program, path=self.path or tool_path())
        if found is None:
            raise KernelError(
                f"{program} is not installed",
                hint=f"apt-get install {_PACKAGE_OF.get(program, program)}, or `make setup`",
            )
        return found

    def _build_debian(self, recipe: Recipe, target: Path) -> None:
        excluded = [f"--dpkgopt=path-exclude={pattern}" for pattern in recipe.exclude]
        argv = [
            self._find("mmdebstrap"),
            "--quiet",
            "--variant=minbase",
            "--mode=root",
            "--format=directory",
            f"--include={','.join(recipe.packages)}",
            '--aptopt=APT::Sandbox::User "root"',
            '--aptopt=Acquire::Languages "none"',
            *excluded,
            recipe.suite,
            str(target),
            *recipe.sources,
        ]
        run(argv, timeout=_BUILD_TIMEOUT, path=self.path)
        _clean_debian(target)

    def _build_busybox(self, recipe: Recipe, target: Path) -> None:
        program = Path(self._find("busybox"))
        names = run([program, "--list-full"], timeout=_QUICK, path=self.path).stdout.split()
        if not names:
            raise KernelError(
                "this busybox can't list its tools", hint="apt-get install busybox-static, or `make setup`"
            )
        target.mkdir(mode=_MODE_TREE)
        for name in _BUSYBOX_DIRECTORIES:
            (target / name).mkdir(mode=_MODE_TREE, parents=True, exist_ok=True)
        (target / "root").mkdir(mode=_MODE_ROOT_HOME)
        shutil.copyfile(program, target / "bin/busybox")
        (target / "bin/busybox").chmod(_MODE_PROGRAM)
        _link_applets(target, names)
        for name, text in _BUSYBOX_FILES.items():
            (target / name).write_text(text)


_PACKAGE_OF = {"busybox": "busybox-static"}


def _as_binary(stream: object) -> BinaryIO:
    """Popen's pipe as the type it has."""
    return stream  # type: ignore[return-value]


def _link_applets(target: Path, names: list[str]) -> None:
    """Symlinks, so that a copy of the tree stays small whatever copies it."""
    for name in names:
        link = target / name
        link.parent.mkdir(mode=_MODE_TREE, parents=True, exist_ok=True)
        if not link.is_symlink() and not link.exists():
            link.symlink_to(os.path.relpath("/bin/busybox", f"/{Path(name).parent}"))


def _clean_debian(target: Path) -> None:
    """Drop what belongs to this host or to the build. Every path lies in a tree that Debian's packages made."""
    for name in _REMOVED:
        _remove(target / name)
    for folder in ("dev", "run", "tmp", "var/lib/apt/lists", "var/tmp"):
        for entry in (target / folder).iterdir():
            _remove(entry)
    for cache in (target / "var/cache/apt").glob("*.bin"):
        cache.unlink()
    (target / "run/lock").mkdir(mode=_MODE_TREE)
    (target / "run/lock").chmod(_MODE_STICKY)
    (target / "etc/machine-id").write_text("")


def _remove(path: Path) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if stat.S_ISDIR(mode):
        shutil.rmtree(path)
    else:
        path.unlink()
