"""A population of virtual clients: each is made when it is drawn, and only what it has paid is kept.

The records of client i are `partition.rows` rows of the pool (the table's training rows), drawn with replacement from
a stream that follows from the experiment's seed and the client's label: the same client has the same records in every
round and every run. What the clients have paid is in one SQLite file, with an entry for those alone that were drawn.

Guarantees:
    Memory grows with the cohort and the pool, not with the population.
    A client's records follow from the seed and its number alone.
    A virtual client's ledger has the entries, and the chain of hashes, of a site's own.
"""

from __future__ import annotations

import json
import os
import sqlite3
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Final

import torch
from flwr.app import Context

from client import guard
from client.participant import Participant, Run, run_of
from client.sessions import MemorySessions
from client.site import Site
from simulations.cohort import Cohort, CohortExecutor, Member
from simulations.local_grid import SERVER_NODE, LocalGrid
from strategies.sum_grid import CohortResult
from tacit.config import Experiment
from tacit.errors import StorageError
from tacit.population import Labels
from tacit.privacy import chain
from tacit.privacy.chain_file import Closing, Head
from tacit.privacy.ledger import Entry, Ledger
from tacit.privacy.noise import SeededKeys, in_unit_interval
from tacit.privacy.streams import Portions
from tacit.tasks import Records

POOL: Final = "pool"  # label of the folder that the clients' rows are drawn from
LEDGERS: Final = "ledgers.sqlite"


class VirtualGrid(LocalGrid):
    """A `LocalGrid` that keeps nothing of a node: its clients have no state but their ledgers."""

    def context(self, node: int) -> Context:
        """A context like all others."""
        context = super().context(node)
        self._contexts.clear()
        return context


class VirtualExecutor(CohortExecutor):
    """Trains cohorts of virtual clients.

    Args:
        experiment: with its population declared.
        sites: the folder of the pool; the ledgers' file lies beside it.
    """

    def __init__(self, experiment: Experiment, sites: Path) -> None:
        super().__init__()
        self._run: Run = run_of(experiment.to_toml())
        self._labels = experiment.federation.labels
        self._site = Site.open(sites / "0")
        self._pool = self._run.task.read(self._site.data, "train")
        self._file = LedgerFile(sites / LEDGERS, durable=experiment.simulation.durable_ledgers)
        self._drawn: dict[str, VirtualClient] = {}

    def __call__(self, cohort: Cohort) -> CohortResult:
        """See `CohortExecutor`; the debits of the whole cohort are in the file before the sum is returned."""
        labels = [self._label(context) for _, context in cohort]
        guard.admit(self._site, self._run.experiment)
        self._file.load(labels)
        try:
            self._drawn = dict(zip(labels, self._clients(labels), strict=True))
            result = super().__call__(cohort)
            self._file.commit()
        finally:
            self._drawn = {}
        return result

    def close(self) -> None:
        """See `CohortExecutor`."""
        super().close()
        self._file.close()

    def _member(self, context: Context) -> Member:
        return VirtualMember(self._drawn[self._label(context)])

    def _label(self, context: Context) -> str:
        return self._labels[context.node_id - SERVER_NODE - 1]

    def _clients(self, labels: Sequence[str]) -> Iterator[VirtualClient]:
        for label, records in zip(labels, records_of(self._run.experiment, self._pool, labels), strict=True):
            yield VirtualClient(self._run, VirtualSite.of(self._site, label, self._file), records)


def records_of(experiment: Experiment, pool: Records, labels: Sequence[str]) -> list[Records]:
    """The records of some clients, in their order."""
    assert isinstance(experiment.federation.labels, Labels)
    rows = experiment.partition.rows
    portions = Portions.even(tuple(labels), rows)
    uniform = in_unit_interval(portions.read(SeededKeys(experiment.seed), "virtual"))
    chosen = torch.from_numpy((uniform * pool.num_rows).astype("int64"))
    features = torch.split(pool.features.index_select(0, chosen), rows)
    targets = torch.split(pool.targets.index_select(0, chosen), rows)
    return [Records(x, y) for x, y in zip(features, targets, strict=True)]


@dataclass(frozen=True)
class VirtualSite(Site):
    """One client's site: the pool's folder and policy, a ledger of its own."""

    file: LedgerFile | None = None

    @classmethod
    def of(cls, pool: Site, label: str, file: LedgerFile) -> VirtualSite:
        """The site of the client `label`."""
        own = {field.name: getattr(pool, field.name) for field in fields(Site)}
        own |= {"label": label, "data_set": f"{pool.data_set.rpartition('/')[0]}/{label}"}
        return cls(**own, file=file)

    def ledger(self) -> AbstractContextManager[Ledger]:  # type: ignore[override]
        """See `Site`."""
        assert self.file is not None
        return self.file.ledger(self.label)


