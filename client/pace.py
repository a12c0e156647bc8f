"""How often an agent asks for messages. Each question costs the SuperLink, one process for all sites, as much as an
answer does: so in a round they are asked when the next message is likely, and rarer the longer nothing comes."""

from __future__ import annotations

import secrets
from collections import deque
from dataclasses import dataclass
from typing import Final

REMEMBERED: Final = 3  # waits, after each kind of answer
SHARE: Final = 0.7  # of the shortest of them passes before the first question
SPREAD: Final = 0.25  # by which a pause is longer or shorter, so that sites do not ask in step


@dataclass(frozen=True)
class Pace:
    """Bounds of one profile.

    Attributes:
        quickest: seconds between two questions, within a round.
        slowest: ... when nothing has come for long.
    """

    quickest: float = 0.05
    slowest: float = 1.0

    def pause(self, idle: float, expected: float = 0.0) -> float:
        """Seconds to wait when the last message was `idle` seconds ago and the next is not `expected` before so many.

        It adds at most a tenth to what one waits for, or what is left of the time expected, and never more than
        `slowest`.
        """
        return min(max(self.quickest, idle / 10, expected - idle), self.slowest)


class Rhythm:
    """How long the next message took to come, by the kind of the one answered before: a round's steps repeat."""

    def __init__(self) -> None:
        self._waits: dict[str, deque[float]] = {}

    def note(self, answered: str, seconds: float) -> None:
        """After an answer to this kind of message, the next message came so many seconds later."""
        self._waits.setdefault(answered, deque(maxlen=REMEMBERED)).append(seconds)

    def expected(self, answered: str) -> float:
        """Seconds after such an answer in which the next message is not likely; 0 while nothing is known."""
        waits = self._waits.get(answered, ())
        return SHARE * min(waits) if len(waits) == REMEMBERED else 0.0


PACES: Final = {"": Pace(), "edge": Pace(quickest=0.1, slowest=5.0)}


def spread(seconds: float) -> float:
    """A little more or less than `seconds`."""
    return seconds * (1 - SPREAD + 2 * SPREAD * secrets.randbelow(1 << 20) / (1 << 20))
