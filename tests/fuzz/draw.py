"""Choices that a fuzzer makes with its bytes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

_Item = TypeVar("_Item")


class Draw:
    """Takes bytes from the front; when they are used up, everything is zero.

    What `random.Random` would draw, the fuzzer draws: the last four have its names, so that a history of a property
    test can be the fuzzer's too.
    """

    def __init__(self, data: bytes) -> None:
        self._data, self._at = data, 0

    @property
    def left(self) -> int:
        """Bytes that have not been taken."""
        return max(0, len(self._data) - self._at)

    def number(self, size: int = 1) -> int:
        """An unsigned number of so many bytes."""
        return int.from_bytes(self.take(size).ljust(size, b"\0"))

    def below(self, bound: int) -> int:
        """A number below `bound`, of one byte if that is enough."""
        return self.number(1 if bound <= 256 else 4) % bound

    def take(self, size: int) -> bytes:
        """The next bytes, as many as there are."""
        start, self._at = self._at, self._at + size
        return self._data[start : self._at]

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(self.left)

    def random(self) -> float:
        """A number in [0, 1), of one byte."""
        return self.number() / 256

    def randrange(self, start: int, stop: int | None = None) -> int:
        """A number of a range."""
        low, high = (0, start) if stop is None else (start, stop)
        return low + self.below(high - low)

    def choice(self, items: Sequence[_Item]) -> _Item:
        """One of several."""
        return items[self.below(len(items))]

    def randbytes(self, size: int) -> bytes:
        """So many bytes."""
        return self.take(size).ljust(size, b"\0")
