"""Contexts, messages, packed words (sections 4, 6 and 7 of `docs/protocol.md`)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

from tests.reference.canonical import (
    SERVER,
    Reader,
    Refused,
    data,
    h,
    label,
    number,
    numbers,
    require,
    text,
)
from tests.reference.keys import hash_of, sign, verify
from tests.reference.parameters import Parameters, Rules

BLOCK = 65_536  # words that are packed together


def model_digest(arrays: Sequence[tuple[str, str, Sequence[int], bytes]]) -> bytes:
    """Digest of a model: name, dtype, shape and bytes of each array."""
    parts = [number(len(arrays))]
    for name, dtype, shape, content in arrays:
        assert len(content) == prod(shape) * int(dtype[2:])
        parts += [text(name), text(dtype), number(len(shape)), *map(number, shape), data(content)]
    return h("model", *parts)


def config_digest(experiment: str, scaling: str = "", clip: str = "", variate: str = "") -> bytes:
    """Digest of a configuration."""
    if scaling or clip or variate:
        experiment += "\n"
        experiment += f"# scaling: {scaling}\n" if scaling else ""
        experiment += f"# clip: {clip}\n" if clip else ""
        experiment += f"# variate: {variate}\n" if variate else ""
    return h("text", text(experiment))


@dataclass(frozen=True)
class Invitation:
    """M0/request without its signature."""

    roster: bytes
    run: str
    round: int
    attempt: int
    model: bytes
    config: bytes
    length: int
    num_invited: int
    rules: Rules
    server_pk: bytes
    receipt_head: bytes = bytes(32)

    def canonical(self) -> bytes:
        """The fields."""
        return b"".join(
            (
                data(self.roster),
                text(self.run),
                number(self.round),
                number(self.attempt),
                data(self.model),
                data(self.config),
                number(self.length),
                number(self.num_invited),
                self.rules.canonical(),
                data(self.server_pk),
                data(self.receipt_head),
            )
        )

    def ctx0(self) -> bytes:
        """The first context."""
        return h("ctx0", self.canonical())


@dataclass(frozen=True)
class Entry:
    """What a client is in an attempt."""

    index: int
    enc: bytes
    mask: bytes
    nonce: bytes
    counter: int
    site_head: bytes

    def canonical(self) -> bytes:
        """160 bytes."""
        keys = data(self.enc) + data(self.mask) + data(self.nonce)
        return number(self.index) + keys + number(self.counter) + data(self.site_head)


def read_entry(reader: Reader) -> Entry:
    """An entry."""
    index = reader.number()
    enc, mask, nonce = (reader.data(32) for _ in range(3))
    return Entry(index, enc, mask, nonce, reader.number(), reader.data(32))


def ctx1_of(ctx0: bytes, entries: Sequence[Entry], parameters: Parameters) -> bytes:
    """The second context."""
    listed = number(len(entries)) + b"".join(entry.canonical() for entry in entries)
    return h("ctx1", data(ctx0), listed, parameters.canonical())


def ctx2_of(ctx1: bytes, dealers: Sequence[int]) -> bytes:
    """The third context."""
    return h("ctx2", data(ctx1), numbers(dealers))


def head(name: str, context: bytes, sender: int = SERVER) -> bytes:
    """How every message but M0/request begins."""
    return label(name) + data(context) + number(sender)


def signed(secret: bytes, name: str, context: bytes, sender: int, body: bytes, sent: bool = True) -> bytes:
    """An answer with its signature; `sent`: whether the body is part of it."""
    front = head(name, context, sender)
    signature = sign(secret, name, context, sender, hash_of(front + body))
    return front + (body if sent else b"") + data(signature)


def verify_answer(key: bytes, name: str, context: bytes, sender: int, body: bytes, signature: bytes) -> None:
    """An answer's signature, from the answer's body."""
    verify(key, signature, name, context, sender, hash_of(head(name, context, sender) + body))


def read_request(message: bytes, name: str, context: bytes) -> Reader:
    """A request of the server, up to its body."""
    reader = Reader(message, name)
    require(reader.data(32) == context, "context")
    require(reader.number() == SERVER, "sender")
    return reader


def read_answer(message: bytes, name: str, context: bytes, body_size: int) -> tuple[int, bytes, bytes]:
    """Sender, body and signature of an answer whose body has this size."""
    reader = Reader(message, name)
    require(reader.data(32) == context, "context")
    sender = reader.number()
    body = reader.raw(body_size)
    signature = reader.data(64)
    reader.end()
    return sender, body, signature


def request(name: str, context: bytes, *parts: bytes) -> bytes:
    """A request of the server."""
    return head(name, context) + b"".join(parts)


def entries_body(entries: Sequence[tuple[Entry, bytes]]) -> bytes:
    """Body of M1/request."""
    return number(len(entries)) + b"".join(e.canonical() + data(signature) for e, signature in entries)


def proofs_body(survivors: Sequence[int], proofs: dict[int, tuple[bytes, bytes]]) -> bytes:
    """Body of M3/request."""
    listed = [number(i) + data(proofs[i][0]) + data(proofs[i][1]) for i in sorted(proofs)]
    return numbers(survivors) + number(len(listed)) + b"".join(listed)


def confirmations_body(survivors: Sequence[int], signatures: dict[int, bytes]) -> bytes:
    """Body of M4/request."""
    listed = [number(i) + data(signatures[i]) for i in sorted(signatures)]
    return numbers(survivors) + number(len(listed)) + b"".join(listed)


def planes(bits: int) -> list[int]:
    """How many bits each plane has, from the lowest."""
    found = [16 if bits >= 16 else 8]
    while bits - sum(found) >= 8:
        found.append(8)
    return found + [1] * (bits - sum(found))


def packed_size(length: int, bits: int) -> int:
    """Bytes of packed words."""
    sizes = [min(BLOCK, length - start) for start in range(0, length, BLOCK)]
    return sum((n + 7) // 8 if width == 1 else n * width // 8 for n in sizes for width in planes(bits))


def pack(words: Sequence[int], bits: int) -> bytes:
    """Packed words."""
    return b"".join(pack_block(words[start : start + BLOCK], bits) for start in range(0, len(words), BLOCK))


def pack_block(words: Sequence[int], bits: int) -> bytes:
    """Planes of one block."""
    packed, low = b"", 0
    for width in planes(bits):
        part = [word >> low & 2**width - 1 for word in words]
        if width == 1:
            plane = bytearray((len(words) + 7) // 8)
            for i, bit in enumerate(part):
                plane[i // 8] |= bit << i % 8
            packed += bytes(plane)
        else:
            packed += b"".join(value.to_bytes(width // 8, "little") for value in part)
        low += width
    return packed


def unpack(packed: bytes, length: int, bits: int) -> list[int]:
    """The words of packed bytes."""
    require(len(packed) == packed_size(length, bits), "vector-size")
    words: list[int] = []
    for start in range(0, length, BLOCK):
        n = min(BLOCK, length - start)
        size = packed_size(n, bits)
        words += unpack_block(packed[:size], n, bits)
        packed = packed[size:]
    return words


def unpack_block(packed: bytes, length: int, bits: int) -> list[int]:
    """The words of one block."""
    words, low, at = [0] * length, 0, 0
    for width in planes(bits):
        for i in range(length):
            if width == 1:
                part = packed[at + i // 8] >> i % 8 & 1
            else:
                size = width // 8
                part = int.from_bytes(packed[at + size * i : at + size * (i + 1)], "little")
            words[i] |= part << low
        at += (length + 7) // 8 if width == 1 else length * width // 8
        low += width
    if pack(words, bits) != packed:
        raise Refused("padding")
    return words
