"""A private CRIU for hosts whose own is too old: Debian's newer package, with the libraries it needs, in a prefix.

The host's libc stays as it is: the program is started by the prefix's own loader with the prefix's libraries. apt works
on a state of its own (no installed packages, one source), so the host's packages and sources are not touched.
"""

from __future__ import annotations

import shlex
import shutil
import uuid
from pathlib import Path

from runta.errors import KernelError
from runta.kernel.process import run

SUITE = "forky"
_SOURCE = "http://deb.debian.org/debian"
_KEYRING = Path("/usr/share/keyrings/debian-archive-keyring.gpg")
_FETCH_TIMEOUT = 900.0
_QUICK = 60.0
_MODE_DIRECTORY = 0o755
_MODE_PROGRAM = 0o755
_MIN_VERSION = "4.2"


def criu_prefix(lib_dir: Path) -> Path:
    return lib_dir / "criu"


def criu_program(lib_dir: Path) -> Path:
    """The wrapper; whether or not it is there."""
    return criu_prefix(lib_dir) / "bin/criu"


def pycriu_directory(lib_dir: Path) -> Path:
    """A directory that holds the Python package `pycriu` and nothing else."""
    return criu_prefix(lib_dir) / "python"


def install_criu(lib_dir: Path) -> Path:
    """Download CRIU into `<lib_dir>/criu`, replacing what is there by a rename, and return the program.

    Raises KernelError with what apt or CRIU said; what was there before stays then.
    """
    if not _KEYRING.exists():
        raise KernelError(
            "can't fetch CRIU", cause=f"there is no {_KEYRING}", hint="apt-get install debian-archive-keyring"
        )
    lib_dir.mkdir(mode=_MODE_DIRECTORY, parents=True, exist_ok=True)
    place = criu_prefix(lib_dir)
    staged = lib_dir / f"criu.new-{uuid.uuid4()}"
    staged.mkdir(mode=_MODE_DIRECTORY)
    try:
        _fill(staged)
        _write_wrapper(staged, staged)
        run([staged / "bin/criu", "--version"], timeout=_QUICK)
        _write_wrapper(staged, place)
        _replace(staged, place)
    finally:
        shutil.rmtree(staged, ignore_errors=True)
    return criu_program(lib_dir)


def _fill(staged: Path) -> None:
    apt = staged / "apt"
    packages, python = _download(apt)
    for package in packages:
        run(["dpkg-deb", "--extract", package, staged / "prefix"], timeout=_QUICK)
    run(["dpkg-deb", "--extract", python, apt / "python"], timeout=_QUICK)
    found = next((apt / "python").glob("usr/lib/python3*/dist-packages/pycriu"), None)
    if found is None:
        raise KernelError("python3-pycriu holds no pycriu", cause=python.name)
    (staged / "python").mkdir(mode=_MODE_DIRECTORY)
    found.rename(staged / "python/pycriu")
    shutil.rmtree(apt)


def _download(apt: Path) -> tuple[list[Path], Path]:
    """The packages of CRIU and all it depends on, and the one of pycriu alone."""
    config = _write_apt_state(apt)
    get = ["apt-get", "--quiet", "--quiet", "--yes", f"--config-file={config}"]
    _fetch([*get, "update"])
    _fetch([*get, "--download-only", "install", "criu"])
    packages = sorted((apt / "cache/archives").glob("*.deb"))
    version = next((package.name.split("_")[1] for package in packages if package.name.startswith("criu_")), "none")
    if run(["dpkg", "--compare-versions", version, "ge", _MIN_VERSION], timeout=_QUICK, check=False).returncode != 0:
        raise KernelError(
            "the archive's CRIU is too old", cause=f"{SUITE} has {version}", hint="install CRIU 4.2 or newer yourself"
        )
    python = apt / "pycriu"
    python.mkdir()
    run([*get, "download", "python3-pycriu"], timeout=_FETCH_TIMEOUT, cwd=python)
    return packages, next(python.glob("*.deb"))


def _fetch(argv: list[str]) -> None:
    try:
        run(argv, timeout=_FETCH_TIMEOUT)
    except KernelError as err:
        raise KernelError(
            "can't fetch CRIU from the Debian archive",
            cause=f"{err.message}: {err.cause or 'apt said nothing'}",
            hint=f"make sure that {_SOURCE} can be reached, or install CRIU {_MIN_VERSION} or newer yourself",
        ) from err


def _write_apt_state(apt: Path) -> Path:
    for name in ("lists/partial", "cache/archives/partial", "preferences.d", "sources.d"):
        (apt / name).mkdir(parents=True)
    (apt / "status").write_text("")
    (apt / "sources.list").write_text(f"deb [signed-by={_KEYRING}] {_SOURCE} {SUITE} main\n")
    settings = {
        "Dir::State": apt,
        "Dir::State::lists": apt / "lists",
        "Dir::State::status": apt / "status",
        "Dir::Cache": apt / "cache",
        "Dir::Cache::archives": apt / "cache/archives",
        "Dir::Etc::sourcelist": apt / "sources.list",
        "Dir::Etc::sourceparts": apt / "sources.d",
        "Dir::Etc::preferences": apt / "preferences",
        "Dir::Etc::preferencesparts": apt / "preferences.d",
        "APT::Install-Recommends": "false",
        "APT::Install-Suggests": "false",
        "APT::Sandbox::User": "root",
        "Acquire::Languages": "none",
        "Acquire::IndexTargets::deb::DEP-11::DefaultEnabled": "false",
        "Acquire::IndexTargets::deb::CNF::DefaultEnabled": "false",
    }
    config = apt / "apt.conf"
    # Hooks of the host's own configuration would clean or rebuild the host's caches.
    cleared = ("APT::Update::Post-Invoke", "APT::Update::Post-Invoke-Success", "DPkg::Post-Invoke")
    lines = [f"#clear {name};" for name in cleared] + [f'{name} "{value}";' for name, value in settings.items()]
    config.write_text("\n".join(lines) + "\n")
    return config


def _write_wrapper(staged: Path, place: Path) -> None:
    """`bin/criu`, for a prefix that will stand at `place`: its loader, its libraries, the name runc and logs expect."""
    loader = next(iter(sorted((staged / "prefix").glob("usr/lib/*/ld-linux*.so*"))), None)
    program = next(
        (path for path in (staged / "prefix/usr/sbin/criu", staged / "prefix/usr/bin/criu") if path.exists()), None
    )
    if loader is None or program is None:
        raise KernelError("the downloaded CRIU is not complete", cause="its loader or its program is missing")
    moved = [shlex.quote(str(place / path.relative_to(staged))) for path in (loader, loader.parent, program)]
    wrapper = staged / "bin/criu"
    wrapper.parent.mkdir(mode=_MODE_DIRECTORY, exist_ok=True)
    wrapper.write_text(f'#!/bin/sh\nexec {moved[0]} --argv0 criu --library-path {moved[1]} {moved[2]} "$@"\n')
    wrapper.chmod(_MODE_PROGRAM)


def _replace(staged: Path, place: Path) -> None:
    old = place.with_name(f"criu.old-{uuid.uuid4()}")
    if place.exists():
        place.rename(old)
    try:
        staged.rename(place)
    except OSError:
        if old.exists():
            old.rename(place)
        raise
    shutil.rmtree(old, ignore_errors=True)
