"""`tacit server --kit`: the supervised SuperLink on loopback, the front before it, and what can be looked at.

Guarantees:
    Nothing but the front listens on an address that others can reach.
    Two servers never work on one kit.
"""

from __future__ import annotations

import ipaddress
import json
import logging
import os
import subprocess
from collections.abc import Mapping
from contextlib import ExitStack, closing, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from server.epochs import active_nodes, in_force, missing_signatures, proposal, warnings
from server.flower_files import watched
from server.front import Front
from server.metrics import Metrics, serve_metrics
from server.provisioning import CoordinatorKit, loopback_certificate
from server.roster_desk import RosterDesk
from server.runs import Run
from server.state import locked
from server.superlink import DATABASE, Tls
from server.supervisor import Supervisor, Watch
from tacit import __version__
from tacit.audit import SERVER_FILE, AuditLog, RosterAccepted, Started, Stopped
from tacit.durable import write_file
from tacit.errors import ConfigError
from tacit.health import Health, serve_health
from tacit.processes import LOOPBACK, Group, free_port, interrupted_once, leave_no_core, tacit_command
from tacit.secagg.identity import readable

LOCK_SECONDS = 10.0  # a server that was killed needs a moment to be gone
REPORT_SECONDS = 120.0
SERVICE = "server"  # its name in grpc.health.v1: whether sites can be served
LOG = logging.getLogger(__name__)


def serve(folder: Path, *, host: str, port: int | None, health_port: int, metrics_port: int) -> None:
    """Coordinates a federation until Ctrl-C or SIGTERM.

    Args:
        folder: the coordinator's kit.
        host, port: where the front listens; "" and None = as federation.toml says.
        health_port, metrics_port: on loopback; 0 = none.

    Raises:
        ConfigError: the kit is not complete, or the address cannot be used.
        StorageError: another server works on it, or a secret is open to others.
    """
    leave_no_core()  # SuperLink and ServerApp inherit it
    kit = CoordinatorKit.open(folder.resolve())
    state = kit.folder / "state"
    state.mkdir(mode=0o700, exist_ok=True)
    with ExitStack() as stack:
        stack.enter_context(locked(state, LOCK_SECONDS))
        signed = proposal(kit)
        if signed is None:
            raise ConfigError("no roster yet: tacit provision collect makes it", source=kit.folder)
        for line in warnings(kit, datetime.now(UTC).date()):
            LOG.warning("%s", line)
        stack.enter_context(suppress(KeyboardInterrupt))  # that is how a server ends
        stack.enter_context(interrupted_once())
        audit = AuditLog(kit.folder / SERVER_FILE)
        audit.write(Started("server", __version__))
        stack.callback(audit.write, Stopped("server", "stopped"))
        watch = stack.enter_context(closing(Looking(kit.folder, audit, health_port, metrics_port)))
        listening = kit.federation.port if port is None else port
        link = next(other for other in iter(free_port, 0) if other != listening)
        front = Front(
            f"https://{LOOPBACK}:{link}",
            host=host or listening_host(kit.federation.host),
            port=listening,
            tls=(kit.folder / "tls.pem", kit.folder / "tls.key"),
            ca=kit.folder / "ca.pem",
            desk=RosterDesk(kit.folder / "roster.json"),
            nodes=lambda: active_nodes(kit),
            stored=watched(state / "flower" / DATABASE),
            on_refusal=lambda remote, kind, reason: LOG.warning(
                "turned away %s: %s, %s", remote, kind, reason
            ),
        )
        stack.enter_context(front)
        write_file(state / "server.json", json.dumps({"pid": os.getpid(), "port": front.port}).encode())
        LOG.info("%s: listening for sites that dial %s", kit.federation.name, kit.federation.address)
        LOG.info("roster: epoch %d, digest %s", signed.roster.epoch, readable(signed.roster.digest()))
        tls = tls_of(kit, state / "flower")
        members = Members(kit, audit, front)
        Supervisor(state, kit.folder, tls=tls, members=members, port=link, watch=watch).run()


