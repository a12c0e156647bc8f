"""`tacit client`: a stock Flower SuperNode for one site, on loopback.

The node is Flower's own program. It starts a process for each message, with the `ClientApp` that is installed
here, which finds the site's folder in its node configuration.
"""

from __future__ import annotations

import ipaddress
import time
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated

import typer

from tacit.errors import ConfigError
from tacit.processes import Group, flower_environment, free_port, interrupted_once, postponed_interrupt

STOP_SECONDS = 10.0  # a node that is told to stop takes leave of the SuperLink first


def command(
    site: Annotated[Path | None, typer.Option(help="This site's folder, with data.csv in it.")] = None,
    superlink: Annotated[str, typer.Option(help="HOST:PORT of the SuperLink.")] = "127.0.0.1:8000",
    insecure_loopback: Annotated[
        bool, typer.Option("--insecure-loopback", help="Rehearse on this one machine, without TLS.")
    ] = False,
) -> None:
    """Take part in a federation as one site, until Ctrl-C."""
    if not insecure_loopback:
        raise ConfigError(
            "provisioning and TLS come with a later version; --insecure-loopback rehearses on one machine"
        )
    check_loopback(superlink)
    if site is None or not site.is_dir():
        raise ConfigError("is not a folder" if site else "is needed: this site's folder", key="--site")
    raise typer.Exit(run_node(site.resolve(), superlink))


def check_loopback(address: str) -> None:
    """Raises `ConfigError` unless `address` is HOST:PORT with a host that never leaves this machine."""
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(f"{address!r} is not HOST:PORT", key="--superlink")
    try:
        is_loopback = ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        is_loopback = host == "localhost"
    if not is_loopback:
        raise ConfigError(
            f"{host} is another machine, and --insecure-loopback has no TLS: refused", key="--superlink"
        )


def run_node(site: Path, superlink: str) -> int:
    """Takes part until told to stop (Ctrl-C or SIGTERM), or until the node fails.

    Returns:
        The exit code: 0 when told to stop.

    Guarantees:
        When it returns, no process of the node is left.
    """
    with suppress(KeyboardInterrupt), interrupted_once():
        while not _run_once(site, superlink):
            # A SuperLink that was started anew does not know the node, which ends then, with code 0.
            typer.echo("the SuperLink has forgotten this node: joining again", err=True)
            time.sleep(0.2)
        return 1
    return 0


def _run_once(site: Path, superlink: str) -> int:
    """Runs one node until it ends; its exit code."""
    home = site / "flower"
    home.mkdir(mode=0o700, exist_ok=True)
    command = ["flower-supernode", "--insecure", "--superlink", superlink, "--isolation", "subprocess"]
    command += ["--port", str(free_port()), "--node-config", node_config(site)]
    with ExitStack() as stack:
        with postponed_interrupt():
            node = Group(command, environment=flower_environment(home), folder=home, patience=STOP_SECONDS)
            stack.enter_context(node)
        return node.leader.wait()


def node_config(site: Path) -> str:
    """`site` as Flower's key=value text: a TOML string without escapes, which is all that its parser knows.

    Raises:
        ConfigError: the path has a quote or a line break in it.
    """
    if any(character in str(site) for character in "'\n\r"):
        raise ConfigError("a path with a quote or a line break in it cannot be passed on", key="--site")
    return f"site='{site}'"
