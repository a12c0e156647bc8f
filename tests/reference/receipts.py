"""The server's receipts (section 11 of `docs/protocol.md`)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.reference.canonical import (
    SERVER,
    Reader,
    data,
    h,
    label,
    number,
    numbers,
    require,
    sha256,
    text,
)
from tests.reference.keys import sign, verify

NONE = bytes(32)


@dataclass(frozen=True)
class Receipt:
    """One sum that was opened."""

    context: bytes
    number: int
    previous: bytes
    roster: bytes
    run: str
    round: int
    attempt: int
    model: bytes
    survivors: tuple[int, ...]
    confirmations: bytes
    aggregate: bytes
    epsilon: str

    def canonical(self) -> bytes:
        """Everything but the signature."""
        first = number(self.number) + data(self.previous) + data(self.roster)
        second = text(self.run) + number(self.round) + number(self.attempt) + data(self.model)
        third = numbers(self.survivors) + data(self.confirmations) + data(self.aggregate) + text(self.epsilon)
        return label("receipt") + data(self.context) + number(SERVER) + first + second + third

    def digest(self) -> bytes:
        """What the next one names."""
        return sha256(self.canonical())

    def message(self, secret: bytes) -> bytes:
        """With the server's signature."""
        signature = sign(secret, "receipt", self.context, SERVER, self.digest())
        return self.canonical() + data(signature)


def read(message: bytes) -> tuple[Receipt, bytes]:
    """A receipt and its signature."""
    r = Reader(message, "receipt")
    context, sender = r.data(32), r.number()
    require(sender == SERVER, "sender")
    found = Receipt(
        context,
        r.number(),
        r.data(32),
        r.data(32),
        r.text(),
        r.number(),
        r.number(),
        r.data(32),
        tuple(r.members()),
        r.data(32),
        r.data(32),
        r.text(),
    )
    signature = r.data(64)
    r.end()
    require(found.number >= 1, "receipts")
    return found, signature


def shown(head: bytes, messages: Sequence[bytes], server_key: bytes) -> dict[int, bytes]:
    """What the receipts beside an invitation say of the chain: its digest at each number."""
    require(len(messages) <= 8, "receipts")
    found = [read(message) for message in messages]
    for receipt, signature in found:
        verify(server_key, signature, "receipt", receipt.context, SERVER, receipt.digest())
    for (a, _), (b, _) in pairwise(found):
        require((b.number, b.previous) == (a.number + 1, a.digest()), "receipts")
    digests = {receipt.number: receipt.digest() for receipt, _ in found}
    first = {found[0][0].number - 1: found[0][0].previous} if found else {0: NONE}
    heads = first | digests
    require(heads[max(heads)] == head if found else head == NONE, "receipts")
    return heads


def confirmations_digest(signatures: Mapping[int, bytes]) -> bytes:
    """Of the signatures under U3."""
    each = [number(index) + data(signatures[index]) for index in sorted(signatures)]
    return h("confirmations", number(len(each)), *each)


def aggregate_digest(num_clients: int, values: Sequence[int]) -> bytes:
    """Of a sum."""
    content = b"".join(value.to_bytes(8, "little", signed=True) for value in values)
    return h("aggregate", number(num_clients), data(content))
