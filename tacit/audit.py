"""The audit log: what happened on this side, in an append-only file whose every record names the one before.

One file per side, `state/audit.jsonl` of a coordinator and `audit/audit.jsonl` of a site, on the chain of
`tacit.privacy.chain_file`. Events are what the table says and nothing else: hashes, numbers, labels and codes.

Guarantees:
    An event holds nothing but hashes, numbers, labels, codes and receipts: another field or form is an error.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, Final

from tacit.errors import StorageError
from tacit.privacy import chain
from tacit.privacy.chain_file import ChainFile

SITE_FILE: Final = Path("audit", "audit.jsonl")  # in a site's folder
SERVER_FILE: Final = Path("state", "audit.jsonl")  # in a coordinator's folder

Check = Callable[[Sequence[Mapping[str, Any]]], None]
_LINKS: Final = frozenset({"sequence", "previous", "torn", "hash", "time", "event"})


def _matches(pattern: str) -> Callable[[object], bool]:
    compiled = re.compile(pattern)
    return lambda value: isinstance(value, str) and compiled.fullmatch(value) is not None


def _is_number(value: object) -> bool:
    return type(value) is int and 0 <= value < 2**64


_hash, _code = _matches("[0-9a-f]{64}"), _matches("[a-z][a-z0-9.-]{0,39}")
_label = _matches(r"[^\x00-\x1f\x7f-\x9f\ud800-\udfff]{1,64}")  # as a roster has labels, and M0 ids of runs

# field -> whether a value may stand there
FORMS: Final[Mapping[str, Callable[[object], bool]]] = {
    **dict.fromkeys(("round", "attempt", "epoch", "index", "at_once"), _is_number),
    **dict.fromkeys(("model", "config", "ctx0", "ctx2", "roster"), _hash),
    **dict.fromkeys(("what", "step", "reason", "outcome"), _code),
    **dict.fromkeys(("run", "version"), _label),
    "count": _is_number,
    "epsilon": _matches(r"inf|[0-9.e+-]{1,24}|"),
    "cohort": lambda value: isinstance(value, list) and all(map(_label, value)),
    "receipt": _matches("(?:[0-9a-f]{2})*"),
    "confirmations": lambda value: (
        isinstance(value, dict)
        and all(key.isdecimal() and _matches("[0-9a-f]{128}")(item) for key, item in value.items())
    ),
}


@dataclass(frozen=True)
class Event:
    """One record, but for its time and links. Which kinds there are, `EVENTS` says."""

    NAME: ClassVar[str]

    def record(self) -> dict[str, Any]:
        """What is written.

        Raises:
            ValueError: a field has not the form that it must have.
        """
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        record = {name: list(value) if isinstance(value, tuple) else value for name, value in values.items()}
        for name, value in record.items():
            if not FORMS[name](value):
                raise ValueError(f"{name} of {self.NAME} has not its form")  # the value is not repeated
        return {"event": self.NAME, **record}


@dataclass(frozen=True)
class Started(Event):
    """A process began its work: `what` is "server", "client" or "run"."""

    NAME: ClassVar = "start"
    what: str
    version: str


@dataclass(frozen=True)
class Stopped(Event):
    """It ended: "finished", "failed" or "stopped"."""

    NAME: ClassVar = "stop"
    what: str
    outcome: str


@dataclass(frozen=True)
class RosterAccepted(Event):
    """An epoch of the roster counts from here on."""

    NAME: ClassVar = "roster"
    epoch: int
    roster: str


@dataclass(frozen=True)
class Requested(Event):
    """A site was invited to an attempt and has answered; at the server, an attempt was begun.

    Attributes:
        model, config, ctx0: of the invitation, hexadecimal.
    """

    NAME: ClassVar = "request"
    run: str
    round: int
    attempt: int
    model: str
    config: str
    ctx0: str


@dataclass(frozen=True)
class Refusal(Event):
    """A site said no. In a site's own log the reason is the true one; on the wire it may be "unavailable".

    Attributes:
        step: type of the message, or the round's phase.
        reason: code.
        count: where a server writes this, how many sites gave it; at a site, how often since the record of this
            kind before.
    """

    NAME: ClassVar = "refusal"
    step: str
    reason: str
    count: int = 1


@dataclass(frozen=True)
class Attempted(Event):
    """A masked vector leaves this site: it is kept, and may be sent from here on. `index` is its own in the roster."""

    NAME: ClassVar = "attempt"
    run: str
    round: int
    attempt: int
    index: int
    ctx2: str


@dataclass(frozen=True)
class Receipted(Event):
    """A receipt was written (server, with the signatures under U3), or shown beside an invitation (site)."""

    NAME: ClassVar = "receipt"
    receipt: str
    confirmations: Mapping[str, str]


@dataclass(frozen=True)
class Released(Event):
    """The model after a round, before anybody hears of it.

    Attributes:
        at_once: rounds that are under way at a time: a round begins from the model of so many rounds before.
    """

    NAME: ClassVar = "release"
    run: str
    round: int
    model: str
    cohort: tuple[str, ...]
    epsilon: str
    at_once: int = 1


EVENTS: Final[Mapping[str, type[Event]]] = {
    kind.NAME: kind
    for kind in (
        Started,
        Stopped,
        RosterAccepted,
        Requested,
        Refusal,
        Attempted,
        Receipted,
        Released,
    )
}


class AuditLog:
    """A log, open and locked only for the moment of an event, since several processes of one side write to it.

    Args:
        path: the file; made with its folder at the first event.
        durable: wait for the disk at each event.
    """

    def __init__(self, path: Path, *, durable: bool = True) -> None:
        self._path, self._durable = path, durable
        self._file: ChainFile | None = None  # as it was left
        self._lock = threading.Lock()

    def write(self, *events: Event, check: Check | None = None) -> None:
        """Appends events; returns when they are on the disk.

        Args:
            events: to be written; they are checked first.
            check: is shown the records so far under the lock, and may raise; without it they are read only where
                another process has written since.

        Raises:
            StorageError: they could not be written, or the file was changed.
        """
        records = [event.record() for event in events]
        if not records:
            return
        with self._lock, self._open(check) as file:
            for record in records:
                file.append({"time": datetime.now(UTC).isoformat(timespec="seconds"), **record})

    def _open(self, check: Check | None) -> ChainFile:
        if check is None and self._file is not None and self._file.reopen():
            return self._file
        self._file, before = ChainFile.open(self._path, durable=self._durable)
        try:
            if check is not None:
                check(before)
        except BaseException:
            self._file.close()
            raise
        return self._file

    def read(self) -> tuple[Event, ...]:
        """All events so far; none where there is no file."""
        return read(self._path) if self._path.exists() else ()


class NoAudit(AuditLog):
    """Keeps nothing: of a simulated site, whose journal and sessions end with the process, too."""

    def __init__(self) -> None:
        super().__init__(Path())

    def write(self, *events: Event, check: Check | None = None) -> None:
        """Nothing, but the events must be well-formed."""
        for event in events:
            event.record()

    def read(self) -> tuple[Event, ...]:
        """None."""
        return ()


def read(path: Path) -> tuple[Event, ...]:
    """The events in a file, which need not be one's own: nothing is locked or written.

    Raises:
        StorageError: cannot be read, was changed, cut or put back from a backup, or holds other events than these.
    """
    try:
        data = path.read_bytes()
        head = path.with_name(path.name + ".head")
        expected = head.read_text("ascii").split() if head.exists() else []
    except (OSError, UnicodeDecodeError) as error:
        raise StorageError(f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}") from None
    found = chain.decode(data, path)
    hashes = [chain.GENESIS, *(record["hash"] for record in found.records)]
    if expected:  # a log in use may be one record ahead of what was read of its head, or the reverse
        number = int(expected[0]) if expected[0].isdecimal() else len(hashes)
        if number >= len(hashes) or hashes[number] != expected[-1]:
            raise chain.damaged(path, found.torn_line)
    return tuple(_event(record, path) for record in found.records)


def _event(record: Mapping[str, Any], path: Path) -> Event:
    """The event of one record."""
    values = {name: value for name, value in record.items() if name not in _LINKS}
    try:
        event = EVENTS[record["event"]](
            **{name: tuple(value) if isinstance(value, list) else value for name, value in values.items()}
        )
        event.record()
    except (KeyError, TypeError, ValueError, AttributeError):
        raise StorageError(
            f"{path}: record {record['sequence']} is no event of this version of Tacit"
        ) from None
    return event


def code_of(reason: str) -> str:
    """A reason that came from outside, as a code: whatever else a peer has written there is not kept."""
    return reason if _code(reason) else "malformed"
