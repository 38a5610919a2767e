"""What every image has, whatever it was made from: mount points, and files that are expected to be there.

The tree may come from anywhere, so a name is never followed: `run` may be a symlink to a directory of this host.
"""

from __future__ import annotations

import os
from pathlib import Path

from runta.store.unpack import Parts, Unpacker

_MODE_DIRECTORY = 0o755
_MODE_STICKY = 0o1777
_MODE_PRIVATE = 0o700
_MODE_FILE = 0o644
_MODE_MOUNT_POINT = 0o555

# Made into real directories: something is mounted there, or below.
_REAL = {
    ("proc",): _MODE_MOUNT_POINT,
    ("sys",): _MODE_MOUNT_POINT,
    ("dev",): _MODE_DIRECTORY,
    ("run",): _MODE_DIRECTORY,
    ("run", "runta"): _MODE_DIRECTORY,
    ("tmp",): _MODE_STICKY,
    ("etc",): _MODE_DIRECTORY,
}
# Made where nothing stands there; a symlink is the image's own choice.
_OPTIONAL = {("root",): _MODE_PRIVATE, ("var",): _MODE_DIRECTORY, ("var", "tmp"): _MODE_STICKY}
_HOSTS = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n"
_FILES = {
    ("etc", "resolv.conf"): "",
    ("etc", "hostname"): "",
    ("etc", "hosts"): _HOSTS,
    ("etc", "passwd"): "root:x:0:0:root:/root:/bin/sh\n",
    ("etc", "group"): "root:x:0:\n",
}


def complete(rootfs: Path) -> None:
    """Add what is missing, and put real files and directories where a symlink would lead a mount astray."""
    with Unpacker(rootfs) as tree:
        for place, mode in _REAL.items():
            if not (rootfs / "/".join(place)).is_dir() or _is_link(rootfs, place):
                tree.remove(place)
                _make_directory(rootfs, place, mode)
        for place, mode in _OPTIONAL.items():
            if (
                tree.lstat(place) is None
                and not _is_link(rootfs, place[:-1])
                and (rootfs / "/".join(place)).parent.is_dir()
            ):
                _make_directory(rootfs, place, mode)
        for place, text in _FILES.items():
            if tree.lstat(place) is None or (place == ("etc", "resolv.conf") and _is_link(rootfs, place)):
                tree.remove(place)
                _write(rootfs, place, text)


def _is_link(rootfs: Path, place: Parts) -> bool:
    return (rootfs / "/".join(place)).is_symlink()


def _make_directory(rootfs: Path, place: Parts, mode: int) -> None:
    path = rootfs / "/".join(place)
    path.mkdir()
    path.chmod(mode)


def _write(rootfs: Path, place: Parts, text: str) -> None:
    path = rootfs / "/".join(place)
    fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC, _MODE_FILE)
    with os.fdopen(fd, "w", encoding="utf-8") as file:
        file.write(text)
        os.fchmod(file.fileno(), _MODE_FILE)
