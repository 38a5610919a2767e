"""Mounting overlays while other threads start programs."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from pathlib import Path

from runta.kernel.host import find_subordinate_ids
from runta.kernel.mounts import mount_overlay, mounts_below, open_user_namespace, unmount


def test_overlays_are_mounted_while_other_threads_fork(house_root: Path) -> None:
    """A child holds copies of this process's descriptors until it executes its program, that of a lower dir too."""
    root = house_root.with_name(f"{house_root.name}-mounts")
    ended = threading.Event()
    starters = [threading.Thread(target=_start_programs, args=(ended,)) for _ in range(4)]
    userns = open_user_namespace(find_subordinate_ids())
    for starter in starters:
        starter.start()
    try:
        for number in range(40):
            _mount_one(root / str(number), userns)
    finally:
        ended.set()
        for starter in starters:
            starter.join()
        os.close(userns)
        for point in mounts_below(root):
            unmount(point)
        shutil.rmtree(root)


def _mount_one(root: Path, userns: int) -> None:
    names = ("layer", "image", "upper", "work", "merged", "attach")
    layer, image, upper, work, merged, attach = (root / name for name in names)
    for place in (layer, image, upper, work, merged):
        place.mkdir(parents=True)
    mount_overlay([layer, image], upper=upper, work=work, merged=merged, attach=attach, userns=userns)
    unmount(merged)


def _start_programs(ended: threading.Event) -> None:
    while not ended.is_set():
        subprocess.run(["true"], check=True)
