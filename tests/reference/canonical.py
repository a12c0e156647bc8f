"""Section 3 of `docs/protocol.md`: canonical bytes and how they are read back."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Sequence
from itertools import pairwise

SERVER, ROOT = 2**32 - 1, 2**32 - 2


class Refused(Exception):
    """Bytes that the page does not allow; `code` is that of its section 13."""

    def __init__(self, code: str) -> None:
        super().__init__(code)
        self.code = code


def require(condition: bool, code: str) -> None:
    """Refuse with this code unless the condition holds."""
    if not condition:
        raise Refused(code)


def data(content: bytes) -> bytes:
    """A byte string."""
    return len(content).to_bytes(4, "big") + content


def text(content: str) -> bytes:
    """A text."""
    return data(content.encode("utf-8"))


def number(value: int) -> bytes:
    """A number."""
    return value.to_bytes(8, "big")


def real(value: float) -> bytes:
    """A real."""
    return struct.pack(">d", value)


def each(values: Sequence[int]) -> bytes:
    """Numbers one behind the other, without a count."""
    return b"".join(number(value) for value in values)


def numbers(values: Sequence[int]) -> bytes:
    """A counted list of numbers."""
    return number(len(values)) + each(values)


def label(name: str) -> bytes:
    """What everything begins with."""
    return text("tacit/1/" + name)


def sha256(content: bytes) -> bytes:
    """SHA-256, 32 bytes."""
    return hashlib.sha256(content).digest()


def h(name: str, *parts: bytes) -> bytes:
    """H("name" | parts)."""
    return sha256(label(name) + b"".join(parts))


class Reader:
    """Takes canonical bytes apart from the front."""

    def __init__(self, content: bytes, name: str) -> None:
        self.content, self.at = content, 0
        require(self.data() == ("tacit/1/" + name).encode(), "label")

    def raw(self, size: int) -> bytes:
        """The next bytes."""
        require(self.at + size <= len(self.content), "encoding")
        self.at += size
        return self.content[self.at - size : self.at]

    def data(self, size: int | None = None) -> bytes:
        """A byte string, of this size if one is given."""
        length = int.from_bytes(self.raw(4), "big")
        require(size is None or length == size, "encoding")
        return self.raw(length)

    def text(self) -> str:
        """A text."""
        try:
            return self.data().decode("utf-8")
        except UnicodeDecodeError:
            raise Refused("encoding") from None

    def number(self) -> int:
        """A number."""
        return int.from_bytes(self.raw(8), "big")

    def real(self) -> float:
        """A real; only the one spelling that `real` gives."""
        content = self.raw(8)
        value: float = struct.unpack(">d", content)[0]
        require(abs(value) < float("inf") and content != real(-0.0), "encoding")
        return value

    def members(self) -> list[int]:
        """A set of members: counted, strictly increasing."""
        found = [self.number() for _ in range(self.count(8))]
        require(all(a < b for a, b in pairwise(found)), "order")
        require(all(value < ROOT for value in found), "member")
        return found

    def count(self, size: int) -> int:
        """How many items follow, each of at least `size` bytes."""
        many = self.number()
        require(many * size <= len(self.content) - self.at, "encoding")
        return many

    def end(self) -> None:
        """Nothing may be left."""
        require(self.at == len(self.content), "encoding")
