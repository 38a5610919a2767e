"""Prepare this host: subordinate ids, CRIU, pycriu. Every step looks first and does nothing where nothing is to do.

Run as a module: `python -m runta.kernel.provision`.
"""

from __future__ import annotations

import sys
import sysconfig
from collections.abc import Callable
from pathlib import Path

from runta.errors import KernelError, PermissionDenied, RuntaError
from runta.kernel.criu_prefix import criu_program, install_criu, pycriu_directory
from runta.kernel.installed import MIN_CRIU, criu_version, find_host_criu, is_root
from runta.kernel.process import run
from runta.kernel.subids import ensure_subordinate_ids
from runta.settings import Settings, load_settings

Say = Callable[[str], None]

PTH_NAME = "runta-pycriu.pth"
_APT_TIMEOUT = 900.0
_QUICK = 60.0
_MODE_DIRECTORY = 0o755
_HOST_PYCRIU = Path("/usr/lib/python3/dist-packages/pycriu")


def provision(settings: Settings, say: Say) -> None:
    """Every step in order. Raises the first step's error."""
    if not is_root():
        raise PermissionDenied("preparing this host needs root", hint="sudo make setup")
    provide_subordinate_ids(say)
    criu = provide_criu(settings, say)
    provide_pycriu(settings, criu, Path(sysconfig.get_path("purelib")), say)
    verify_criu(criu, say)


def provide_subordinate_ids(say: Say) -> None:
    """A range of 65536 ids for the runtimes of this host."""
    ids, written = ensure_subordinate_ids()
    say(f"ids: {ids.start}-{ids.start + ids.size - 1}" + (" written to /etc/subuid and /etc/subgid" if written else ""))


def provide_criu(settings: Settings, say: Say) -> Path:
    """A CRIU that is new enough: the one there is, the host's package, or a private one. Returns the program."""
    private = criu_program(settings.lib_dir)
    for program in (private, find_host_criu()):
        if program is not None and _is_new_enough(program):
            say(f"criu: {_version_text(program)} at {program}")
            return program
    if _archive_has_new_criu():
        say("criu: installing the host's package")
        run(
            ["apt-get", "-qq", "-y", "--no-install-recommends", "install", "criu", "python3-pycriu"],
            timeout=_APT_TIMEOUT,
        )
        installed = find_host_criu()
        if installed is not None and _is_new_enough(installed):
            return installed
    say(f"criu: fetching one into {settings.lib_dir} (the host's own is missing or too old)")
    program = install_criu(settings.lib_dir)
    say(f"criu: {_version_text(program)} at {program}")
    return program


def provide_pycriu(settings: Settings, criu: Path, site_packages: Path, say: Say) -> None:
    """Let this environment import pycriu, and nothing else, from where CRIU's package put it."""
    private = pycriu_directory(settings.lib_dir)
    directory = private if criu == criu_program(settings.lib_dir) else _link_host_pycriu(settings.lib_dir)
    pth = site_packages / PTH_NAME
    line = f"{directory}\n"
    if not pth.exists() or pth.read_text() != line:
        pth.write_text(line)
        say(f"pycriu: {pth.name} points at {directory}")
    done = run([sys.executable, "-c", "import pycriu.images"], timeout=_QUICK, check=False)
    if done.returncode != 0:
        raise KernelError(
            "pycriu can't be imported",
            cause=(done.stderr.strip().splitlines() or ["it said nothing"])[-1],
            hint=f"remove {directory.parent} and run `make setup` again",
        )
    say(f"pycriu: {directory}")


def verify_criu(criu: Path, say: Say) -> None:
    """Ask CRIU whether it can work on this kernel. Raises KernelError with what it lacks."""
    done = run([criu, "check"], timeout=_QUICK, check=False)
    said = (done.stdout + done.stderr).strip().splitlines()
    if done.returncode != 0:
        raise KernelError(
            "CRIU can't work on this host",
            cause=" | ".join(line for line in said[-3:]) or f"`criu check` ended with code {done.returncode}",
            hint="the kernel needs CONFIG_CHECKPOINT_RESTORE; `criu check --all` tells more",
        )
    say(f"criu check: {said[-1] if said else 'ok'}")


def _link_host_pycriu(lib_dir: Path) -> Path:
    """A directory with a link to the host's pycriu: all of dist-packages would shadow this environment's packages."""
    if not _HOST_PYCRIU.is_dir():
        run(["apt-get", "-qq", "-y", "--no-install-recommends", "install", "python3-pycriu"], timeout=_APT_TIMEOUT)
    directory = lib_dir / "host-python"
    directory.mkdir(mode=_MODE_DIRECTORY, parents=True, exist_ok=True)
    link = directory / "pycriu"
    if not link.is_symlink():
        link.symlink_to(_HOST_PYCRIU)
    return directory


def _is_new_enough(program: Path) -> bool:
    return program.exists() and criu_version(program) >= MIN_CRIU


def _version_text(program: Path) -> str:
    return ".".join(map(str, criu_version(program)))


def _archive_has_new_criu() -> bool:
    """Whether the host's own package sources offer a CRIU that is new enough, with pycriu beside it."""
    policy = run(["apt-cache", "policy", "criu", "python3-pycriu"], timeout=_QUICK, check=False).stdout
    candidates = [line.split()[-1] for line in policy.splitlines() if line.strip().startswith("Candidate:")]
    wanted = ".".join(map(str, MIN_CRIU))
    return len(candidates) == 2 and all(
        candidate != "(none)"
        and run(["dpkg", "--compare-versions", candidate, "ge", wanted], timeout=_QUICK, check=False).returncode == 0
        for candidate in candidates
    )


def main() -> int:
    """Prepare this host with the settings of this process."""
    try:
        provision(load_settings(), lambda line: print(line, flush=True))  # noqa: T201
    except RuntaError as err:
        print(err, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