def tls_of(kit: CoordinatorKit, folder: Path) -> Tls:
    """A new certificate for the SuperLink, which nobody but the front and this machine speaks to."""
    key, certificate = loopback_certificate(kit, folder)
    return Tls(kit.folder / "ca.pem", certificate, key)


class Members:
    """Who may connect, by the epoch of the roster that counts; see `server.supervisor.Members`."""

    def __init__(self, kit: CoordinatorKit, audit: AuditLog, front: Front) -> None:
        self._kit, self._audit, self._front = kit, audit, front
        self._accepted = b""

    def nodes(self) -> Mapping[str, Path]:
        """The public keys of the members' nodes, files by label."""
        self._front.check()
        return active_nodes(self._kit)

    def epoch(self) -> bytes:
        """The digest of the epoch that counts; empty while there is none."""
        signed = in_force(self._kit)
        if signed is None:
            return b""
        digest = signed.roster.digest()
        if digest != self._accepted:
            self._accepted = digest
            self._audit.write(RosterAccepted(signed.roster.epoch, digest.hex()))
            LOG.info("epoch %d of the roster counts", signed.roster.epoch)
        return digest

    def missing(self) -> str:
        """Why there is no epoch that counts."""
        return f"the roster: {missing_signatures(self._kit)}"


class Looking(Watch):
    """Logs, metrics, health and audit log of what the supervisor does."""

    def __init__(self, kit: Path, audit: AuditLog, health_port: int, metrics_port: int) -> None:
        self._kit, self._audit, self._metrics = kit, audit, Metrics()
        self._stack = ExitStack()
        self._health: Health | None = None
        with ExitStack() as stack:
            if metrics_port:
                stack.enter_context(closing(serve_metrics(self._metrics, metrics_port)))
            if health_port:
                self._health = stack.enter_context(closing(serve_health(health_port)))
            self._stack = stack.pop_all()

    def close(self) -> None:
        """Ends what is served."""
        self._stack.close()

    def say(self, text: str) -> None:
        """See `Watch`."""
        LOG.info("%s", text)

    def serving(self, works: bool) -> None:
        """See `Watch`."""
        if self._health is not None:
            self._health.set("", True)
            self._health.set(SERVICE, works)

    def online(self, num_sites: int) -> None:
        """See `Watch`."""
        self._metrics.online(num_sites)

    def begins(self, run: str) -> None:
        """See `Watch`."""
        self._audit.write(Started("run", __version__))

    def round(self, run: str, record: Mapping[str, Any]) -> None:
        """See `Watch`."""
        self._metrics.round(run, record)

    def write_report(self, run: Run, outcome: str) -> None:
        """See `Watch`. By a process of its own: what plotting needs does not stay in this one's memory."""
        output = run.folder / ".report.txt"
        command = tacit_command(("report", run.id, "--kit", str(self._kit), "--outcome", outcome))
        try:
            with (
                output.open("wb") as file,
                Group(command, environment=os.environ, folder=run.folder, output=file) as group,
            ):
                code = group.leader.wait(REPORT_SECONDS)
            said = output.read_text(encoding="utf-8", errors="replace").strip()
        except (OSError, subprocess.TimeoutExpired) as error:
            code, said = 1, type(error).__name__
        if code:
            LOG.warning("run %s has no report: tacit report %s says why", run.id[:8], run.id[:8])
        run.log("\n".join(filter(None, ("report" if not code else "no report", said))))
        output.unlink(missing_ok=True)

    def ended(self, run: str, outcome: str) -> None:
        """See `Watch`."""
        self._metrics.ended(outcome)
        self._audit.write(Stopped("run", outcome))


def listening_host(host: str) -> str:
    """Where to listen for sites that dial `host`: on this machine only where they can dial no other way."""
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return LOOPBACK if host == "localhost" else "0.0.0.0"  # noqa: S104
    if address.is_loopback:
        return host
    return "0.0.0.0" if address.version == 4 else "::"  # noqa: S104
