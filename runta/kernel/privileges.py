"""This process's own privileges and ties (prctl(2), capabilities(7))."""

from __future__ import annotations

import os

import prctl

from runta.errors import PermissionDenied


def end_with_parent(number: int) -> None:
    """Ask the kernel to signal this process when its parent ends (PR_SET_PDEATHSIG)."""
    prctl.set_pdeathsig(number)


def name_process(name: str) -> None:
    """The name `ps` shows for this process, 15 bytes at most (PR_SET_NAME)."""
    prctl.set_name(name[:15])


def adopt_orphans() -> None:
    """Become the reaper of this process's orphaned descendants (PR_SET_CHILD_SUBREAPER).

    A runtime's init is started by runc, which goes away: its exit status comes to the service only this way.
    """
    prctl.set_child_subreaper(1)


def require_root() -> None:
    """Raise PermissionDenied unless this process may do what sandboxes need."""
    wanted = ("sys_admin", "net_admin", "sys_ptrace", "dac_override", "chown", "setuid", "setgid", "mknod")
    missing = [name for name in wanted if not getattr(prctl.cap_permitted, name)]
    if os.geteuid() != 0 or missing:
        raise PermissionDenied(
            "runta needs root",
            cause=f"missing capabilities: {', '.join(missing)}"
            if os.geteuid() == 0
            else f"this is user id {os.geteuid()}",
            hint="run it as root, for instance with sudo, or set RUNTA_ENDPOINT to a service that runs",
        )
