"""A site's journal of its secure sums, open and locked only for the moment of an event.

A stock Flower node starts a process for each message, and an agent shares the file with the operator's commands. One
process reads it once, and again where another has written since.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tacit.secagg.journal import Attempt, FileJournal


class SiteJournal:
    """See `tacit.secagg.journal.Journal`, whose rules these are.

    Args:
        folder: the site's.
        durable: wait for the disk at each event.
    """

    def __init__(self, folder: Path, *, durable: bool) -> None:
        self._path, self._durable = folder / "journal" / "journal.jsonl", durable
        self._journal: FileJournal | None = None  # as it was left
        self._lock = threading.Lock()

    @property
    def counter(self) -> int:
        """See `Journal`."""
        with self._open() as journal:
            return journal.counter

    @property
    def runs(self) -> Mapping[str, Attempt]:
        """See `Journal`."""
        with self._open() as journal:
            return journal.runs

    def site_head(self, run: str) -> bytes:
        """See `Journal`."""
        with self._open() as journal:
            return journal.site_head(run)

    def answered(self, run: str, round: int, attempt: int, model: bytes, config: bytes, ctx0: bytes) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.answered(run, round, attempt, model, config, ctx0)

    def see_peers(self, peers: Mapping[int, int]) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.see_peers(peers)

    def see_receipts(self, heads: Mapping[int, bytes]) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.see_receipts(heads)

    def has_masked(self, ctx0: bytes, ctx2: bytes) -> bool:
        """See `Journal`."""
        with self._open() as journal:
            return journal.has_masked(ctx0, ctx2)

    def masked(self, ctx0: bytes, ctx2: bytes) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.masked(ctx0, ctx2)

    def sign(self, ctx2: bytes, survivors: bytes) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.sign(ctx2, survivors)

    @contextmanager
    def _open(self) -> Iterator[FileJournal]:
        with self._lock:
            left = self._journal
            if left is None or not left.reopen():
                # What this process has seen of it already must still be there.
                witness = None if left is None else left.head
                self._journal = left = FileJournal.open(self._path, witness=witness, durable=self._durable)
            with left:
                yield left
