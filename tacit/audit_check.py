"""Audit logs checked: one by itself, two against each other, and a server's receipts brought back from a site's.

The chain of a file says that nobody changed it who does not own it. Only the receipts, which the server has signed and
which both sides hold, bind the owner: two with one number are proof against the server, whoever shows them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any

from tacit.audit import (
    SERVER_FILE,
    SITE_FILE,
    Attempted,
    AuditLog,
    Event,
    Receipted,
    Released,
    Requested,
    read,
)
from tacit.errors import ConfigError, ProtocolError, StorageError
from tacit.privacy import chain
from tacit.secagg.identity import verify
from tacit.secagg.messages import ConfirmAnswer
from tacit.secagg.receipt import Receipt, check_next, confirmations_digest
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import SignedRoster

Key = tuple[str, int, int]


@dataclass(frozen=True)
class Side:
    """One side's log with what its folder knows.

    Attributes:
        path: the file.
        events: what it says.
        roster: of the kit that it lies in; None where it lies alone.
    """

    path: Path
    events: tuple[Event, ...]
    roster: Roster | None = field(repr=False, default=None)

    @property
    def key(self) -> bytes:
        """The server's identity key, empty where it is not known here."""
        return self.roster.server_key if self.roster else b""

    @cached_property
    def receipts(self) -> tuple[Receipt, ...]:
        """In the order of the file; those that are none are left out, and `check` says so."""
        return tuple(r for event in self.of(Receipted) if (r := _decoded(event)) is not None)

    @property
    def is_server(self) -> bool:
        """Whether this is the log of a server: it has entered releases, or signatures under a set."""
        return bool(self.of(Released)) or any(event.confirmations for event in self.of(Receipted))

    def of(self, kind: type[Any]) -> list[Any]:
        """The events of one kind."""
        return [event for event in self.events if isinstance(event, kind)]


def open_side(path: Path) -> Side:
    """The log in a kit or a file.

    Raises:
        ConfigError: there is none.
        StorageError: it is damaged.
    """
    known = (path, path / SERVER_FILE, path / SITE_FILE, path / "audit.jsonl")
    file = next((candidate for candidate in known if candidate.is_file()), None)
    if file is None:
        raise ConfigError("holds no audit log", source=path)
    folders = (path, file.parent, file.parent.parent)
    return Side(file, read(file), next((r for f in folders if (r := _roster_in(f))), None))


def summary(side: Side) -> str:
    """How much there is, in words."""
    receipts, events = side.receipts, len(side.events)
    last = f", the last is {receipts[-1].number}: {receipts[-1].digest.hex()}" if receipts else ""
    return f"{events} events, {len(receipts)} receipts{last}"


def check(side: Side, key: bytes) -> list[str]:
    """What is wrong with one side's receipts, one line each; the chain of the file has been checked by reading it.

    Args:
        side: the log.
        key: the server's identity key, under which receipts must be signed.
    """
    found: list[str] = []
    if side.of(Receipted) and not key:
        found.append("the server's key is not known: name the kit, or --key")
    for number, event in enumerate(side.of(Receipted), 1):
        receipt = _decoded(event)
        if receipt is None:
            found.append(f"entry {number} of its receipts is none")
            continue
        unsigned = _unsigned(receipt, key) if key else ""
        if wrong := unsigned or _unconfirmed(receipt, event.confirmations, side.roster):
            found.append(f"receipt {receipt.number}: {wrong}")
    if side.is_server and side.receipts and side.receipts[0].number != 1:
        found.append("the first receipts are missing")
    for before, after in pairwise(side.receipts):
        # A site that was away has a gap; a server has none.
        if side.is_server or after.number <= before.number + 1:
            try:
                check_next(before, after)
            except ProtocolError as error:
                found.append(f"{error}\n{_evidence(before, after)}")
    return found


def compare(one: Side, other: Side) -> list[str]:
    """Where two logs contradict each other; with the receipts that prove it, where there are such."""
    found = []
    theirs = {receipt.number: receipt for receipt in other.receipts}
    for receipt in one.receipts:
        twin = theirs.get(receipt.number)
        if twin is not None and twin.digest != receipt.digest:
            found.append(f"two receipts with the number {receipt.number}\n{_evidence(receipt, twin)}")
    for a, b in ((one, other), (other, one)):
        found += [*_lost(a, b), *_other_attempts(a, b), *_other_models(a, b)]
    return found


