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
from collections.abc import Iterator, Sequence
from pathlib import Path

from runta.errors import KernelError
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
_MS_NODEV = 4
_MS_PRIVATE = 1 << 18
_UMOUNT_NOFOLLOW = 8
_MNT_DETACH = 2
_MODE_PASS = 0o711

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


def unmount(target: Path) -> None:
    """Undo one mount; nothing mounted there is no error. Never lazy: that would hide a leak.

    Raises KernelError if the mount is still in use.
    """
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW) == 0:
        return
    if ctypes.get_errno() in (errno.EINVAL, errno.ENOENT):
        return
    raise KernelError(f"can't unmount {target}", cause=os.strerror(ctypes.get_errno()))


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
def _attach_idmapped(source: Path, target: Path, userns: int) -> Iterator[int]:
    """Show `source` read-only and with mapped ids at `target`, while the block runs; yields a descriptor of it."""
    tree = _open_tree(source)
    try:
        _set_idmap(tree, userns, source)
        target.mkdir(parents=True, exist_ok=True)
        _move_mount(tree, target)
    finally:
        os.close(tree)
    try:
        fd = os.open(target, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            yield fd
        finally:
            os.close(fd)
    finally:
        _detach(target)
        target.rmdir()


def _detach(target: Path) -> None:
    """Take an attached tree away. Lazily: a child that another thread just forked holds a copy of its descriptor until
    it executes its program, and for that moment the mount is busy; nothing else knows of it."""
    if _libc.umount2(os.fsencode(target), _UMOUNT_NOFOLLOW | _MNT_DETACH) != 0:
        raise _fail("umount2", target)


def mount_overlay(lowers: Sequence[Path], *, upper: Path, work: Path, merged: Path, attach: Path, userns: int) -> None:
    """Mount an overlay of `upper` on idmapped `lowers` (newest first) at `merged`.

    `attach` is a directory for the idmapped mounts, which exist only during the call: the overlay keeps its own clones.
    The lowers are named through descriptors, so that the option page holds about 200 of them whatever their paths'
    length. Raises KernelError; nothing stays mounted then.
    """
    attach.mkdir(mode=_MODE_PASS, exist_ok=True)
    try:
        with contextlib.ExitStack() as stack:
            fds = [
                stack.enter_context(_attach_idmapped(lower, attach / str(index), userns))
                for index, lower in enumerate(lowers)
            ]
            stack_option = ":".join(f"/proc/self/fd/{fd}" for fd in fds)
            options = f"lowerdir={stack_option},upperdir={_escape(upper)},workdir={_escape(work)},{OVERLAY_OPTIONS}"
            _mount("overlay", merged, "overlay", _MS_NODEV, options)
    except OSError as err:
        raise KernelError(f"can't mount the overlay at {merged}", cause=str(err)) from err
    finally:
        with contextlib.suppress(OSError):  # where something is left in it, an error is on its way that says why
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
