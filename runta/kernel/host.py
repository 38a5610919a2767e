"""What this host can do, found by trying. `check_host` is what `runta doctor` shows."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from runta.errors import RuntaError
from runta.kernel import probes
from runta.kernel.cgroups import find_cgroups
from runta.kernel.criu_rpc import ask_features
from runta.kernel.installed import (
    MIN_CRIU,
    criu_version,
    find_criu,
    find_host_criu,
    find_init_binary,
    find_program,
    is_root,
    parse_version,
    runc_version,
)
from runta.kernel.lazy import try_userfaultfd
from runta.kernel.merging import RUN, is_merging, try_merging
from runta.kernel.process import run
from runta.kernel.subids import find_subordinate_ids
from runta.layout import Layout
from runta.settings import Settings

__all__ = [
    "MIN_CRIU",
    "Check",
    "check_host",
    "criu_version",
    "find_criu",
    "find_host_criu",
    "find_init_binary",
    "find_subordinate_ids",
    "is_root",
    "parse_version",
    "runc_version",
]

_QUICK = 30.0
_GIB = 1 << 30
_LOW_SPACE = 5 * _GIB
_CONTROLLERS = ("cpu", "memory", "pids", "freezer")
_MIN_KERNEL = (5, 12)


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One thing this host has or lacks."""

    name: str
    ok: bool
    found: str
    """What was found."""
    cost: str = ""
    """What does not work, or what is slower, without it; empty where `ok`."""
    mend: str = ""
    """The command or the step that mends it; empty where `ok`."""
    required: bool = True
    """False: everything works without it, only worse."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Question:
    """What to look at, and what it means if the answer is no. `probe` tells whether it is well, and what was found."""

    name: str
    probe: Callable[[Settings], tuple[bool, str]]
    cost: str
    mend: str
    required: bool = True


def check_host(settings: Settings) -> list[Check]:
    """Look at everything runta stands on. Changes nothing; takes about a quarter of a second."""
    return [_ask(question, settings) for question in _QUESTIONS]


def _ask(question: _Question, settings: Settings) -> Check:
    """A probe that fails is a finding, not the end of the list."""
    try:
        ok, found = question.probe(settings)
    except RuntaError as err:
        ok, found = False, ": ".join(filter(None, (str(getattr(err, "message", err)), getattr(err, "cause", None))))
    except OSError as err:
        ok, found = False, f"can't be told: {err}"
    return Check(
        name=question.name,
        ok=ok,
        found=found,
        cost="" if ok else question.cost,
        mend="" if ok else question.mend,
        required=question.required,
    )


def _probe_root(_: Settings) -> tuple[bool, str]:
    return is_root(), "root" if is_root() else f"user id {os.geteuid()}"


def _probe_kernel(_: Settings) -> tuple[bool, str]:
    release = os.uname().release
    return parse_version(release, of="the kernel")[:2] >= _MIN_KERNEL, f"Linux {release}"


def _probe_user_namespaces(_: Settings) -> tuple[bool, str]:
    failure = probes.try_user_namespace(find_subordinate_ids())
    return failure is None, failure or "can be made, with an id map"


def _probe_overlay(settings: Settings) -> tuple[bool, str]:
    failure = probes.try_overlay(probes.nearest_existing(settings.state_dir))
    return failure is None, failure or "mounts with index, nfs_export and redirect_dir"


def _probe_idmapped_mounts(settings: Settings) -> tuple[bool, str]:
    directory = probes.nearest_existing(settings.state_dir)
    failure = probes.try_idmapped_overlay(directory, find_subordinate_ids())
    return failure is None, failure or f"work on {probes.file_system_of(directory)}"


def _probe_cgroups(_: Settings) -> tuple[bool, str]:
    cgroups = find_cgroups()
    if cgroups.unified and cgroups.v2 is not None:
        # cgroup v2 freezes without a controller (kernel: cgroup-v2.rst, cgroup.freeze)
        have = {*(cgroups.v2 / "cgroup.controllers").read_text().split(), "freezer"}
        kind = "v2"
    else:
        have = set(cgroups.v1)
        kind = "v1 and v2 (hybrid)" if cgroups.v2 else "v1"
    missing = [name for name in _CONTROLLERS if name not in have]
    lack = f", without {' '.join(missing)}" if missing else ""
    return not missing, f"{kind}; {' '.join(name for name in _CONTROLLERS if name in have)}{lack}"


def _probe_subordinate_ids(_: Settings) -> tuple[bool, str]:
    ids = find_subordinate_ids()
    if ids is None:
        return False, "no line for runta in both /etc/subuid and /etc/subgid"
    return True, f"{ids.start}-{ids.start + ids.size - 1}"


def _probe_runc(settings: Settings) -> tuple[bool, str]:
    program = find_program(settings.runtime)
    if program is None:
        return False, f"{settings.runtime} is not installed"
    return True, f"{runc_version(str(program))} at {program}"


def _probe_criu(settings: Settings) -> tuple[bool, str]:
    criu = find_criu(settings)
    version = criu_version(criu)
    return version >= MIN_CRIU, f"{'.'.join(map(str, version))} at {criu}"


def _probe_criu_kernel(settings: Settings) -> tuple[bool, str]:
    done = run([find_criu(settings), "check"], timeout=_QUICK, check=False)
    said = (done.stdout + done.stderr).strip().splitlines()
    return done.returncode == 0, said[-1] if said else f"ended with code {done.returncode}"


def _probe_random(settings: Settings) -> tuple[bool, str]:
    if not probes.has_vdso_getrandom():
        return True, "the kernel keeps no random state in processes"
    ok = criu_version(find_criu(settings)) >= MIN_CRIU
    return ok, f"the kernel keeps random state in processes; CRIU {'drops it in' if ok else 'copies it into'} forks"


def _probe_dirty_tracking(settings: Settings) -> tuple[bool, str]:
    ok = ask_features(find_criu(settings)).dirty_tracking
    return ok, "the kernel tells which memory changed" if ok else "the kernel lacks CONFIG_MEM_SOFT_DIRTY"


def _probe_lazy_restore(_: Settings) -> tuple[bool, str]:
    failure = try_userfaultfd()
    return failure is None, "userfaultfd is there for runtimes" if failure is None else f"userfaultfd: {failure}"


def _probe_merging(settings: Settings) -> tuple[bool, str]:
    if not settings.ksm:
        return True, "off (RUNTA_KSM=1 has equal memory of runtimes held once)"
    failure = try_merging(sys.executable)
    if failure is None and not is_merging():
        failure = f"{RUN} is off; the service switches it on when it starts"
    return failure is None, failure or f"equal memory of runtimes is held once; {RUN} is on, for the whole host"


def _probe_pycriu(_: Settings) -> tuple[bool, str]:
    try:
        module = importlib.import_module("pycriu.images")
    except ImportError as err:
        return False, str(err)
    return True, str(Path(str(module.__file__)).parent.parent)


def _probe_init(_: Settings) -> tuple[bool, str]:
    path = find_init_binary()
    return True, f"{path}, {path.stat().st_size // 1024} KiB"


def _probe_images(settings: Settings) -> tuple[bool, str]:
    manifests = Layout(settings.state_dir, settings.run_dir).images.glob("*/image.json")
    names = sorted({str(json.loads(path.read_text())["name"]) for path in manifests})
    return bool(names), ", ".join(names) or "none"


def _probe_reflink(settings: Settings) -> tuple[bool, str]:
    directory = probes.nearest_existing(settings.state_dir)
    ok = probes.can_reflink(directory)
    return ok, f"{directory} is on {probes.file_system_of(directory)}, {'with' if ok else 'without'} reflinks"


def _probe_space(settings: Settings) -> tuple[bool, str]:
    directory = probes.nearest_existing(settings.state_dir)
    free = shutil.disk_usage(directory).free
    return free >= _LOW_SPACE, f"{free / _GIB:.1f} GiB free in {directory}"


_QUESTIONS = (
    _Question(name="root", probe=_probe_root, cost="no runtime can be made", mend="sudo runta doctor"),
    _Question(
        name="kernel",
        probe=_probe_kernel,
        cost="no idmapped mounts, so no runtime can be made",
        mend="boot Linux 5.12 or newer (Debian 12 has 6.1)",
    ),
    _Question(
        name="user namespaces",
        probe=_probe_user_namespaces,
        cost="root inside would be root outside, which runta refuses",
        mend="sysctl user.max_user_namespaces=15000",
    ),
    _Question(
        name="overlay",
        probe=_probe_overlay,
        cost="no runtime can be made",
        mend="modprobe overlay, with the state directory on ext4, xfs or btrfs (RUNTA_STATE_DIR)",
    ),
    _Question(
        name="idmapped mounts",
        probe=_probe_idmapped_mounts,
        cost="no runtime can be made",
        mend="put the state directory on ext4, xfs or btrfs (RUNTA_STATE_DIR)",
    ),
    _Question(
        name="cgroups",
        probe=_probe_cgroups,
        cost="what is missing can't be limited; without the freezer there is no checkpoint",
        mend="mount those controllers (a host booted with systemd has them)",
    ),
    _Question(name="subordinate ids", probe=_probe_subordinate_ids, cost="no runtime can be made", mend="make setup"),
    _Question(name="runc", probe=_probe_runc, cost="no runtime can be made", mend="apt-get install runc"),
    _Question(
        name="criu", probe=_probe_criu, cost="the service does not start: forks would not be safe", mend="make setup"
    ),
    _Question(
        name="criu check",
        probe=_probe_criu_kernel,
        cost="no checkpoint and no restore",
        mend="boot a kernel with CONFIG_CHECKPOINT_RESTORE (Debian's have it)",
    ),
    _Question(
        name="random numbers",
        probe=_probe_random,
        cost="two forks would draw the same random bytes, and make the same keys",
        mend="make setup (it installs CRIU 4.2)",
    ),
    _Question(
        name="dirty tracking",
        probe=_probe_dirty_tracking,
        cost="no incremental dumps: every checkpoint writes all memory",
        mend="boot a kernel with CONFIG_MEM_SOFT_DIRTY",
        required=False,
    ),
    _Question(
        name="lazy restore",
        probe=_probe_lazy_restore,
        cost="`runta snapshot restore --lazy` is refused; a restore brings all memory in first",
        mend="sysctl vm.unprivileged_userfaultfd=1 (it holds for all users of the host)",
        required=False,
    ),
    _Question(
        name="memory merging",
        probe=_probe_merging,
        cost="RUNTA_KSM is set, and forks hold equal memory each for itself",
        mend="runta serve, on Linux 6.9 or newer with CONFIG_KSM; or leave RUNTA_KSM out",
        required=False,
    ),
    _Question(
        name="pycriu",
        probe=_probe_pycriu,
        cost="no restore: a dump can't be read, nor a fork's host name be set",
        mend="make setup",
    ),
    _Question(name="guest init", probe=_probe_init, cost="no runtime can be made", mend="make setup"),
    _Question(
        name="images",
        probe=_probe_images,
        cost="`runta run` has nothing to start from",
        mend="runta image build debian",
    ),
    _Question(
        name="state directory",
        probe=_probe_reflink,
        cost="a checkpoint copies changed files instead of sharing them: slower where they are large",
        mend="put the state directory on xfs or btrfs (RUNTA_STATE_DIR)",
        required=False,
    ),
    _Question(
        name="disk space",
        probe=_probe_space,
        cost="a checkpoint takes as much as the memory it holds: they will fail soon",
        mend="runta snapshot rm what is not needed, or make room",
        required=False,
    ),
)
