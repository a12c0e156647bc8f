"""Canonical bytes: one spelling for each value, so that equal bytes and equal values are the same thing.

A byte string is its length in 4 bytes and itself; text is that of its UTF-8 form; a number is 8 bytes,
unsigned; a real is its 8 bytes of IEEE 754, never NaN, infinite or negative zero. All big-endian. The first
field of everything is a label that says what follows.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from math import copysign, isfinite
from typing import Final

from tacit.errors import ProtocolError

PREFIX: Final = "tacit/1/"
HASH_BYTES: Final = 32

_MAX_NUMBER: Final = 2**64 - 1
_MAX_DATA: Final = 2**32 - 1


class Writer:
    """Builds canonical bytes field by field. A value without a spelling is our own mistake: `ValueError`."""

    def __init__(self, label: str) -> None:
        self._parts: list[bytes | bytearray] = []
        self.text(PREFIX + label)

    def data(self, value: bytes | bytearray) -> Writer:
        """A byte string."""
        if len(value) > _MAX_DATA:
            raise ValueError("a field of more than 4 GiB")
        self._parts += (struct.pack(">I", len(value)), value)
        return self

    def text(self, value: str) -> Writer:
        """A text."""
        return self.data(value.encode("utf-8"))

    def number(self, value: int) -> Writer:
        """An integer, 0 to 2^64 - 1."""
        if not 0 <= value <= _MAX_NUMBER:
            raise ValueError(f"{value} is not a number of 64 bits")
        self._parts.append(struct.pack(">Q", value))
        return self

    def numbers(self, values: Sequence[int]) -> Writer:
        """How many numbers there are, and they."""
        if values and not 0 <= min(values) <= max(values) <= _MAX_NUMBER:
            raise ValueError("not all of these are numbers of 64 bits")
        self.number(len(values))._parts.append(struct.pack(f">{len(values)}Q", *values))
        return self

    def real(self, value: float) -> Writer:
        """A finite float64; negative zero becomes zero."""
        if not isfinite(value):
            raise ValueError(f"{value} has no canonical form")
        self._parts.append(struct.pack(">d", value + 0.0))
        return self

    def finish(self) -> bytes:
        """Everything written so far."""
        return b"".join(self._parts)

    def hash(self) -> bytes:
        """SHA-256 of everything written so far."""
        digest = hashlib.sha256()
        for part in self._parts:
            digest.update(part)
        return digest.digest()


class Reader:
    """Reads what a `Writer` wrote, and refuses everything else with `ProtocolError`.

    Nothing is allocated on the word of a length field: a field longer than what is there is refused first.
    """

    def __init__(self, data: bytes, label: str) -> None:
        self._data, self._at = memoryview(data), 0
        if self.text() != PREFIX + label:
            raise ProtocolError("label", f"this is not a {label}")

    def data(self, size: int | None = None) -> bytes:
        """A byte string, of exactly `size` bytes where that is given."""
        (length,) = struct.unpack(">I", self._take(4))
        if size is not None and length != size:
            raise ProtocolError("encoding", f"a field has {length} bytes, not {size}")
        return bytes(self._take(length))

    def text(self) -> str:
        """A text."""
        try:
            return self.data().decode("utf-8")
        except UnicodeDecodeError:
            raise ProtocolError("encoding", "a text is not UTF-8") from None

    def number(self) -> int:
        """An unsigned integer of 64 bits."""
        value: int = struct.unpack(">Q", self._take(8))[0]
        return value

    def numbers(self) -> tuple[int, ...]:
        """What `Writer.numbers` wrote; their order is the caller's to check."""
        size = 8 * self.number()
        return struct.unpack(f">{size // 8}Q", self._take(size))

    def real(self) -> float:
        """A finite float64."""
        value: float = struct.unpack(">d", self._take(8))[0]
        if not isfinite(value) or (value == 0 and copysign(1, value) < 0):
            raise ProtocolError("encoding", "a real is not finite, or is negative zero")
        return value

    def end(self) -> None:
        """Refuses bytes after the last field."""
        if self._at != len(self._data):
            raise ProtocolError("encoding", f"{len(self._data) - self._at} bytes too many")

    def _take(self, size: int) -> memoryview:
        part = self._data[self._at : self._at + size]
        if len(part) != size:
            raise ProtocolError("encoding", "the message ends too early")
        self._at += size
        return part
