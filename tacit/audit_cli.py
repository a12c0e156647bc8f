"""`tacit audit`: what a log says, whether it is whole, and whether two sides tell the same story."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Annotated

import typer

from tacit import audit_check
from tacit.errors import ConfigError, RunFailed

app = typer.Typer(
    name="audit",
    help="Look into audit logs, and attack a training to test its privacy.",
    add_completion=False,
    pretty_exceptions_enable=False,
    no_args_is_help=True,
)


@app.callback()
def _audit() -> None:
    """Check audit logs, one's own and those of others; test a claim of privacy."""


@app.command("verify")
def verify(
    log: Annotated[Path, typer.Argument(help="A kit, or an audit.jsonl.")],
    other: Annotated[Path | None, typer.Argument(help="The log of another side, to compare with.")] = None,
    key: Annotated[
        str, typer.Option(help="The server's identity key, hexadecimal; else from the kit's roster.")
    ] = "",
) -> None:
    """Say whether a log is whole, its receipts are right, and two logs tell the same story. Exit code 0 or 1."""
    sides = [audit_check.open_side(path) for path in (log, other) if path is not None]
    if key and not re.fullmatch("[0-9a-fA-F]{64}", key):
        raise ConfigError("must be 64 hexadecimal digits", key="--key")
    known = bytes.fromhex(key) if key else next((side.key for side in sides if side.key), b"")
    found = [f"{side.path}: {line}" for side in sides for line in audit_check.check(side, known)]
    if len(sides) == 2:
        found += audit_check.compare(*sides)
    for side in sides:
        typer.echo(f"{side.path}: {audit_check.summary(side)}")
    for line in found:
        typer.echo(line)
    if found:
        raise RunFailed(f"{len(found)} contradictions or errors")
    typer.echo("whole, signed and of one story" if len(sides) == 2 else "whole and signed")


@app.command("restore")
def restore(
    kit: Annotated[Path, typer.Argument(help="The coordinator's kit, put back from a backup.")],
    site: Annotated[Path, typer.Argument(help="A site's audit.jsonl, or kit: of the site that saw most.")],
) -> None:
    """Bring receipts that a restored server has lost back from a site's log. They are signed by the server itself."""
    added = audit_check.restore(audit_check.open_side(kit), audit_check.open_side(site))
    typer.echo(f"{added} receipts brought back")
