"""Who shares masks and secrets with whom: all with all, or a ring in an order that comes from ctx1."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from tacit.errors import ProtocolError
from tacit.secagg.encoding import Writer
from tacit.secagg.parameters import Parameters
from tacit.secagg.prg import keystream


@dataclass(frozen=True)
class Graph:
    """The graph of a cohort.

    Guarantees:
        It follows from ctx1, U1 and the parameters alone: all parties that agree on those have the same one.
        v is a neighbour of u exactly when u is one of v; nobody is their own.

    Attributes:
        order: roster indices along the ring; increasing on the complete graph.
        degree: k, neighbours of each.
    """

    order: tuple[int, ...]
    degree: int
    _place: dict[int, int] = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "_place", {index: place for place, index in enumerate(self.order)})
        if len(self._place) != len(self.order):
            raise ValueError("a member is twice in a graph")

    @classmethod
    def of(cls, context1: bytes, indices: Sequence[int], parameters: Parameters) -> Graph:
        """The graph of U1.

        Args:
            context1: ctx1, 32 bytes.
            indices: roster indices of U1, in any order.
            parameters: those of this cohort.
        """
        if len(indices) != parameters.n:
            raise ValueError(f"parameters for {parameters.n} clients, not {len(indices)}")
        ordered = tuple(sorted(indices))
        if not parameters.complete:
            ordered = shuffled(ordered, context1)
        return cls(ordered, parameters.neighbours)

    def neighbours(self, index: int) -> tuple[int, ...]:
        """The clients that `index` shares a mask with, by increasing index.

        Raises:
            ProtocolError: `index` is not in the graph.
        """
        place, n, half = self._place.get(index), len(self.order), self.degree // 2
        if place is None:
            raise ProtocolError("unknown-member", f"member {index} has sent no keys")
        if self.degree == n - 1:
            return tuple(other for other in self.order if other != index)
        steps = [step for step in range(-half, half + 1) if step]
        return tuple(sorted(self.order[(place + step) % n] for step in steps))

    def recipients(self, index: int) -> tuple[int, ...]:
        """The clients that `index` deals shares to, by increasing index: its neighbours and itself.

        Raises:
            ProtocolError: `index` is not in the graph.
        """
        if self.degree == len(self.order) - 1 and index in self._place:
            return self.order
        return tuple(sorted((*self.neighbours(index), index)))


def shuffled(indices: Sequence[int], context1: bytes) -> tuple[int, ...]:
    """The indices in the order of the ring.

    The key is H("graph" | ctx1): SHA-256 of the canonical bytes of the label `tacit/1/graph` and ctx1. Its
    AES-256-CTR stream from block 0 is read as little-endian 32-bit words w. Fisher and Yates' shuffle (Durstenfeld
    1964): for i = n - 1 down to 1, take words until one is below 2^32 - (2^32 mod (i + 1)), let j be that word
    mod i + 1, and swap places i and j. Without the rejection early places would be a little likelier.

    Args:
        indices: in increasing order.
        context1: ctx1, 32 bytes.
    """
    order, words = list(indices), _words(Writer("graph").data(context1).hash())
    for i in range(len(order) - 1, 0, -1):
        limit = 2**32 - 2**32 % (i + 1)
        j = next(word for word in words if word < limit) % (i + 1)
        order[i], order[j] = order[j], order[i]
    return tuple(order)


def _words(key: bytes) -> Iterator[int]:
    """The stream of `key` as 32-bit words, without end."""
    start, stop = 0, 2**12
    while True:
        yield from keystream(key, 4 * stop).view("<u4")[start:].tolist()
        start, stop = stop, 2 * stop