class VirtualClient(Participant):
    """A participant whose records are at hand."""

    def __init__(self, run: Run, site: Site, records: Records) -> None:
        super().__init__(run, site, MemorySessions())
        self._records = {"train": records, "test": Records(records.features[:0], records.targets[:0])}


class VirtualMember(Member):
    """Its policy is the pool's, which the executor has asked for the whole cohort."""

    def __init__(self, client: VirtualClient) -> None:
        self.client = client

    def permit(self, model: guard.Received) -> None:
        """See `Member`."""
        guard.check_received(self.client.site, model)


class LedgerFile(Closing):
    """The ledgers of a population in one SQLite file; only this process writes to it.

    Args:
        path: created when it does not exist, for this user alone.
        durable: wait for the disk at each commit.
    """

    def __init__(self, path: Path, *, durable: bool) -> None:
        try:
            os.close(os.open(path, os.O_CREAT | os.O_RDWR, 0o600))
            self._db = sqlite3.connect(path, isolation_level=None)
            self._db.execute("PRAGMA locking_mode = EXCLUSIVE")
            self._db.execute("PRAGMA journal_mode = WAL")
            self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'OFF'}")
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS debits (client TEXT, sequence INTEGER, line BLOB NOT NULL, "
                "PRIMARY KEY (client, sequence)) WITHOUT ROWID"
            )
        except (OSError, sqlite3.Error) as error:
            raise StorageError(f"{path}: cannot be used: {error}") from None
        self._path, self._open = path, dict[str, Ledger]()
        self._new: list[tuple[str, int, bytes]] = []

    def load(self, labels: Sequence[str]) -> None:
        """Reads the ledgers of these clients and forgets all others'."""
        lines: dict[str, list[bytes]] = {label: [] for label in labels}
        query = (
            "SELECT client, line FROM debits WHERE client IN (SELECT value FROM json_each(?)) "
            "ORDER BY client, sequence"
        )
        for label, line in self._db.execute(query, (json.dumps(list(labels)),)):
            lines[label].append(line)
        self._open = {label: self._ledger(label, own) for label, own in lines.items()}

    def _ledger(self, label: str, lines: list[bytes]) -> Ledger:
        found = chain.decode(b"".join(lines), self._path)
        return Ledger(_Rows(self, label, found.records), [Entry.of(record) for record in found.records])  # type: ignore[arg-type]

    @contextmanager
    def ledger(self, label: str) -> Iterator[Ledger]:
        """One of the ledgers that were loaded."""
        yield self._open[label]

    def add(self, label: str, sequence: int, line: bytes) -> None:
        """A debit; in the file after `commit`."""
        self._new.append((label, sequence, line))

    def commit(self) -> None:
        """Puts all new debits into the file, all or none. Only then may anything be released.

        Raises:
            StorageError: it could not be written.
        """
        try:
            self._db.execute("BEGIN")
            self._db.executemany("INSERT INTO debits VALUES (?, ?, ?)", self._new)
            self._db.execute("COMMIT")
        except sqlite3.Error as error:
            raise StorageError(f"{self._path}: cannot be written, nothing may be released: {error}") from None
        self._new.clear()

    def busiest(self, most: int) -> Mapping[str, tuple[Entry, ...]]:
        """Entries of the clients that have paid most often."""
        query = "SELECT client FROM debits GROUP BY client ORDER BY COUNT(*) DESC, client LIMIT ?"
        labels = [label for (label,) in self._db.execute(query, (most,))]
        self.load(labels)
        return {label: self._open[label].entries for label in labels}

    def close(self) -> None:
        """See `Closing`."""
        self._db.close()


class _Rows(Closing):
    """What `Ledger` needs of a `ChainFile`, kept in the table."""

    num_torn = 0

    def __init__(self, file: LedgerFile, label: str, records: Sequence[Mapping[str, Any]]) -> None:
        self._file, self._label = file, label
        self.head = Head(len(records), records[-1]["hash"] if records else chain.GENESIS)

    def append(self, fields: Mapping[str, Any]) -> dict[str, Any]:
        """See `ChainFile`."""
        line, record = chain.encode(fields, self.head.counter + 1, self.head.hash, b"")
        self._file.add(self._label, self.head.counter + 1, line)
        self.head = Head(record["sequence"], record["hash"])
        return record

    def close(self) -> None:
        """Nothing is open."""
