"""The command `tacit`. Sub-commands are loaded by name when they are called, so that none pays for another."""

from __future__ import annotations

import importlib
import os
import signal
import sys
from typing import Any

# Before anything of Flower is imported: nothing is reported to anybody, and that is not optional.
os.environ["FLWR_TELEMETRY_ENABLED"] = "0"
os.environ["FLWR_DISABLE_UPDATE_CHECK"] = "1"

import click
import typer
from typer.core import TyperGroup

from tacit import __version__
from tacit.errors import TacitError

# name -> (module:function, one line for the list of commands)
COMMANDS = {
    "init": ("tacit.starter:init", "Write a commented experiment file to begin with."),
    "simulate": ("simulations.cli:simulate", "Try a federation on this machine."),
    "partition": (
        "simulations.cli:partition",
        "Divide a data set among site folders, as a simulation would.",
    ),
    "server": ("server.cli:command", "Coordinate a federation."),
    "client": ("client.cli:command", "Take part in a federation as one site."),
    "doctor": ("tacit.doctor:doctor", "Say what is installed, what is missing and for which use."),
}


class LazyGroup(TyperGroup):
    """Knows its commands by name; imports one when it is called."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the story."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """The command of that name."""
        if cmd_name not in COMMANDS:
            return None
        target, help_line = COMMANDS[cmd_name]
        if ctx.resilient_parsing or "--help" in sys.argv[1:2]:
            return click.Command(cmd_name, help=help_line)
        module, _, function = target.partition(":")
        app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
        app.command(name=cmd_name)(getattr(importlib.import_module(module), function))
        return typer.main.get_command(app)


app = typer.Typer(cls=LazyGroup, no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def tacit(
    version: bool = typer.Option(False, "--version", help="Print the version and exit.", is_eager=True),
) -> None:
    """Federated training in which the server learns a differentially private sum and nothing else."""
    if version:
        print(f"tacit {__version__}")
        raise typer.Exit()


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors of ours are one line on stderr and an exit code that says what kind."""
    try:
        code: Any = app(args=arguments, standalone_mode=False)
    except click.exceptions.Abort:
        code = _interrupted()
    except KeyboardInterrupt:
        code = _interrupted()
    except click.ClickException as error:
        error.show()
        code = error.exit_code
    except TacitError as error:
        print(f"tacit: {error}", file=sys.stderr)
        code = error.exit_code
    sys.exit(code if isinstance(code, int) else 0)


def _interrupted() -> int:
    print("tacit: interrupted; what was complete is kept", file=sys.stderr)
    return 128 + signal.SIGINT
