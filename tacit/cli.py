"""The command `tacit`. Sub-commands are loaded by name when they are called, so that none pays for another."""

from __future__ import annotations

import importlib
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, get_type_hints

import click
import typer
from typer.core import TyperGroup

from tacit import __version__
from tacit.errors import TacitError

INTERRUPTED = 128 + signal.SIGINT

# name -> (module:function or module:group of functions, one line for the list of commands)
COMMANDS = {
    "init": ("tacit.starter:init", "Write a commented experiment file to begin with."),
    "simulate": ("simulations.cli:simulate", "Try a federation on this machine, with a report."),
    "scenarios": ("simulations.scenarios.cli:app", "Stories of health and finance to try it on."),
    "sweep": ("simulations.sweep.command:sweep", "Run an experiment over a grid of keys, and compare."),
    "tune": ("simulations.tuning.command:tune", "Look for good values, and say what looking cost."),
    "partition": ("simulations.cli:partition", "Divide a data set among site folders, without training."),
    "provision": ("server.provision_cli:app", "Make a federation's kits, and keep its roster."),
    "server": ("server.cli:command", "Coordinate a federation."),
    "client": ("client.cli:app", "Take part in a federation as one site."),
    "submit": ("server.submit_cli:submit", "Have a federation run an experiment, and follow it."),
    "runs": ("server.submit_cli:runs", "List a federation's runs."),
    "logs": ("server.submit_cli:logs", "Show what happened in a run."),
    "report": ("server.submit_cli:report", "Write the report and the privacy statement of a run anew."),
    "stop": ("server.submit_cli:stop", "End a run; what was complete is kept."),
    "rehearse": ("simulations.cli:rehearse", "Try a whole federation, secured, on this machine."),
    "export": (
        "tacit.inference.command:export",
        "Write a run's model for other runtimes: ONNX, torch.export.",
    ),
    "synthesize": (
        "tacit.inference.synthesize:synthesize",
        "Write a table of rows that a run's generator makes up.",
    ),
    "serve": ("tacit.inference.command:serve", "Answer requests for predictions over gRPC."),
    "audit": ("tacit.audit_cli:app", "Look into audit logs, and attack a training to test its privacy."),
    "doctor": ("tacit.doctor:doctor", "Say what is installed, and what is missing for which use."),
}
# Sub-commands that join a group from another folder: group -> name -> module:function
JOINS = {"audit": {"privacy": "simulations.auditing.cli:privacy"}}


class LazyGroup(TyperGroup):
    """Knows its commands by name and one line; imports one when it is called."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self.suggest_commands = False  # click does it already
        self.commands = {name: click.Command(name, help=line) for name, (_, line) in COMMANDS.items()}

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Names, in the order of the story."""
        return list(COMMANDS)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """The command that `args` begin with, imported now."""
        name, _, rest = super().resolve_command(ctx, args)
        return name, load(str(name)), rest


def load(name: str) -> click.Command:
    """Imports one command, or a group of them, and makes a command of it."""
    target = _target(COMMANDS[name][0])
    if isinstance(target, typer.Typer):
        group = typer.main.get_group(target)
        group.name = name
        for info in target.registered_commands:
            if info.callback is not None:
                _explain(group.commands[info.name or info.callback.__name__], info.callback)
        for joined, place in JOINS.get(name, {}).items():
            group.commands[joined] = _command(joined, _target(place))
        return group
    return _command(name, target)


def _target(place: str) -> Any:
    module, _, attribute = place.partition(":")
    return getattr(importlib.import_module(module), attribute)


def _command(name: str, target: Callable[..., Any]) -> click.Command:
    app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)
    app.command(name=name)(target)
    command = typer.main.get_command(app)
    _explain(command, target)
    return command


def _explain(command: click.Command, function: Callable[..., Any]) -> None:
    """Gives arguments their help back: click 8.5 drops what Typer says of them."""
    hints = get_type_hints(function, include_extras=True)
    for parameter in command.params:
        for extra in getattr(hints.get(str(parameter.name)), "__metadata__", ()):
            parameter.help = extra.help


app = typer.Typer(
    cls=LazyGroup, invoke_without_command=True, add_completion=False, pretty_exceptions_enable=False
)


def _print_version(wanted: bool) -> None:
    if wanted:
        print(f"tacit {__version__}")
        raise typer.Exit()


@app.callback()
def tacit(
    context: typer.Context,
    version: bool = typer.Option(
        False, "--version", help="Print the version and exit.", is_eager=True, callback=_print_version
    ),
) -> None:
    """Train a PyTorch model on data that stay where they are. The server learns a private sum, nothing else.

    Begin with: tacit init, then tacit simulate experiment.toml
    """
    if context.invoked_subcommand is None:
        typer.echo(context.get_help(), nl=False)  # Rich draws it by itself and leaves nothing to print


def main(arguments: list[str] | None = None) -> None:
    """Entry point: errors of ours are one line on stderr and an exit code that says what kind."""
    with _no_lost_interrupt():
        _main(arguments)


@contextmanager
def _no_lost_interrupt() -> Iterator[None]:
    """A Ctrl-C that comes inside a callback of the garbage collector, where Python drops it, comes again."""
    before = sys.unraisablehook

    def hook(ignored: Any) -> None:
        if not issubclass(ignored.exc_type, KeyboardInterrupt):
            before(ignored)
            return
        # Raised here it would be dropped once more. A thread could not be started: its lock may be held.
        signal.signal(signal.SIGALRM, signal.default_int_handler)
        signal.setitimer(signal.ITIMER_REAL, 0.01)

    sys.unraisablehook = hook
    try:
        yield
    finally:
        sys.unraisablehook = before


def _main(arguments: list[str] | None) -> None:
    try:
        code: Any = app(args=arguments, prog_name="tacit", standalone_mode=False)
        if code == INTERRUPTED:  # what typer makes of Ctrl-C, without a word
            _interrupted()
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
    return INTERRUPTED


if __name__ == "__main__":
    main()
