"""`tacit client check`: finds out before the first round what would stop it, and says what to do about each thing.

Nothing is changed, and nothing about this site's data leaves it.
"""

from __future__ import annotations

import os
import socket
import ssl
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from client.site import Site
from tacit.errors import ProtocolError, RunFailed, TacitError

if TYPE_CHECKING:
    from client.enrolment import SiteKit
    from tacit.config import Experiment

State = Literal["ok", "warn", "fail"]

WARNING_DAYS: Final = 30
CONNECT_SECONDS: Final = 10.0
CLOCK_BEHIND_SECONDS, CLOCK_AHEAD_SECONDS = 240.0, 4.0  # Flower refuses at 305 and at 5
KEYS: Final = ("identity.key", "node.key")


@dataclass(frozen=True)
class Finding:
    """One line of the table.

    Attributes:
        what: was looked at.
        state: "ok"; "warn", it works and will not for ever; "fail", rounds will be refused or missed.
        text: what was found, and what to do.
    """

    what: str
    state: State
    text: str


def check_kit(folder: Path, experiment: Experiment | None, *, connects: bool) -> list[Finding]:
    """Looks at everything, and goes on where something is wrong.

    Args:
        folder: the site's.
        experiment: what will be trained, if it is known already: then schema and policy are checked against it.
        connects: whether the coordinator is asked too; False for a rehearsal without enrolment.
    """
    findings = [*_of("files", lambda: _files(folder))]
    site: list[Site] = []
    findings += _of("site", lambda: _site(folder, site))
    if site:
        findings += _of("data", lambda: _data(site[0], folder, experiment))
        findings += _of("schema", lambda: _schema(site[0], experiment))
        findings += _of("policy", lambda: _policy(site[0], experiment))
        findings += _of("ledger", lambda: _ledger(site[0]))
    if connects:
        findings += _federation(folder)
    return findings


