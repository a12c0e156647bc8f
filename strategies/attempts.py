"""What is kept of an attempt while it goes on, so that another process of the same server can finish it.

One record for each step, whose requests went out before it and whose answers are in it. A server that goes on asks
again what it has no record of, byte for byte, and gets the answers that the clients have kept. So an update that has
left its site is not lost with the process that has received it: without privacy it is sent once.

Guarantees:
    A step's record is kept before the next step's requests go out.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Begun:
    """How an attempt began.

    Attributes:
        request: M0 as it was signed.
        secret: the server's key of this attempt, 32 bytes.
        invited: roster indices, in order.
        counters: of each member's journal, as clients had been shown it.
    """

    request: bytes
    secret: bytes = field(repr=False)
    invited: tuple[int, ...]
    counters: Mapping[int, int]


@dataclass(frozen=True)
class Step:
    """What came of one step.

    Attributes:
        answers: those that were accepted, in order, without the vectors.
        total: after M2: the sum of the masked vectors, little-endian words of 32 bits; else empty.
        bytes_up: sizes of the answers, by Flower's number of the node.
        refusals: how many answers were refused, by code.
    """

    answers: tuple[bytes, ...]
    total: bytes
    bytes_up: Mapping[int, int]
    refusals: Mapping[str, int]


class AttemptLog:
    """This one forgets with its process."""

    def begin(self, begun: Begun) -> None:
        """Begins a record, in place of the one before."""

    def keep(self, number: int, step: Step) -> None:
        """Keeps what came of step `number`, 0 to 4; returns when it is on the disk."""

    def kept(self) -> tuple[Begun, list[Step]] | None:
        """The attempt that was begun last with its first steps, unless it was dropped."""
        return None

    def drop(self) -> None:
        """The attempt has failed, or is of no more use."""
