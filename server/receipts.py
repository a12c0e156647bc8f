"""The server's receipts in its audit log: each on the disk before anything of its sum is used.

Guarantees:
    One server's receipts are one line, whichever of its runs and processes they are from.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from strategies.attempts import AttemptLog
from strategies.rounds import Progress, Store
from tacit.audit import SERVER_FILE, AuditLog, Event, Receipted, Refusal, Released, code_of
from tacit.errors import ProtocolError, StorageError
from tacit.secagg.contexts import model_digest
from tacit.secagg.receipt import Receipt, ReceiptChain, check_next


class ReceiptFile(ReceiptChain):
    """A `ReceiptChain` in an audit log.

    Args:
        path: the log; need not exist yet.

    Raises:
        StorageError: it cannot be read, or its receipts are not one line.
    """

    def __init__(self, path: Path) -> None:
        self._path, self._log = path, AuditLog(path)
        super().__init__(receipts_in(self._log.read(), path))

    def _keep(self, receipt: Receipt, confirmations: Mapping[int, bytes]) -> None:
        def check(records: Sequence[Mapping[str, Any]]) -> None:
            written = (record["receipt"] for record in reversed(records) if record["event"] == Receipted.NAME)
            last = self.receipts[-1].encode().hex() if self.receipts else None
            if next(written, None) != last:
                raise StorageError(f"{self._path}: another server of this federation has written receipts")

        signatures = {str(index): signature.hex() for index, signature in sorted(confirmations.items())}
        self._log.write(Receipted(receipt.encode().hex(), signatures), check=check)


class AuditedStore:
    """A run's store that enters each round in the audit log before it keeps the round's model.

    Args:
        store: where the run is kept.
        run: Tacit's id of the run.
        log: of this server.
        attempts: what is kept of a round's sum, by its number; with it the sum can be opened again, without a server's
            own noise, so it is let go of as soon as the round is kept.
    """

    def __init__(
        self,
        store: Store,
        run: str,
        log: AuditLog,
        attempts: Callable[[int], AttemptLog] = lambda round_number: AttemptLog(),
    ) -> None:
        self._store, self._run, self._log, self._attempts = store, run, log, attempts

    def load(self) -> Progress | None:
        """See `Store`."""
        return self._store.load()

    def save(self, progress: Progress, record: Mapping[str, Any] | None) -> None:
        """See `Store`."""
        if record is not None:
            self._log.write(*round_events(self._run, progress, record))
        self._store.save(progress, record)
        if record is not None:
            self._attempts(progress.round).drop()


def round_events(run: str, progress: Progress, record: Mapping[str, Any]) -> list[Event]:
    """What a round's line says, as events: refusals by code, then the release."""
    refusals = [
        Refusal("round", code_of(str(reason)), int(count)) for reason, count in record["refusals"].items()
    ]
    model = model_digest(progress.arrays).hex()
    cohort = tuple(record["survivors"])
    epsilon = spelled_epsilon(record["epsilon"])
    return [*refusals, Released(run, progress.round, model, cohort, epsilon, record["at_once"])]


def spelled_epsilon(epsilon: float | None) -> str:
    """Epsilon as text; "inf" where nothing is promised."""
    return "inf" if epsilon is None or math.isinf(epsilon) else f"{epsilon:.6g}"


def audit_file(folder: Path) -> Path:
    """Where this server's log is: with its key, since one federation has one line of receipts; else with the run."""
    kit = Path(os.environ.get("TACIT_FEDERATION", "."))
    return kit / SERVER_FILE if (kit / "server.key").exists() else folder / "audit.jsonl"


def receipts_in(events: tuple[Event, ...], path: Path) -> list[Receipt]:
    """The receipts among events.

    Raises:
        StorageError: one is damaged, or does not follow the one before.
    """
    receipts: list[Receipt] = []
    for event in events:
        if isinstance(event, Receipted):
            try:
                receipts.append(Receipt.decode(bytes.fromhex(event.receipt)))
                if len(receipts) > 1:
                    check_next(*receipts[-2:])
            except ProtocolError as error:
                raise StorageError(f"{path}: {error}") from None
    return receipts
