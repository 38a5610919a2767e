"""The command line as a whole: which commands there are, and how their errors and exit codes come out.

A command's module is imported when the command is used.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import Annotated, Any

import typer
import typer.core

from runta.cli.complaints import INTERRUPTED, PIPE_CLOSED, explain, print_complaint
from runta.cli.door import Door, remember_json

_COMMANDS = {
    "run": "runta.cli.runtimes:run",
    "ps": "runta.cli.runtimes:ps",
    "inspect": "runta.cli.runtimes:inspect",
    "exec": "runta.cli.execute:execute",
    "attach": "runta.cli.execute:attach",
    "tasks": "runta.cli.execute:tasks",
    "pause": "runta.cli.runtimes:pause",
    "resume": "runta.cli.runtimes:resume",
    "shutdown": "runta.cli.runtimes:shutdown",
    "boot": "runta.cli.runtimes:boot",
    "fork": "runta.cli.fork:fork",
    "rm": "runta.cli.runtimes:rm",
    "cp": "runta.cli.copy:cp",
    "snapshot": "runta.cli.snapshot:app",
    "checkpoint": "runta.cli.snapshot:app",
    "image": "runta.cli.image:app",
    "secret": "runta.cli.secret:app",
    "events": "runta.cli.events:events",
    "doctor": "runta.cli.host:doctor",
    "env": "runta.cli.host:env",
    "serve": "runta.cli.serve:serve",
}
"""In the order of the help: a function is a command, a `typer.Typer` a group."""
_HIDDEN = {"checkpoint"}
"""Other names of what the help already lists."""
_COMMAND_FIRST = {"ignore_unknown_options": True, "allow_interspersed_args": False}
"""After NAME everything is the command inside, dashes and all."""
_PASSING = {"exec": _COMMAND_FIRST}


class _LazyGroup(typer.core.TyperGroup):
    """Imports a command when it is asked for."""

    def list_commands(self, ctx: Any) -> list[str]:
        return [name for name in _COMMANDS if name not in _HIDDEN]

    def get_command(self, ctx: Any, cmd_name: str) -> Any:
        return _load(cmd_name) if cmd_name in _COMMANDS else None


def run_command_line(words: Sequence[str]) -> int:
    """Run the command of these words. 0: done, 1: an error, 2: wrong usage; `exec` passes the command's code."""
    door = Door()
    try:
        result = _root().main(args=list(words), prog_name="runta", standalone_mode=False, obj=door)
        sys.stdout.flush()
    except (BrokenPipeError, SystemExit):  # typer exits where a pipe was closed, and nowhere else
        _forget_stdout()
        return PIPE_CLOSED
    except KeyboardInterrupt:
        return INTERRUPTED
    except Exception as err:
        complaint = explain(err)
        if complaint is None:
            raise
        print_complaint(complaint, as_json=door.json)
        return complaint.exit_code
    return result if isinstance(result, int) else 0


def _root() -> Any:
    app = typer.Typer(
        cls=_LazyGroup,
        add_completion=False,
        pretty_exceptions_enable=False,
        rich_markup_mode=None,
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_describe)
    return typer.main.get_command(app)


def _print_version(ctx: typer.Context, wanted: bool) -> bool:
    if wanted:
        from runta import __version__

        print(f"runta {__version__}")
        raise typer.Exit
    return wanted


def _describe(
    ctx: typer.Context,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.", callback=remember_json)] = False,
    version: Annotated[
        bool, typer.Option("--version", "-V", help="Print the version.", callback=_print_version, is_eager=True)
    ] = False,
) -> None:
    """Forkable sandboxes for one Linux host."""


def _load(name: str) -> Any:
    module, _, attribute = _COMMANDS[name].partition(":")
    found = getattr(import_module(module), attribute)
    if isinstance(found, typer.Typer):
        command = typer.main.get_command(found)
    else:
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, rich_markup_mode=None)
        app.command(name, context_settings=_PASSING.get(name))(found)
        command = typer.main.get_command(app)
    command.name = name
    return command


def _forget_stdout() -> None:
    """The reader left: nothing may be flushed at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
