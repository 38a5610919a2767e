"""Mounting: overlays on idmapped lower dirs, and looking at what is mounted.

The system calls are called directly: util-linux before 2.39 ignores `X-mount.idmap` without a word, and a mount command
costs a process. Sources: mount_setattr(2), open_tree(2), move_mount(2), and the kernel's
Documentation/filesystems/overlayfs.rst.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import subprocess
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.process import wait_until
from runta.models import IdMap
from runta.settings import tool_path

_SYS_OPEN_TREE = 428
_SYS_MOVE_MOUNT = 429
_SYS_MOUNT_SETATTR = 442
_AT_FDCWD = -100
_AT_EMPTY_PATH = 0x1000
_OPEN_TREE_CLONE = 1
_OPEN_TREE_CLOEXEC = os.O_CLOEXEC
_MOVE_MOUNT_F_EMPTY_PATH = 4
_MOUNT_ATTR_RDONLY = 0x1
_MOUNT_ATTR_IDMAP = 0x00100000
_MS_NOSUID = 2
_MS_NODEV = 4
_MS_PRIVATE = 1 << 18
_UMOUNT_NOFOLLOW = 8
_MODE_PASS = 0o711
_BUSY_TIMEOUT = 5.0

OVERLAY_OPTIONS = "index=on,nfs_export=on,redirect_dir=on,metacopy=off"
"""Without these, in a fork: renaming a directory of a layer gives EXDEV, hard links come apart, inotify can't be
dumped."""

_libc = ctypes.CDLL(None, use_errno=True)


class _MountAttr(ctypes.Structure):
    _fields_ = (
        ("attr_set", ctypes.c_uint64),
        ("attr_clr", ctypes.c_uint64),
        ("propagation", ctypes.c_uint64),
        ("userns_fd", ctypes.c_uint64),
    )


def _fail(what: str, path: Path | str) -> OSError:
    number = ctypes.get_errno()
    hint = " (this kernel is too old)" if number == errno.ENOSYS else ""
    return OSError(number, f"{what}: {os.strerror(number)}{hint}", str(path))


def _open_tree(path: Path) -> int:
    fd = int(_libc.syscall(_SYS_OPEN_TREE, _AT_FDCWD, os.fsencode(path), _OPEN_TREE_CLONE | _OPEN_TREE_CLOEXEC))
    if fd < 0:
        raise _fail("open_tree", path)
    return fd


def _set_idmap(tree: int, userns: int, path: Path) -> None:
    attr = _MountAttr(attr_set=_MOUNT_ATTR_IDMAP | _MOUNT_ATTR_RDONLY, userns_fd=userns)
    if _libc.syscall(_SYS_MOUNT_SETATTR, tree, b"", _AT_EMPTY_PATH, ctypes.byref(attr), ctypes.sizeof(attr)) != 0:
        raise _fail("mount_setattr", path)


def _move_mount(tree: int, target: Path) -> None:
    if _libc.syscall(_SYS_MOVE_MOUNT, tree, b"", _AT_FDCWD, os.fsencode(target), _MOVE_MOUNT_F_EMPTY_PATH) != 0:
        raise _fail("move_mount", target)


def _mount(source: str, target: Path, fstype: str, flags: int, data: str | None) -> None:
    given = data.encode() if data is not None else None
    if _libc.mount(source.encode(), os.fsencode(target), fstype.encode(), ctypes.c_ulong(flags), given) != 0:
        raise _fail(f"mount {fstype}", target)


def mount_tmpfs(target: Path, *, size: int) -> None:
    """Mount a tmpfs of `size` bytes for root alone. Raises OSError."""
    _mount("tmpfs", target, "tmpfs", _MS_NODEV | _MS_NOSUID, f"size={size},mode=0700")


def unmount(target: Path) -> None:
    """Undo one mount; nothing mounted there is no error. Never lazy: that would hide a leak.

    A busy one is tried again for 5 s: until it executes, a program being started holds copies of our descriptors.
    Raises KernelError if the mount is still in use.
    """
    deadline = time.monotonic() + _BUSY_TIMEOUT
    while _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOENT):
            return
        if number != errno.EBUSY or not wait_until(deadline):
            raise KernelError(f"can't unmount {target}", cause=os.strerror(number))


def open_user_namespace(ids: IdMap) -> int:
    """A descriptor of a user namespace with this id map, for idmapped mounts. The caller closes it.

    A short-lived child makes it: the service itself never enters another namespace.
    """
    argv = ["unshare", "--user", "sh", "-c", "echo made; read done"]
    with subprocess.Popen(
        argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={"PATH": tool_path()}, bufsize=0
    ) as child:
        ready = child.stdout
        try:
            if ready is None or ready.readline() != b"made\n":
                raise KernelError("can't make a user namespace", hint="`runta doctor` tells what this host lacks")
            line = f"0 {ids.start} {ids.size}\n"
            Path(f"/proc/{child.pid}/uid_map").write_text(line)
            Path(f"/proc/{child.pid}/gid_map").write_text(line)
            return os.open(f"/proc/{child.pid}/ns/user", os.O_RDONLY | os.O_CLOEXEC)
        except OSError as err:
            raise KernelError("can't map ids into a user namespace", cause=str(err)) from err
        finally:
            child.kill()


@contextlib.contextmanager
def _idmapped(source: Path, userns: int) -> Iterator[int]:
    """A detached mount of `source`, read-only and with mapped ids, while the block runs; yields its descriptor."""
    tree = _open_tree(source)
    try:
        _set_idmap(tree, userns, source)
        yield tree
    finally:
        os.close(tree)


@contextlib.contextmanager
def _attached(source: Path, target: Path, userns: int) -> Iterator[int]:
    """Show such a mount at `target` while the block runs; yields a descriptor of it."""
    target.mkdir(parents=True, exist_ok=True)
    with _idmapped(source, userns) as tree:
        _move_mount(tree, target)
    try:
        fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        unmount(target)
        target.rmdir()


def mount_overlay(lowers: Sequence[Path], *, upper: Path, work: Path, merged: Path, attach: Path, userns: int) -> None:
    """Mount an overlay of `upper` on idmapped `lowers` (newest first) at `merged`.

    The lowers are detached mounts, named through descriptors: the option page holds about 200 of them whatever their
    paths' length. Before Linux 6.15 an overlay takes attached mounts only: they appear below `attach` during the call,
    and the overlay keeps its own clones. Raises KernelError; nothing stays mounted then.
    """
    places = f"upperdir={_escape(upper)},workdir={_escape(work)},{OVERLAY_OPTIONS}"
    try:
        try:
            with contextlib.ExitStack() as stack:
                trees = [stack.enter_context(_idmapped(lower, userns)) for lower in lowers]
                _mount_stack(trees, merged, places)
        except OSError as err:
            if err.errno != errno.EINVAL:
                raise
            _mount_attached(lowers, merged, places, attach, userns)
    except OSError as err:
        raise KernelError(f"can't mount the overlay at {merged}", cause=str(err)) from err


def _mount_stack(lowers: Sequence[int], merged: Path, places: str) -> None:
    stack_option = ":".join(f"/proc/self/fd/{fd}" for fd in lowers)
    _mount("overlay", merged, "overlay", _MS_NODEV, f"lowerdir={stack_option},{places}")


def _mount_attached(lowers: Sequence[Path], merged: Path, places: str, attach: Path, userns: int) -> None:
    attach.mkdir(mode=_MODE_PASS, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            fds = [
                stack.enter_context(_attached(lower, attach / str(index), userns)) for index, lower in enumerate(lowers)
            ]
            _mount_stack(fds, merged, places)
    finally:
        with contextlib.suppress(FileNotFoundError):
            attach.rmdir()


def _escape(path: Path) -> str:
    """A path as overlay options want it: backslash before colons, commas and backslashes."""
    return str(path).replace("\\", "\\\\").replace(":", "\\:").replace(",", "\\,")


def is_mounted(target: Path) -> bool:
    """Whether something is mounted exactly here."""
    return any(point == str(target) for point in mount_points())


def mount_points() -> list[str]:
    """Every mount point of this mount namespace, in mount order (proc(5), mountinfo)."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    return [line.split()[4].encode().decode("unicode_escape") for line in lines]


def mounts_below(root: Path) -> list[Path]:
    """Mount points below a directory, deepest first: the order to unmount them in."""
    prefix = f"{root}/"
    return [Path(point) for point in reversed(mount_points()) if point.startswith(prefix)]