def restore(server: Side, site: Side) -> int:
    """Appends to a server's log the receipts that a site's log has beyond it; returns how many.

    Raises:
        StorageError: they do not continue the server's, or are not signed by it.
    """
    if not server.key:
        raise StorageError(f"{server.path}: lies in no kit with a roster")
    last, added = (server.receipts[-1] if server.receipts else None), list[Receipt]()
    for receipt in site.receipts:
        if receipt.number > (last.number if last else 0):
            try:
                verify(server.key, receipt.signature, *receipt.statement)
                if last is None and receipt.number != 1:
                    raise ProtocolError("receipts", "the first are missing")
                if last is not None:
                    check_next(last, receipt)
            except ProtocolError as error:
                raise StorageError(f"{site.path}: {error}; try the log of another site") from None
            last = receipt
            added.append(receipt)
    AuditLog(server.path).write(*(Receipted(receipt.encode().hex(), {}) for receipt in added))
    return len(added)


def _lost(site: Side, server: Side) -> list[str]:
    """Receipts that were shown to a site and that the server does not have."""
    if site.is_server or not server.is_server:
        return []
    newest = server.receipts[-1].number if server.receipts else 0
    lost = [receipt for receipt in site.receipts if receipt.number > newest]
    return [f"{server.path} lacks {len(lost)} receipts that {site.path} was shown"] if lost else []


def _other_attempts(site: Side, server: Side) -> list[str]:
    """Sums that a server has a receipt for, and in which a site took part otherwise or not at all."""
    masked: dict[Key, str] = {(e.run, e.round, e.attempt): e.ctx2 for e in site.of(Attempted)}
    indices = {event.index for event in site.of(Attempted)}
    found = []
    for receipt in server.receipts:
        own = masked.get((receipt.run, receipt.round, receipt.attempt))
        where = f"receipt {receipt.number}, {receipt.run!r} round {receipt.round}.{receipt.attempt}"
        if own is not None and own != receipt.context.hex():
            found.append(f"{where}: {site.path} masked in another context\n  {receipt.encode().hex()}")
        elif own is None and indices & set(receipt.survivors):
            found.append(f"{where}: {site.path} sent no vector for it\n  {receipt.encode().hex()}")
    return found


def _other_models(site: Side, server: Side) -> list[str]:
    """Rounds that a site was asked to begin with another model than the server released before."""
    releases = server.of(Released)
    released = {(event.run, event.round): event.model for event in releases}
    at_once = {event.run: event.at_once for event in releases}
    return [
        f"{event.run!r} round {event.round}: {site.path} was given a model that {server.path} did not release"
        for event in site.of(Requested)
        if released.get((event.run, event.round - at_once.get(event.run, 1)), event.model) != event.model
    ]


def _decoded(event: Receipted) -> Receipt | None:
    try:
        return Receipt.decode(bytes.fromhex(event.receipt))
    except ProtocolError:
        return None


def _unsigned(receipt: Receipt, key: bytes) -> str:
    try:
        verify(key, receipt.signature, *receipt.statement)
    except ProtocolError as error:
        return str(error)
    return ""


def _unconfirmed(receipt: Receipt, confirmations: Mapping[str, str], roster: Roster | None) -> str:
    """What is wrong with the signatures under U3; only their hash is looked at where the roster is another one."""
    signatures = {int(index): bytes.fromhex(text) for index, text in confirmations.items()}
    if not signatures:
        return ""  # a site is not shown them
    if confirmations_digest(signatures) != receipt.confirmations:
        return "other signatures than its own lie beside it"
    if roster is None or roster.digest() != receipt.roster:
        return ""
    for index, signature in signatures.items():
        if index not in receipt.survivors:
            return f"signed by {index}, who is not in the sum"
        answer = ConfirmAnswer(receipt.context, index, receipt.survivors, signature)
        try:
            verify(roster.members[index].key, answer.signature, *answer.statement)
        except (ProtocolError, IndexError):
            return f"the signature of member {index} under the sum is wrong"
    return ""


def _evidence(*receipts: Receipt) -> str:
    """Receipts as they were signed, for whoever has the server's key."""
    return "\n".join(f"  {receipt.number} {receipt.encode().hex()}" for receipt in receipts)


def _roster_in(folder: Path) -> Roster | None:
    """The newest roster of a kit, without a lock: None where it has none."""
    try:
        if (epochs := folder / "roster.jsonl").is_file():
            last = chain.decode(epochs.read_bytes(), epochs).records[-1]
            return Roster.decode(bytes.fromhex(last["roster"]))
        return SignedRoster.decode((folder / "roster.json").read_bytes()).roster
    except (OSError, ProtocolError, StorageError, LookupError, ValueError):
        return None