def show(findings: list[Finding]) -> None:
    """Prints the table."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    colours = {"ok": "green", "warn": "yellow", "fail": "red"}
    table = Table(box=None, show_header=False, pad_edge=False)
    for finding in findings:
        table.add_row(Text(finding.state, colours[finding.state]), finding.what, Text(finding.text))
    Console(highlight=False).print(table)


def _of(what: str, look: Callable[[], Iterator[Finding]]) -> list[Finding]:
    """What one look finds; our own errors say themselves what is wrong."""
    found: list[Finding] = []
    try:
        found.extend(look())
    except TacitError as error:
        found.append(Finding(what, "fail", str(error)))
    except OSError as error:
        found.append(Finding(what, "fail", error.strerror or type(error).__name__))
    return found


def _files(folder: Path) -> Iterator[Finding]:
    from tacit.secagg.identity import check_private_folder, read_private

    check_private_folder(folder)
    keys = [name for name in KEYS if (folder / name).exists()]
    for name in keys:
        read_private(folder / name)
    for name in ("ledger", "journal", "sessions"):
        path = folder / name
        if path.exists() and stat.S_IMODE(path.stat().st_mode) & 0o077:
            yield Finding("files", "fail", f"{path} lets other users in: chmod -R go-rwx '{path}'")
    if not os.access(folder, os.W_OK):
        yield Finding("files", "fail", f"{folder} cannot be written: ledger and journal have to be")
    yield Finding("files", "ok", f"{folder}, private; {', '.join(keys) or 'no keys yet'}")


def _site(folder: Path, site: list[Site]) -> Iterator[Finding]:
    site.append(Site.open(folder))
    yield Finding("site", "ok", f"{site[0].label}, data set {site[0].data_set!r}")


def _data(site: Site, folder: Path, experiment: Experiment | None) -> Iterator[Finding]:
    if not site.data.exists():
        yield Finding("data", "fail", f"{site.data} is not there: tacit client run {folder} --data FILE")
        return
    num_rows = _num_rows(site.data, experiment)
    declared = _declared(folder)
    if declared and not declared / 2 <= num_rows <= 2 * declared:
        again = f"tacit client enroll {folder} --rows {num_rows}"
        yield Finding("data", "warn", f"{num_rows} rows, but {declared} are declared: {again}")
    else:
        yield Finding("data", "ok", f"{site.data}, {num_rows} rows")


def _num_rows(path: Path, experiment: Experiment | None) -> int:
    """Records; of a table of series or lists only the experiment knows how many those are."""
    from tacit.data import arrays, readers

    schema = experiment.data.arrays if experiment is not None else None
    if schema is None or not schema.in_table or path.suffix.lower() == ".npz":
        return readers.num_rows(path)
    return len(arrays.raw_arrays(path, schema)["y"])


def _declared(folder: Path) -> int:
    if not (folder / "federation.toml").exists():
        return 0
    from client.enrolment import SiteKit

    request = SiteKit.open(folder).request()
    return request.num_rows if request else 0


def _schema(site: Site, experiment: Experiment | None) -> Iterator[Finding]:
    if experiment is None:
        yield Finding("schema", "ok", "not known before a run; --experiment FILE checks it now")
        return
    if experiment.data.arrays is not None:
        from tacit.data.arrays import read_arrays

        read_arrays(site.data, experiment.data.arrays, "train")
        yield Finding("schema", "ok", f"records are arrays as {experiment.name!r} declares them")
        return
    from tacit.data.preprocessing import labels
    from tacit.data.readers import read_table

    table, columns = read_table(site.data, experiment.data.columns), experiment.data.columns
    if columns is not None:
        labels(table, columns)
    yield Finding("schema", "ok", f"every column that {experiment.name!r} needs is there")


def _policy(site: Site, experiment: Experiment | None) -> Iterator[Finding]:
    policy = site.policy
    planned = _with_sites(site, experiment) if experiment is not None else None
    if planned is not None:
        from client.guard import admit

        admit(site, planned)
    elif experiment is not None:
        yield Finding(
            "policy", "warn", "not checked: who takes part is not known before a roster is accepted"
        )
    ceiling = (
        "no ceiling for epsilon" if policy.epsilon_ceiling is None else f"epsilon {policy.epsilon_ceiling}"
    )
    if policy.allow_single_updates or not policy.require_secure_aggregation:
        yield Finding("policy", "warn", f"{ceiling}; updates may leave without the secure sum")
    else:
        yield Finding("policy", "ok" if policy.epsilon_ceiling is not None else "warn", ceiling)


def _with_sites(site: Site, experiment: Experiment) -> Experiment | None:
    """The experiment as `tacit submit` completes it: where it names no sites, all members of the roster take part.

    None where there is no roster yet.
    """
    if experiment.federation.sites:
        return experiment
    if not any((site.folder / name).exists() for name in ("roster.jsonl", "roster.json")):
        return None
    from tacit.config import Federation
    from tacit.config import Site as Declared

    roster = site.roster()
    entries = [roster.enrolled[index] for index in sorted(roster.voters)]
    sites = tuple(Declared(label=entry.member.label, rows=entry.num_rows) for entry in entries)
    return experiment.with_tables(federation=Federation(sites=sites))


def _ledger(site: Site) -> Iterator[Finding]:
    if not (site.folder / "ledger" / "ledger.jsonl").exists():
        yield Finding("ledger", "ok", "nothing spent yet")
        return
    with site.ledger() as ledger:
        yield Finding("ledger", "ok", f"{len(ledger.entries)} debits, unbroken")


def _federation(folder: Path) -> list[Finding]:
    """What is known of the federation, here and at the coordinator."""
    from client.enrolment import SiteKit, warnings

    found: list[Finding] = []
    kits: list[SiteKit] = []

    def enrolled() -> Iterator[Finding]:
        kit = SiteKit.open(folder)
        if kit.request() is None:
            yield Finding("enrolment", "fail", f"no keys yet: tacit client enroll {folder}")
            return
        kit.node_key()
        kits.append(kit)
        yield Finding("enrolment", "ok", f"{kit.invitation.label} of {kit.invitation.name!r}")
        for line in warnings(kit):
            yield Finding("enrolment", "warn", line)

    found += _of("enrolment", enrolled)
    if kits:
        found += _of("connection", lambda: _connection(kits[0]))
        found += _of("roster", lambda: _roster(kits[0]))
    return found


def _connection(kit: SiteKit) -> Iterator[Finding]:
    """The TLS handshake, and how long the server's certificate lasts."""
    from client.flower_wire import tls_context

    invitation = kit.invitation
    try:
        with (
            socket.create_connection((invitation.host, invitation.port), CONNECT_SECONDS) as plain,
            tls_context(kit.folder / "ca.pem").wrap_socket(plain, server_hostname=invitation.host) as tls,
        ):
            version, certificate = tls.version(), tls.getpeercert() or {}
    except ssl.SSLCertVerificationError as error:
        yield Finding("certificate", "fail", f"{error.verify_message}: is this kit the coordinator's newest?")
        return
    except OSError as error:
        reason = error.strerror or str(error) or type(error).__name__
        yield Finding("connection", "fail", f"{invitation.address}: {reason}: address, firewall, server?")
        return
    yield Finding("connection", "ok", f"{invitation.address}, {version}")
    ends = datetime.fromtimestamp(ssl.cert_time_to_seconds(str(certificate["notAfter"])), UTC)
    yield certificate_finding((ends - datetime.now(UTC)).days, ends)


