"""CRIU: what a dump holds (pycriu), its host name, and the cause behind a refusal.

A dump's files are described in CRIU's images/*.proto; statistics in stats.proto.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from runta.errors import KernelError
from runta.models import DumpedProcess

_O_ACCMODE = 3
_MAP_SHARED = 0x01
_MODE_PRIVATE = 0o700
_NOISE = ("Can't setup RLIMIT_NOFILE", "Can't keep kdat cache")

Image = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Cause:
    """A refusal of CRIU in words: `match` is sought in its error lines."""

    match: re.Pattern[str]
    what: str
    hint: str


_CAUSES: tuple[Cause, ...] = tuple(
    Cause(re.compile(match), what, hint)
    for match, what, hint in (
        (
            r"io_uring",
            "a program uses io_uring, which CRIU can't dump",
            "start the program with io_uring off (Node: UV_USE_IO_URING=0)",
        ),
        (
            r"Can't dump half of stream unix connection|External socket is used|Can't dump name-less external socket",
            "a Unix socket of the runtime is connected to a process outside of it",
            "close that connection and try again",
        ),
        (
            r"ctty inheritance detected",
            "a program's controlling terminal was opened in an order CRIU can't rebuild",
            "end the terminal session inside the runtime, or start it with `runta exec -t`, and try again",
        ),
        (
            r"Can't lookup mount=\S+ for fd=",
            "a program holds a file open that is not part of the runtime's own mounts",
            "close that file and try again",
        ),
        (
            r"Can't dump ghost file \S+ of \d+ size",
            "a program holds a deleted file open that is larger than the limit for such files (1 GiB)",
            "close that file and try again",
        ),
        (
            r"Can't dump nested \w+ namespace|Nested mount namespaces are not supported|nested time namespace",
            "a program made namespaces of its own (a container or a browser sandbox inside the runtime)",
            "end it before the checkpoint",
        ),
        (
            r"in-flight|Connected TCP socket|tcp_half_closed",
            "a TCP connection can't be dumped in its present state",
            "try again in a moment, or close the connection",
        ),
        (
            r"fsnotify.*Can't dump that handle|Can't dump that handle",
            "a program watches a file with inotify that can't be named any more",
            "end the watch and try again",
        ),
        (
            r"is ptraced|already ptraced|ptrace.*Operation not permitted|Unable to seize",
            "a program is being traced by a debugger",
            "detach gdb or strace and try again",
        ),
        (r"Stopped tasks are not supported", "a program is stopped by a signal", "continue it (SIGCONT) and try again"),
        (
            r"Can't dump file \d+ of that type",
            "a program holds a kind of descriptor open that CRIU can't dump",
            "end that program and try again",
        ),
        (r"No space left on device|ENOSPC", "the disk is full", "make room and try again"),
        (
            r"has bad size|has bad build-id",
            "a file differs from the one at the time of the dump",
            "the image or the guest init was replaced; restore on the host state of the checkpoint",
        ),
        (
            r"instruction .* not supported|cpu .*not supported|xfeatures has unsupported",
            "this host's CPU lacks features of the one the dump was made on",
            "restore it on a host with the same CPU features",
        ),
        (
            r"File exists.*fork|Can't fork for",
            "a process id is taken",
            "report this: every runtime has process ids of its own",
        ),
        (
            r"Cannot allocate memory|Out of memory",
            "there is not enough memory",
            "give the runtime or the host more memory",
        ),
    )
)


@dataclass(frozen=True, slots=True)
class Reason:
    """Why CRIU refused: `what` in words, `line` as CRIU said it, `hint` what to do."""

    what: str
    line: str
    hint: str | None


def explain(log: str) -> Reason:
    """Find the cause in CRIU's log. The known noise of unprivileged limits is never the cause."""
    errors = [line for line in log.splitlines() if "Error (" in line and not any(noise in line for noise in _NOISE)]
    for line in errors:
        for cause in _CAUSES:
            if cause.match.search(line):
                return Reason(cause.what, _strip(line), cause.hint)
    for cause in _CAUSES:
        warned = next((line for line in log.splitlines() if "Warn" in line and cause.match.search(line)), None)
        if errors and warned:
            return Reason(cause.what, _strip(warned), cause.hint)
    if errors:
        return Reason("CRIU refused", _strip(errors[0]), None)
    return Reason("CRIU ended without saying why", (log.strip().splitlines() or ["its log is empty"])[-1], None)


