"""What runc is told: config.json and CRIU's options of one runtime. Values only; nothing is written here.

Sources: the OCI runtime specification (config.md, config-linux.md), runc's docs/checkpoint-restore.md, criu(8).
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from runta.kernel.network import HOOK
from runta.kernel.tree import LINK_REMAP
from runta.layout import RuntimeDir
from runta.models import DEFAULT_PIDS_MAX, IdMap, Resources

GUEST_DIR = "/run/runta"
"""Where the runtime's `run` directory appears inside: the init's binary and socket, the generation file."""
GUEST_INIT = f"{GUEST_DIR}/init"
_CPU_PERIOD_US = 100_000
_MIB = 1 << 20

# Docker's default set without NET_RAW and MKNOD: nothing a build or a test needs is lost, and less can be reached.
CAPABILITIES = (
    "CAP_CHOWN",
    "CAP_DAC_OVERRIDE",
    "CAP_FSETID",
    "CAP_FOWNER",
    "CAP_SETGID",
    "CAP_SETUID",
    "CAP_SETFCAP",
    "CAP_SETPCAP",
    "CAP_NET_BIND_SERVICE",
    "CAP_SYS_CHROOT",
    "CAP_KILL",
    "CAP_AUDIT_WRITE",
)

MASKED_DIRECTORIES = (
    "/proc/acpi",
    "/proc/asound",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
)
MASKED_PATHS = (
    *MASKED_DIRECTORIES,
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
)
_MASK = "runta-masked"
_HOOK_TIMEOUT = 5
"""Seconds until runc gives up a hook: nobody answers it where the service was killed meanwhile."""
READONLY_PATHS = ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger")

# CRIU can't dump io_uring; libraries fall back when it is refused with ENOSYS, as on a kernel without it.
_ENOSYS = 38
_EPERM = 1
_IO_URING = ("io_uring_setup", "io_uring_enter", "io_uring_register")
# Ways into the kernel that no sandbox needs and that Docker's profile refuses to an unprivileged container too.
_REFUSED = (
    "acct",
    "add_key",
    "bpf",
    "clock_adjtime",
    "clock_settime",
    "create_module",
    "delete_module",
    "fanotify_init",
    "finit_module",
    "get_kernel_syms",
    "init_module",
    "ioperm",
    "iopl",
    "kexec_file_load",
    "kexec_load",
    "keyctl",
    "lookup_dcookie",
    "mount_setattr",
    "move_mount",
    "move_pages",
    "nfsservctl",
    "open_by_handle_at",
    "open_tree",
    "perf_event_open",
    "pivot_root",
    "quotactl",
    "quotactl_fd",
    "reboot",
    "request_key",
    "settimeofday",
    "swapoff",
    "swapon",
    "syslog",
    "uselib",
    "userfaultfd",
    "vhangup",
)


def compose_config(
    *,
    runtime_id: str,
    name: str,
    runtime_dir: RuntimeDir,
    resources: Resources,
    ids: IdMap,
    cgroups_path: str,
    hook: Sequence[str] | None,
    limited: bool,
) -> dict[str, Any]:
    """config.json of a runtime.

    `limited` false leaves cpu and pids free: CRIU and its helpers run inside the new cgroup during a restore, and
    the limits are set afterwards.
    """
    mapping = [{"containerID": 0, "hostID": ids.start, "size": ids.size}]
    return {
        "ociVersion": "1.0.2",
        "process": _compose_process(),
        "root": {"path": str(runtime_dir.merged), "readonly": False},
        "hostname": name,
        "mounts": _compose_mounts(runtime_dir),
        "hooks": {"createRuntime": [{"path": hook[0], "args": list(hook), "timeout": _HOOK_TIMEOUT}]} if hook else {},
        "annotations": {"org.criu.config": str(runtime_dir.criu_conf), "dev.runta.id": runtime_id},
        "linux": {
            "uidMappings": mapping,
            "gidMappings": mapping,
            "namespaces": [{"type": kind} for kind in ("pid", "network", "ipc", "uts", "mount", "user")],
            "cgroupsPath": cgroups_path,
            "resources": compose_resources(resources, limited=limited),
            "seccomp": compose_seccomp(),
            "maskedPaths": list(MASKED_PATHS),
            "readonlyPaths": list(READONLY_PATHS),
            "rootfsPropagation": "private",
        },
    }


def _compose_process() -> dict[str, Any]:
    capabilities = list(CAPABILITIES)
    return {
        "terminal": False,
        "user": {"uid": 0, "gid": 0},
        "args": [GUEST_INIT],
        "env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "cwd": "/",
        "capabilities": dict.fromkeys(("bounding", "effective", "permitted"), capabilities),
        "noNewPrivileges": True,
    }


def _compose_mounts(runtime_dir: RuntimeDir) -> list[dict[str, Any]]:
    """Few: every tmpfs costs one `tar` at dump and at restore. /tmp and /run lie in the overlay."""
    return [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid", "noexec", "nodev"]},
        {
            "destination": "/dev",
            "type": "tmpfs",
            "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k"],
        },
        {
            "destination": "/dev/pts",
            "type": "devpts",
            "source": "devpts",
            "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"],
        },
        {
            "destination": "/dev/shm",
            "type": "tmpfs",
            "source": "shm",
            "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"],
        },
        {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
        {
            "destination": GUEST_DIR,
            "type": "bind",
            "source": str(runtime_dir.run),
            "options": ["bind", "nosuid", "nodev", "rw", "private"],
        },
    ]


def compose_resources(resources: Resources, *, limited: bool) -> dict[str, Any]:
    """`linux.resources`: memory always, cpu and pids only where `limited`."""
    limits: dict[str, Any] = {"memory": {"limit": resources.memory_limit_mib * _MIB}}
    if limited:
        limits["cpu"] = {"quota": resources.vcpus * _CPU_PERIOD_US, "period": _CPU_PERIOD_US}
        limits["pids"] = {"limit": DEFAULT_PIDS_MAX}
    return limits


def compose_seccomp() -> dict[str, Any]:
    """Default allow with refusals: io_uring as if the kernel had none, ways into the kernel with EPERM."""
    return {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [
            {"names": list(_IO_URING), "action": "SCMP_ACT_ERRNO", "errnoRet": _ENOSYS},
            {"names": list(_REFUSED), "action": "SCMP_ACT_ERRNO", "errnoRet": _EPERM},
        ],
    }


def compose_criu_options(empty: Path, *, action_script: Path | None = None) -> str:
    """CRIU's options file: what runc's command line can't say, or says differently from version to version.

    An option whose argument may be left out takes it after `=` only (criu, config.c); written apart, the argument is
    dropped without a word. The network namespace is made empty at a restore and set up by the createRuntime hook:
    nothing inside may change it, so there is nothing of it to dump. Nothing outside can send to it while it is frozen,
    so it needs no lock. The directories that runc masks are tmpfs mounts, and each would cost a tar and a gzip at dump
    and at restore; declared external, they come back as mounts of the directory `empty`.
    """
    options = [
        "network-lock skip",
        "empty-ns net",
        f"ghost-limit {1 << 30}",
        "link-remap",
        "file-locks",
        "manage-cgroups=ignore",
        "tcp-established",
        "verbosity=2",
        *(f"external mnt[{path}]:{_MASK}" for path in MASKED_DIRECTORIES),
        f"external mnt[{_MASK}]:{empty}",
    ]
    if action_script is not None:
        options.append(f"action-script {action_script}")
    return "".join(f"{option}\n" for option in options)


def compose_hook(request: Path, answer: Path) -> tuple[str, ...]:
    """The createRuntime hook of a restore, with the network helper's FIFO and its own."""
    return ("/bin/sh", "-c", HOOK, "hook", str(request), str(answer))


def compose_post_dump(upper: Path, kept: Path) -> str:
    """CRIU's action script of a dump: keeps its link remaps before CRIU removes them.

    `kept`/<inode> becomes a hard link to the file, `kept`/names lists `inode path` pairs, each ended by NUL. CRIU
    starts it at every step; only post-dump with a link remap in the dump costs more than starting a shell.
    """
    link = 'for p; do i=$(stat -c %i "$p"); ln "$p" "$kept/$i" 2>/dev/null; printf "%s %s\\0" "$i" "$p"; done'
    return f"""#!/bin/sh
[ "$CRTOOLS_SCRIPT_ACTION" = post-dump ] || exit 0
grep -q {LINK_REMAP} "$CRTOOLS_IMAGE_DIR/files.img" || exit 0
export kept={shlex.quote(str(kept))}
mkdir -p "$kept" && cd {shlex.quote(str(upper))} || exit 1
exec find . -type f -name '{LINK_REMAP}*' -exec sh -c '{link}' sh {{}} + > "$kept/names"
"""
