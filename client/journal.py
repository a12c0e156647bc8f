"""A site's journal of its secure sums, open and locked only for the moment of an event.

A stock Flower node starts a process for each message, and an agent shares the file with the operator's commands.
"""

from __future__ import annotations

from collections.abc import Mapping
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

    def masked(self, ctx0: bytes, ctx2: bytes) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.masked(ctx0, ctx2)

    def sign(self, ctx2: bytes, survivors: bytes) -> None:
        """See `Journal`."""
        with self._open() as journal:
            journal.sign(ctx2, survivors)

    def _open(self) -> FileJournal:
        return FileJournal.open(self._path, durable=self._durable)
