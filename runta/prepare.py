"""Prepare this host's images: build the recipes' ones that are missing. Works without the service.

Run as a module: `python -m runta.prepare [NAME…]`; no name means every recipe.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence

from runta.errors import RuntaError
from runta.kernel.rootfs import Rootfs
from runta.layout import Layout
from runta.recipes import list_recipes
from runta.settings import Settings, load_settings
from runta.store.images import Images

_MIB = 1 << 20


def ensure_images(settings: Settings, names: Sequence[str], say: Callable[[str], None]) -> None:
    """Build the images that are missing, smallest effort first. Raises a ServiceError."""
    images = Images(Layout(settings.state_dir, settings.run_dir), Rootfs())
    for name in names or sorted(list_recipes()):
        if images.find(name) is None:
            say(f"image {name}: building (the first time takes a while)")
        start = time.monotonic()
        image, built = images.ensure(name)
        took = f", built in {time.monotonic() - start:.1f} s" if built else ""
        say(f"image {name}: {image.size_bytes / _MIB:.1f} MiB, {image.id}{took}")


def main() -> int:
    """Build with the settings of this process."""
    try:
        ensure_images(load_settings(), sys.argv[1:], lambda line: print(line, flush=True))  # noqa: T201
    except RuntaError as err:
        print(err, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
