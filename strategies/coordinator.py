"""Who a server is, and what it remembers from one secure sum to the next."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from strategies.attempts import AttemptLog
from tacit.secagg.envelope import Signer
from tacit.secagg.journal import MAX_ATTEMPTS
from tacit.secagg.receipt import ReceiptChain
from tacit.secagg.roster import Roster


class SumMemory:
    """What has to be known from one sum to the next. This one forgets with its process.

    Attributes:
        round, attempt: the newest attempt that was made.
        strikes: indices of members that are proven to have cheated.
        counters: of each member's journal, as clients were last shown it. They refuse a cohort in which one has gone
            back, and a server that has forgotten would have all of them refuse again and again.
    """

    def __init__(self) -> None:
        self.round, self.attempt = -1, 0
        self.strikes: set[int] = set()
        self.counters: dict[int, int] = {}

    def next_attempt(self, round_number: int) -> int:
        """Number of the next attempt at a round, from 1; clients answer to no number twice."""
        self.attempt = self.attempt + 1 if round_number == self.round else 1
        self.round = round_number
        self._changed()
        return self.attempt

    def reopen(self, round_number: int) -> None:
        """Before a round is taken up again, perhaps by another process: its last attempt can always be made once more.

        Those who have answered to its number refuse, and the others do not: a server that was killed before it could
        ask anybody, or that could reach nobody, is not shut out of the round for ever.
        """
        if round_number == self.round:
            self.attempt = min(self.attempt, MAX_ATTEMPTS - 1)

    def show(self, counters: Mapping[int, int]) -> None:
        """Remembers what clients are about to be shown."""
        for index, counter in counters.items():
            self.counters[index] = max(counter, self.counters.get(index, 0))

    def strike(self, index: int) -> None:
        """Remembers a member that has cheated."""
        self.strikes.add(index)
        self._changed()

    def _changed(self) -> None:
        """Called before what has changed is acted on."""


@dataclass(frozen=True)
class Coordinator:
    """What makes a server the one of this federation.

    Attributes:
        roster: the members as they have signed it; the clients go by their own copy.
        identity: the server's key, which the roster names.
        memory: of earlier attempts and of members that have cheated.
        receipts: of all that it has opened.
        attempts: of the attempt that it is making.
        threads: for the masks.
    """

    roster: Roster
    identity: Signer
    memory: SumMemory = field(default_factory=SumMemory)
    receipts: ReceiptChain = field(default_factory=ReceiptChain)
    attempts: AttemptLog = field(default_factory=AttemptLog)
    threads: int = 1
