"""The sum of packed vectors, kept in planes as they come: no word is ever widened.

A sum modulo 2^b needs no more than b bits of each word, so its low halves are added as numbers of 16 bits and all
further planes as bytes, with a carry from each plane to the next, the way an adder is built. That moves less than
half of the bytes that unpacking and adding words of 32 bits does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.secagg.ring import BLOCK, check_packed, plane_widths, unpack
from tacit.update import Words


class PackedSum:
    """A sum of vectors of `length` words modulo 2**bits.

    Args:
        length: d, words of a vector.
        bits: 8 to 32.
    """

    def __init__(self, length: int, bits: int) -> None:
        self.length, self.bits = length, bits
        whole, rest, self._num_single = plane_widths(bits)
        self._widths = [width for _, width in whole]
        self._shifts = [shift for shift, _ in whole] + [rest] * (self._num_single > 0)
        types = [np.uint16 if width == 16 else np.uint8 for width in self._widths] + [np.uint8]
        self._digits: list[NDArray[Any]] = [
            np.zeros(length, dtype) for _, dtype in zip(self._shifts, types, strict=False)
        ]

    def add(self, data: bytes | memoryview, read: Callable[[memoryview], object] = lambda part: None) -> None:
        """Adds a vector, a block at a time: it takes no memory of its own.

        Args:
            data: words as `tacit.secagg.ring.pack` makes them.
            read: is shown all bytes in their order, each plane just before it is added and while it is in the cache.

        Raises:
            ProtocolError: these are not the bytes of so many words; the sum is left as it is.
        """
        check_packed(data, self.bits, self.length)
        carry: NDArray[Any] | None = None
        for number, words, plane in self._planes(np.frombuffer(data, np.uint8), read):
            digits, top = self._digits[number][words], number == len(self._digits) - 1
            carry = _add_digits(digits, plane, carry if number else None, top=top)

    def subtract(self, data: bytes | memoryview) -> None:
        """Takes back a vector that was added."""
        self.restore(np.subtract(self.words(), unpack(data, self.bits, self.length)))

    def words(self) -> Words:
        """The sum: shape (length,), each word below 2**bits."""
        total = np.zeros(self.length, dtype=np.uint32)
        for digits, shift in zip(self._digits, self._shifts, strict=True):
            total |= digits.astype(np.uint32) << np.uint32(shift)
        return total & np.uint32(2**self.bits - 1)

    def restore(self, words: Words) -> None:
        """Puts a sum in the place of this one.

        Args:
            words: shape (length,), modulo 2**bits.
        """
        for digits, shift in zip(self._digits, self._shifts, strict=True):
            digits[:] = (words >> np.uint32(shift)).astype(digits.dtype)  # the low bits of it

    def _planes(
        self, packed: NDArray[np.uint8], read: Callable[[memoryview], object]
    ) -> Iterator[tuple[int, slice, NDArray[Any]]]:
        """Number, words and values of each plane in its order; planes of single bits are put together to one."""
        at = 0
        for start in range(0, self.length, BLOCK):
            words = slice(start, min(start + BLOCK, self.length))
            size = words.stop - start
            for number, width in enumerate(self._widths):
                part = packed[at : (at := at + size * width // 8)]
                read(part.data)
                yield number, words, part.view("<u2") if width == 16 else part
            if self._num_single:
                part = packed[at : (at := at + self._num_single * -(-size // 8))]
                read(part.data)
                yield len(self._widths), words, self._together(part)[:size]

    def _together(self, part: NDArray[np.uint8]) -> NDArray[np.uint8]:
        """The planes of single bits of one block as bytes, one for each word."""
        bits = np.zeros(
            part.size // self._num_single, dtype=np.uint64
        )  # a byte a word, shifted eight at a time
        for i, single in enumerate(part.reshape(self._num_single, -1)):
            bits |= np.unpackbits(single, bitorder="little").view(np.uint64) << np.uint64(i)
        return bits.view(np.uint8)


def _add_digits(
    digits: NDArray[Any], plane: NDArray[Any], carry: NDArray[Any] | None, *, top: bool
) -> NDArray[np.uint8] | None:
    """Adds a plane and the carry of the one below, in place; the carry into the next one, 0 or 1 each, if any."""
    digits += plane
    over = None if top else digits < plane  # a sum that has wrapped around is smaller than either part
    if carry is not None:
        digits += carry
    if over is None:
        return None
    return over.view(np.uint8) if carry is None else (over | (digits < carry)).view(np.uint8)
