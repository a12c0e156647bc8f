"""`tacit server --kit`: the supervised SuperLink on loopback, the front before it, and what can be looked at.

Guarantees:
    Nothing but the front listens on an address that others can reach.
    Two servers never work on one kit.
"""

from __future__ import annotations

import ipaddress
import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

import typer

from server.checkpoint import write_file
from server.experiments import roster_of
from server.front import Front
from server.provisioning import CoordinatorKit, certificate_warnings, loopback_certificate
from server.state import locked
from server.superlink import Tls
from server.supervisor import Supervisor
from tacit.processes import LOOPBACK, free_port, interrupted_once
from tacit.secagg.roster import Roster

LOCK_SECONDS = 10.0  # a server that was killed needs a moment to be gone


def serve(folder: Path, state: Path, *, host: str, port: int | None) -> None:
    """Coordinates a federation until Ctrl-C or SIGTERM.

    Args:
        folder: the coordinator's kit.
        state: what the server keeps.
        host, port: where the front listens; "" and None = as federation.toml says.

    Raises:
        ConfigError: the kit is not complete, or the address cannot be used.
        StorageError: another server works on it, or a secret is open to others.
    """
    kit = CoordinatorKit.open(folder.resolve())
    state = state.resolve()
    state.mkdir(mode=0o700, parents=True, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(state, LOCK_SECONDS))
        roster_of(kit.folder)  # there has to be one
        for line in certificate_warnings(kit, datetime.now(UTC).date()):
            say(f"warning: {line}")
        stack.enter_context(interrupted_once())
        link = free_port()
        tls = tls_of(kit, state / "flower")
        front = Front(
            f"https://{LOOPBACK}:{link}",
            host=host or listening_host(kit.federation.host),
            port=kit.federation.port if port is None else port,
            tls=(kit.folder / "tls.pem", kit.folder / "tls.key"),
            ca=kit.folder / "ca.pem",
        )
        stack.enter_context(front)
        write_file(state / "server.json", json.dumps({"pid": os.getpid(), "port": front.port}).encode())
        supervisor = Supervisor(
            state, kit.folder, tls=tls, keys=lambda: node_keys(kit.folder), port=link, tell=say
        )
        say(f"{kit.federation.name}: listening for sites at {kit.federation.address}")
        supervisor.run()


def tls_of(kit: CoordinatorKit, folder: Path) -> Tls:
    """A new certificate for the SuperLink, which nobody but the front and this machine speaks to."""
    key, certificate = loopback_certificate(kit, folder)
    return Tls(kit.folder / "ca.pem", certificate, key)


def node_keys(folder: Path) -> Mapping[str, Path]:
    """The public key of the node of each member that is not revoked, by label."""
    return {label: folder / "nodes" / f"{label}.pub" for label in active_labels(roster_of(folder))}


def active_labels(roster: Roster) -> list[str]:
    """Members that are not revoked, in the order of their index."""
    return [member.label for member in roster.members if member.index in roster.active]


def listening_host(host: str) -> str:
    """Where to listen for sites that dial `host`: on this machine only where they can dial no other way."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return LOOPBACK if host == "localhost" else "0.0.0.0"  # noqa: S104
    if address.is_loopback:
        return host
    return "0.0.0.0" if address.version == 4 else "::"  # noqa: S104


def say(text: str) -> None:
    """A line for whoever watches the server."""
    typer.echo(f"{datetime.now().astimezone().strftime('%H:%M:%S')}  {text}")
