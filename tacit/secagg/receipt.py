"""Receipts: what a server has opened, one for each sum, in one public chain for the whole federation.

A receipt is written before its sum is used, names the one before it, and is signed. The head of the chain is in
ctx0, and the newest receipts travel beside M0, so that every client sees the chain grow and no client sees it shrink:
a server that was put back from a backup is found out, and two receipts with one number prove that it told two stories.
"""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import ClassVar, Final

import numpy as np

from tacit.errors import ProtocolError
from tacit.secagg.contexts import NO_HEAD
from tacit.secagg.encoding import HASH_BYTES, Writer
from tacit.secagg.envelope import SIGNATURE_BYTES, Signed, open_
from tacit.secagg.identity import verify
from tacit.secagg.members import SERVER, check_increasing
from tacit.update import Aggregate

SHOWN: Final = (
    8  # newest receipts beside M0: a site that misses more releases than that sees a gap, not a lie
)


@dataclass(frozen=True)
class Receipt(Signed):
    """One sum that was opened.

    Attributes:
        context: ctx2 of the attempt.
        number: place in the chain, from 1.
        previous: `digest` of the receipt before; zeros for the first.
        roster: digest of the roster.
        run, round, attempt: of the invitation.
        model: digest of the global model that the attempt began with.
        survivors: U3, whose vectors are in the sum.
        confirmations: `confirmations_digest` of the signatures under U3.
        aggregate: `aggregate_digest` of what is used of the sum, which is the noised one where this server adds noise.
        epsilon: what so many rounds of one attempt each cost by the plan, as text; "inf" where nothing is promised.
            What a site has paid, repeats included, its own ledger says.
        signature: of the server's identity key.
    """

    LABEL: ClassVar = "receipt"
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
    signature: bytes = b""

    @property
    def sender(self) -> int:
        """The server."""
        return SERVER

    @property
    def digest(self) -> bytes:
        """What the next receipt names, and ctx0 while this is the last; 32 bytes."""
        return self.statement.body_hash

    def _write(self, writer: Writer) -> None:
        writer.number(self.number).data(self.previous).data(self.roster)
        writer.text(self.run).number(self.round).number(self.attempt).data(self.model)
        writer.numbers(self.survivors).data(self.confirmations).data(self.aggregate).text(self.epsilon)

    @classmethod
    def decode(cls, data: bytes) -> Receipt:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = open_(data, cls.LABEL, from_server=True)
        receipt = cls(
            context=context,
            number=reader.number(),
            previous=reader.data(HASH_BYTES),
            roster=reader.data(HASH_BYTES),
            run=reader.text(),
            round=reader.number(),
            attempt=reader.number(),
            model=reader.data(HASH_BYTES),
            survivors=reader.numbers(),
            confirmations=reader.data(HASH_BYTES),
            aggregate=reader.data(HASH_BYTES),
            epsilon=reader.text(),
            signature=reader.data(SIGNATURE_BYTES),
        )
        reader.end()
        check_increasing(receipt.survivors)
        if receipt.number < 1:
            raise ProtocolError("receipts", "receipts are numbered from 1")
        return receipt


class ReceiptChain:
    """The receipts of one server. This one forgets with its process.

    Attributes:
        receipts: all of them, in order.
        opening: held while a sum is given its place in them.
    """

    def __init__(self, receipts: Iterable[Receipt] = ()) -> None:
        self.receipts = list(receipts)
        self.opening = threading.Lock()

    @property
    def head(self) -> bytes:
        """Digest of the last receipt, 32 bytes; zeros where there is none."""
        return self.receipts[-1].digest if self.receipts else NO_HEAD

    def shown(self, head: bytes) -> list[bytes]:
        """What travels beside M0: in order, the newest receipts up to the one with this digest, which M0 names."""
        known = list(self.receipts)
        while known and known[-1].digest != head:  # of sums that were opened since
            known.pop()
        return [receipt.encode() for receipt in known[-SHOWN:]]

    def add(self, receipt: Receipt, confirmations: Mapping[int, bytes]) -> None:
        """Adds the next receipt; returns when it is kept.

        Args:
            receipt: signed, and linked to `head`.
            confirmations: the signatures under its U3, by index.

        Raises:
            StorageError: it cannot be kept; then nothing of the sum may be used.
        """
        self._keep(receipt, confirmations)
        self.receipts.append(receipt)

    def _keep(self, receipt: Receipt, confirmations: Mapping[int, bytes]) -> None:
        """Called before the receipt counts."""


def check_shown(head: bytes, shown: Sequence[bytes], server_key: bytes) -> tuple[Receipt, ...]:
    """The receipts that came beside an invitation.

    Args:
        head: `receipt_head` of the invitation.
        shown: as they came.
        server_key: as the roster has it.

    Raises:
        ProtocolError: "signature"; "receipts", they do not lead to `head` one by one.
    """
    if len(shown) > SHOWN:
        raise ProtocolError("receipts", f"{len(shown)} receipts beside one invitation")
    receipts = tuple(Receipt.decode(data) for data in shown)
    for receipt in receipts:
        verify(server_key, receipt.signature, *receipt.statement)
    for before, after in pairwise(receipts):
        check_next(before, after)
    if head != (receipts[-1].digest if receipts else NO_HEAD):
        raise ProtocolError("receipts", "the receipts shown do not lead to the head in the invitation")
    return receipts


def check_next(before: Receipt, after: Receipt) -> None:
    """Raises `ProtocolError` "receipts" unless one receipt follows the other."""
    if (after.number, after.previous) != (before.number + 1, before.digest):
        raise ProtocolError("receipts", f"receipt {after.number} does not follow receipt {before.number}")


def heads_of(receipts: Sequence[Receipt]) -> dict[int, bytes]:
    """What linked receipts say of the chain: its digest at each number that they know, 0 where there are none."""
    if not receipts:
        return {0: NO_HEAD}
    first = receipts[0]
    return {first.number - 1: first.previous, **{receipt.number: receipt.digest for receipt in receipts}}


def confirmations_digest(signatures: Mapping[int, bytes]) -> bytes:
    """Hash of the M3 signatures that a sum was opened with, by increasing index; 32 bytes."""
    writer = Writer("confirmations").number(len(signatures))
    for index in sorted(signatures):
        writer.number(index).data(signatures[index])
    return writer.hash()


def aggregate_digest(aggregate: Aggregate) -> bytes:
    """Hash of a sum: how many vectors are in it, and its coordinates as little-endian 64-bit integers; 32 bytes."""
    values = np.ascontiguousarray(aggregate.values, dtype="<i8")
    return Writer("aggregate").number(aggregate.num_clients).data(values.tobytes()).hash()
