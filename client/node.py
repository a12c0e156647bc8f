"""A stock Flower SuperNode for one site, on loopback: Flower's own program, for whoever prefers it to the agent.

It starts a process for each message, with the `ClientApp` that is installed here, which finds the site's folder in
its node configuration. What it gives up: it installs the bundle that the server sends and would run its code, it
imports torch for each message, it asks for messages every three seconds, and it takes three processes.
"""

from __future__ import annotations

import time
from contextlib import ExitStack, suppress
from pathlib import Path

import typer

from tacit.errors import ConfigError
from tacit.processes import Group, flower_environment, free_port, interrupted_once, postponed_interrupt

STOP_SECONDS = 10.0  # a node that is told to stop takes leave of the SuperLink first


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