def certificate_finding(days: int, ends: datetime) -> Finding:
    """What to say of a server certificate that ends in so many days."""
    if days < WARNING_DAYS:
        return Finding(
            "certificate", "warn", f"the server's ends in {days} days: tacit provision renew, there"
        )
    return Finding("certificate", "ok", f"the server's is good until {ends.date()}")


def clock_finding(date: str, now: datetime) -> Finding:
    """How far this clock is from the coordinator's, by the header Date of an answer."""
    try:
        theirs = parsedate_to_datetime(date)
    except ValueError:
        return Finding("clock", "warn", "the coordinator does not say its time: compare the clocks by hand")
    ahead = (now - theirs).total_seconds()
    if -CLOCK_BEHIND_SECONDS <= ahead <= CLOCK_AHEAD_SECONDS:
        return Finding("clock", "ok", f"within {abs(ahead) + 1:.0f} s of the coordinator's")
    side = "ahead of" if ahead > 0 else "behind"
    return Finding("clock", "fail", f"{abs(ahead):.0f} s {side} the coordinator's: switch on NTP at both")


def _roster(kit: SiteKit) -> Iterator[Finding]:
    """What this site has accepted, and what the coordinator shows."""
    from client.approval import fetch_roster, https_client

    identity, accepted = kit.identity(), kit.accepted()
    if accepted is None:
        yield Finding(
            "roster", "warn", f"none is accepted yet: tacit client run {kit.folder} shows it and asks"
        )
    else:
        index = accepted.index_of(identity.public)
        accepted.check_member(index, datetime.now(UTC).date())
        yield Finding("roster", "ok", f"epoch {accepted.epoch}, {len(accepted.active)} members, this one too")
    dates = [""]
    try:
        with https_client(kit, CONNECT_SECONDS) as client:
            client.event_hooks = {"response": [lambda answer: dates.append(answer.headers.get("date", ""))]}
            newest = fetch_roster(kit, client, identity).roster
        yield clock_finding(dates[-1], datetime.now(UTC))
    except (RunFailed, ProtocolError) as error:
        yield Finding("roster", "warn", str(error))
        return
    if accepted is not None and newest.epoch > accepted.epoch:
        yield Finding("roster", "warn", f"epoch {newest.epoch} waits here: tacit client approve {kit.folder}")
