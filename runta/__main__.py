"""`runta` and `python -m runta`."""

from __future__ import annotations

import sys


def main() -> int:
    """Run the command line; the exit code."""
    if sys.argv[1:] in (["--version"], ["-V"]):
        from runta import __version__

        sys.stdout.write(f"runta {__version__}\n")
        return 0
    from runta.cli.app import run_command_line

    return run_command_line(sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
