"""What one site has spent on one data set, over all runs, restarts and coordinators.

A debit is on disk before it is answered, and what was debited stays spent, result or not. An old copy of the
file is refused, because using it would spend the same budget twice: its own `.head` file and what peers
remember (`witness`) show it.

One file holds debits of both units, and each unit has a figure of its own. That for records has the debits for records
in it and those for clients of all rounds that had not paid for their records, each with half its noise multiplier:
another record gives a client another vector, and that is two replaced by zeros. (Where a run protects both, its noise
on the sum comes after what the records have paid for.) That for clients has the debits for clients in it.

Guarantees:
    When `debit` returns, its record is in the file and, if durable, on the disk.
    What is spent never decreases, whatever crashes: a record cut short counts, charged like the dearest one.
    A changed byte, a missing record and a second process at the same ledger are refused.
    A debit for clients counts for records too, unless its own round of its own experiment has paid for them.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

from tacit.errors import StorageError
from tacit.privacy.accountant import Event, compose, epsilon_claimed, epsilon_rdp, fits, grid
from tacit.privacy.chain_file import ChainFile, Closing, Head


@dataclass(frozen=True)
class Entry:
    """One debit.

    Attributes:
        sequence: its number, from 1.
        time: when, UTC, ISO 8601.
        run: id of the run that asked.
        round: round of that run.
        attempt: which attempt at the round, from 1.
        purpose: what was released: "training", "metrics", "statistics".
        unit: unit of privacy of the run.
        event: the release.
        delta: of the plan that asked; information.
        previous: hash of the entry before.
        torn: hash of what cut-short writes had left before this entry; empty if nothing.
        hash: SHA-256 of all of the above.
        experiment: digest of the experiment that the run is bound to, hexadecimal; empty in an entry of a version of
            Tacit that did not write it down.
    """

    sequence: int
    time: str
    run: str
    round: int
    attempt: int
    purpose: str
    unit: str
    event: Event
    delta: float
    previous: str
    torn: str
    hash: str
    experiment: str = ""

    @classmethod
    def of(cls, record: dict[str, Any]) -> Entry:
        """The entry that a record describes; `ValueError` if it is none."""
        if set(record) | {"experiment"} != {field.name for field in fields(cls)}:
            raise ValueError("not the fields of a debit")
        return cls(**{**record, "event": Event.from_dict(record["event"])})


@lru_cache(maxsize=256)
def _spelled(event: Event) -> Mapping[str, Any]:
    """The event as JSON values; nobody writes into it."""
    return event.to_dict()


class Ledger(Closing):
    """The ledger of one data set, open in one process. Made by `Ledger.open`."""

    def __init__(self, file: ChainFile, entries: Iterable[Entry]) -> None:
        self._file = file
        self._entries = list[Entry]()
        self._num_debits, self._times = Counter[tuple[str, str]](), dict[str, list[str]]()
        self._last_rounds = Counter[str]()
        self._bound = set[tuple[str, str]]()  # each run with each experiment that it was debited under
        self._of_runs = defaultdict[tuple[str, str], Counter[Event]](Counter)  # by run and unit
        self._figures = defaultdict[str, Counter[Event]](Counter)  # by unit, what counts towards its figure
        self._paid_for_records = set[tuple[str, str, int]]()  # run, experiment, round
        for entry in entries:
            self._count(entry)

    @classmethod
    def open(cls, path: Path, *, witness: tuple[int, str] | None = None, durable: bool = True) -> Ledger:
        """Opens a ledger, or creates it, for this process alone.

        Args:
            path: the file; it must not be accessible to other users, nor its folder.
            witness: the furthest head that a peer has seen.
            durable: wait for the disk at each debit. False is for simulations.

        Raises:
            StorageError: in use, accessible to others, damaged, or behind its head or witness.
        """
        file, records = ChainFile.open(path, witness=witness, durable=durable)
        try:
            return cls(file, [Entry.of(record) for record in records])
        except (TypeError, ValueError) as error:
            file.close()
            raise StorageError(f"{path}: not a ledger of this version of Tacit: {error}") from None

    def close(self) -> None:
        """Gives the ledger free for other processes. Closing twice is allowed."""
        self._file.close()

    @property
    def entries(self) -> tuple[Entry, ...]:
        """All debits, oldest first."""
        return tuple(self._entries)

    def num_debits(self, run: str, purpose: str) -> int:
        """How often a run was debited for a purpose."""
        return self._num_debits[run, purpose]

    def last_round(self, run: str) -> int:
        """The latest round that a run was debited for; 0 before round 1."""
        return self._last_rounds[run]

    def times_of(self, purpose: str) -> Sequence[str]:
        """When each debit for a purpose was made, oldest first."""
        return self._times.get(purpose, ())

    def is_of_another(self, run: str, experiment: str) -> bool:
        """Whether a run was debited under another experiment than this one, as far as its entries say."""
        return any(known == run and one not in ("", experiment) for known, one in self._bound)

    def _count(self, entry: Entry) -> None:
        self._entries.append(entry)
        self._num_debits[entry.run, entry.purpose] += 1
        self._last_rounds[entry.run] = max(entry.round, self._last_rounds[entry.run])
        self._times.setdefault(entry.purpose, []).append(entry.time)
        self._bound.add((entry.run, entry.experiment))
        self._of_runs[entry.run, entry.unit][entry.event] += 1
        for unit in ("record", "client") if entry.unit == "none" else (entry.unit,):
            self._figures[unit][entry.event] += 1
        round_ = (entry.run, entry.experiment, entry.round)
        if entry.unit == "record":
            self._paid_for_records.add(round_)
        elif entry.unit == "client" and round_ not in self._paid_for_records:
            self._figures["record"][entry.event.doubled()] += 1

    @property
    def num_torn(self) -> int:
        """Debits that were cut short while they were written. They count as spent."""
        return self._file.num_torn

    @property
    def head(self) -> Head:
        """What a peer may remember as a witness: counter and hash."""
        return self._file.head

    def debit(
        self,
        run: str,
        round: int,
        attempt: int,
        purpose: str,
        unit: str,
        event: Event,
        *,
        delta: float = 0.0,
        experiment: str = "",
        cached: bool = False,
    ) -> Entry:
        """Writes down a release. Only after this may its first byte leave.

        Args:
            run, round, attempt, purpose, unit, event, delta, experiment: as in `Entry`.
            cached: the release is the very bytes that were debited under the same run, round, attempt,
                purpose and event before; sending them again tells nothing new, and that entry is returned.

        Raises:
            StorageError: it could not be written, or an earlier debit could not: what this process knows of
                the file may be wrong, so the ledger has to be opened again.
        """
        key = (run, round, attempt, purpose, event)
        if cached:
            for entry in reversed(self._entries):
                if (entry.run, entry.round, entry.attempt, entry.purpose, entry.event) == key:
                    return entry
        record = self._file.append(
            {
                "time": datetime.now(UTC).isoformat(timespec="seconds"),
                "run": run,
                "round": round,
                "attempt": attempt,
                "purpose": purpose,
                "unit": unit,
                "event": _spelled(event),
                "delta": delta,
                "experiment": experiment,
            }
        )
        self._count(Entry(**{**record, "event": event}))
        return self._entries[-1]

    def spent(self, delta: float, unit: str = "record") -> float:
        """Epsilon of everything in the ledger for one unit, at `delta`, by Renyi DP."""
        return epsilon_rdp(self._charged((), delta, unit), delta)

    def spent_by_run(self, run: str, delta: float, unit: str = "record") -> float:
        """Epsilon of one run's debits for a unit, at `delta`, by the method of the run's own figure."""
        events = _times(self._of_runs.get((run, unit), Counter()))
        return epsilon_claimed(events, delta, grid(epsilon_rdp(events, delta)))

    def would_exceed(
        self,
        event: Event | Iterable[Event],
        ceiling: float,
        delta: float,
        *,
        run: str = "",
        experiment: str = "",
        unit: str = "record",
    ) -> bool:
        """Whether one more release would take the data set over its ceiling.

        Args:
            event: the release, or several that belong together.
            ceiling: the data set's epsilon.
            delta: the data set's delta.
            run, experiment: the run that asks, and the digest of what it is bound to. While the ledger has nothing of
                another, its events were fixed before the first of them and the tighter figure that a run claims
                admits them too.
            unit: whose figure is looked at. For records, a release of a run that protects clients alone is to be
                given doubled.

        Guarantees:
            Releases admitted by this are (ceiling, delta)-DP together, even when each was chosen after seeing
            the ones before. If what the first run released decided whether it used up the tighter figure or a
            second run began, each of the two cases has its own delta: (ceiling, 2 delta).
        """
        events = (event,) if isinstance(event, Event) else tuple(event)
        charged = self._charged(events, delta, unit)
        if fits(charged, ceiling, delta):
            return False
        if not run or self._bound - {(run, experiment)}:
            return True
        return all(epsilon_claimed(charged, delta, width * grid(ceiling)) > ceiling for width in (10, 1))

    def _charged(self, more: tuple[Event, ...], delta: float, unit: str) -> tuple[Event, ...]:
        """One unit's events and `more`, each debit cut short charged like the dearest there is."""
        events = _times(self._figures[unit]) + more
        if self.num_torn and events:
            kinds = {entry.event for entry in self._entries}.union(self._figures[unit], more)
            dearest = max(kinds, key=lambda event: epsilon_rdp(event, delta))
            events += (dearest.repeated(self.num_torn),)
        return compose(*events)


def _times(counted: Mapping[Event, int]) -> tuple[Event, ...]:
    return tuple(event.repeated(times) for event, times in counted.items())
