"""`tacit client`: a stock Flower SuperNode for one site, on loopback.

The node is Flower's own program. It starts a process for each message, with the `ClientApp` that is installed
here, which finds the site's folder in its node configuration.
"""

from __future__ import annotations

import ipaddress
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Annotated

import typer

from tacit.errors import ConfigError

STOP_SECONDS = 3.0
POLL_SECONDS = 0.2


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
    """Takes part until told to stop (Ctrl-C, SIGTERM; a second one is an order), or until the node fails.

    Returns:
        The exit code: 0 when told to stop.

    Guarantees:
        When it returns, no process of the node is left.
    """
    num_requests = 0

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal num_requests
        num_requests += 1

    before = {number: signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        while not num_requests:
            code = _run_once(site, superlink, lambda: num_requests)
            if code and not num_requests:
                return 1
            if not num_requests:
                # A SuperLink that was started anew does not know the node, which ends then, with code 0.
                typer.echo("the SuperLink has forgotten this node: joining again", err=True)
                time.sleep(POLL_SECONDS)
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    return 0


def _run_once(site: Path, superlink: str, num_requests: Callable[[], int]) -> int:
    """Runs one node until it ends, passing on requests to stop; its exit code."""
    home = site / "flower"
    home.mkdir(mode=0o700, exist_ok=True)
    options = ["--isolation", "subprocess", "--port", str(_free_port()), "--node-config", node_config(site)]
    node = subprocess.Popen(
        ["flower-supernode", "--insecure", "--superlink", superlink, *options],
        env=environment(home),
        cwd=home,
        stdin=subprocess.DEVNULL,
        start_new_session=True,  # a process group of its own, which includes all that the node starts
    )
    passed_on = 0
    while (code := node.poll()) is None:
        if num_requests() > passed_on:
            _signal_group(node.pid, signal.SIGKILL if passed_on else signal.SIGTERM)
            passed_on = num_requests()
        time.sleep(POLL_SECONDS)
    _end_rest(node.pid)
    return code


def environment(home: Path) -> dict[str, str]:
    """The environment of the node and of what it starts.

    Guarantees:
        Flower's telemetry, its update check and its run-time installation are off.
    """
    local = ",".join(filter(None, (os.environ.get("NO_PROXY") or os.environ.get("no_proxy"), "127.0.0.1")))
    return {
        **os.environ,
        "FLWR_HOME": str(home),
        "FLWR_TELEMETRY_ENABLED": "0",
        "FLWR_DISABLE_UPDATE_CHECK": "1",
        "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.25",
        # Flower finds its own programs by name, and would ask its own address through a configured proxy.
        "PATH": os.pathsep.join((sysconfig.get_path("scripts"), os.environ.get("PATH", os.defpath))),
        "NO_PROXY": local,
        "no_proxy": local,
    }


def node_config(site: Path) -> str:
    """`site` as Flower's key=value text: a TOML string without escapes, which is all that its parser knows.

    Raises:
        ConfigError: the path has a quote or a line break in it.
    """
    if any(character in str(site) for character in "'\n\r"):
        raise ConfigError("a path with a quote or a line break in it cannot be passed on", key="--site")
    return f"site='{site}'"


def _end_rest(group: int) -> None:
    """Ends what is left of a group whose leader is gone: Flower's own watch first, SIGKILL after a while."""
    deadline = time.monotonic() + STOP_SECONDS
    while _signal_group(group, signal.SIGTERM) and time.monotonic() < deadline:
        time.sleep(0.1)
    _signal_group(group, signal.SIGKILL)


def _signal_group(group: int, number: signal.Signals) -> bool:
    """Whether anybody was there to get it."""
    try:
        os.killpg(group, number)
    except (ProcessLookupError, PermissionError):
        return False
    return True


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