def _strip(line: str) -> str:
    """A log line without its clock and pid."""
    return re.sub(r"^\(\d+\.\d+\)\s*(\d+:\s*)?", "", line.strip())


def read_image(path: Path) -> list[Image]:
    """The entries of one of CRIU's image files."""
    import pycriu.images

    try:
        with path.open("rb") as file:
            entries: list[Image] = pycriu.images.load(file)["entries"]
    except (OSError, ValueError, KeyError) as err:
        raise KernelError(f"can't read {path.name} of the dump", cause=str(err)) from err
    return entries


def read_processes(dump: Path) -> tuple[DumpedProcess, ...]:
    """The process tree of a dump, parents first."""
    return tuple(
        DumpedProcess(pid=entry["pid"], parent=entry["ppid"], command=str(_core(dump, entry["pid"])["tc"]["comm"]))
        for entry in read_image(dump / "pstree.img")
    )


def _core(dump: Path, pid: int) -> Image:
    return read_image(dump / f"core-{pid}.img")[0]


def read_memory_bytes(dump: Path) -> int:
    """How much memory the pages in a dump amount to, with those of its pre-dump."""
    return sum(path.stat().st_size for path in dump.rglob("pages-*.img"))


def read_writable_paths(dump: Path) -> set[str]:
    """Paths (inside, absolute) of regular files that a process holds open for writing or has mapped shared.

    At a restore they must lie in the upper dir before CRIU opens them: a copy-up later would part them from their
    mappings.
    """
    files = {entry["id"]: entry for entry in read_image(dump / "files.img")}
    paths = {
        _absolute(entry["reg"]["name"])
        for entry in files.values()
        if "reg" in entry and _opened_for_writing(entry["reg"])
    }
    for image in dump.glob("mm-*.img"):
        for area in read_image(image)[0].get("vmas", []):
            file = files.get(area.get("shmid"))
            if file is not None and "reg" in file and _is_shared_mapping(area):
                paths.add(_absolute(file["reg"]["name"]))
    return paths


def _opened_for_writing(entry: Image) -> bool:
    return _flags(entry.get("flags", 0), {"O_WRONLY": 1, "O_RDWR": 2}) & _O_ACCMODE != 0


def _is_shared_mapping(area: Image) -> bool:
    return _flags(area.get("flags", 0), {"MAP_SHARED": _MAP_SHARED}) & _MAP_SHARED != 0


def _flags(value: object, names: Mapping[str, int]) -> int:
    """A bit field: a number, or names joined by bars, as pycriu shows it pretty or plain."""
    if isinstance(value, int):
        return value
    text = str(value)
    if text.startswith("0x") or text.isdigit():
        return int(text, 0)
    return sum(bit for name, bit in names.items() if name in re.split(r"[\s|]+", text))


def _absolute(name: str) -> str:
    return "/" + name.lstrip("/")


def rewrite_hostname(source: Path, target: Path, name: str) -> None:
    """Write a copy of a dump's utsns image with another host name, so that no task ever sees the old one."""
    import pycriu.images

    with source.open("rb") as file:
        image = pycriu.images.load(file)
    for entry in image["entries"]:
        entry["nodename"] = name
    with target.open("wb") as file:
        pycriu.images.dump(image, file)


def link_dump(dump: Path, target: Path, name: str) -> None:
    """A dump for one restore: hard links to the checkpoint's files, and the host name its own.

    CRIU unlinks and rewrites files of a dump directory in some cases; a restore must never touch the checkpoint's.
    The parts of an incremental dump lie in it, and CRIU's link `parent` is relative.
    """
    for path in dump.iterdir():
        if path.is_symlink():
            (target / path.name).symlink_to(path.readlink())
        elif path.is_dir():
            (target / path.name).mkdir(mode=_MODE_PRIVATE)
            link_dump(path, target / path.name, name)
        elif path.name.startswith("utsns-"):
            rewrite_hostname(path, target / path.name, name)
        else:
            (target / path.name).hardlink_to(path)


def read_log(paths: Iterable[Path]) -> str:
    """The logs that exist, one after the other."""
    return "\n".join(path.read_text(errors="replace") for path in paths if path.exists())
