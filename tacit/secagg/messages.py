"""The messages as canonical bytes: decode(encode(m)) == m, encode(decode(b)) == b, all else `ProtocolError`.

Each message begins with label, context and sender, in this order, so that a receiver sees what a message is
about before it reads the body. A client's signature covers these three and a hash of the body; what that hash is
made of stands at each message, because a peer may hold a part of the body only.

    M0  SetupRequest    SetupAnswer      keys
    M1  DealRequest     DealAnswer       shares
    M2  MaskRequest     MaskAnswer       the masked vector, or a Complaint
    M3  ConfirmRequest  ConfirmAnswer    whose vectors are in the sum
    M4  UnmaskRequest   UnmaskAnswer     shares that open it

Longer than 400 lines because it is a table: eleven messages, each with its fields and their order.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import ClassVar, Final

from tacit.errors import ProtocolError
from tacit.secagg.contexts import Invitation
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.envelope import SIGNATURE_BYTES, Signed, Statement, open_, start
from tacit.secagg.members import SERVER, Entry, check_increasing
from tacit.secagg.sharing import COMMITMENT_BYTES, OPENING_BYTES, SEALED_BYTES

TAG_BYTES: Final = 16
ROW_BYTES: Final = SEALED_BYTES + COMMITMENT_BYTES


@dataclass(frozen=True)
class SetupRequest(Signed):
    """M0, server to client: the invitation. The model travels beside it.

    Attributes:
        invitation: the fields of ctx0.
        signature: of the server's identity key, over ctx0.
    """

    LABEL: ClassVar = "M0/request"
    invitation: Invitation
    signature: bytes = b""

    @property
    def statement(self) -> Statement:
        """What the server signs."""
        context = self.invitation.ctx0()
        return Statement(self.LABEL, context, SERVER, context)

    def encode(self) -> bytes:
        """Canonical bytes."""
        return self.invitation.write(Writer(self.LABEL)).data(self.signature).finish()

    @classmethod
    def decode(cls, data: bytes) -> SetupRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader = Reader(data, "M0/request")
        message = cls(Invitation.read(reader), reader.data(SIGNATURE_BYTES))
        reader.end()
        return message


@dataclass(frozen=True)
class SetupAnswer(Signed):
    """M0, client to server: this client's entry of U1.

    Attributes:
        context: ctx0.
        entry: keys, nonce, counter and journal head.
        signature: over the entry.
    """

    LABEL: ClassVar = "M0/answer"
    context: bytes
    entry: Entry
    signature: bytes = b""

    @property
    def sender(self) -> int:
        """Whose entry it is."""
        return self.entry.index

    def _write(self, writer: Writer) -> None:
        self.entry.write(writer)

    @classmethod
    def decode(cls, data: bytes) -> SetupAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M0/answer")
        message = cls(context, Entry.read(reader), reader.data(SIGNATURE_BYTES))
        reader.end()
        if message.entry.index != sender:
            raise ProtocolError("sender", "an entry was sent by somebody else")
        return message


@dataclass(frozen=True)
class DealRequest:
    """M1, server to client: U1.

    Attributes:
        context: ctx0.
        entries: of everybody that sent keys, by increasing index.
        signatures: of each entry's `SetupAnswer`, in the same order.
    """

    context: bytes
    entries: tuple[Entry, ...]
    signatures: tuple[bytes, ...]

    def __post_init__(self) -> None:
        check_increasing([entry.index for entry in self.entries])

    def answers(self) -> Iterable[SetupAnswer]:
        """What each member of U1 is said to have answered."""
        pairs = zip(self.entries, self.signatures, strict=True)
        return (SetupAnswer(self.context, entry, signature) for entry, signature in pairs)

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = start("M1/request", self.context, SERVER).number(len(self.entries))
        for entry, signature in zip(self.entries, self.signatures, strict=True):
            entry.write(writer)
            writer.data(signature)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> DealRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = open_(data, "M1/request", from_server=True)
        pairs = [(Entry.read(reader), reader.data(SIGNATURE_BYTES)) for _ in range(reader.number())]
        reader.end()
        return cls(context, tuple(e for e, _ in pairs), tuple(s for _, s in pairs))


@dataclass(frozen=True)
class DealAnswer(Signed):
    """M1, client to server: a row of shares for each of its neighbours and itself.

    Attributes:
        context: ctx1.
        sender: the dealer's index.
        rows: for each recipient in the order of the graph, sealed shares and their commitment: 146 bytes each.
        own_commitment: commitment to the seed of the own mask, 32 bytes.
        signature: over rows and commitment.
    """

    LABEL: ClassVar = "M1/answer"
    context: bytes
    sender: int
    rows: bytes
    own_commitment: bytes
    signature: bytes = b""

    @property
    def num_rows(self) -> int:
        """How many recipients there are."""
        return len(self.rows) // ROW_BYTES

    def row(self, position: int) -> bytes:
        """The row of the recipient at this position of the graph's list."""
        return self.rows[position * ROW_BYTES : (position + 1) * ROW_BYTES]

    @property
    def commitments(self) -> bytes:
        """The commitment in each row, 32 bytes each."""
        starts = range(SEALED_BYTES, len(self.rows), ROW_BYTES)
        return b"".join(self.rows[start : start + COMMITMENT_BYTES] for start in starts)

    def _write(self, writer: Writer) -> None:
        writer.data(self.rows).data(self.own_commitment)

    @classmethod
    def decode(cls, data: bytes) -> DealAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M1/answer")
        rows = reader.data()
        message = cls(context, sender, rows, reader.data(HASH_BYTES), reader.data(SIGNATURE_BYTES))
        reader.end()
        if len(rows) % ROW_BYTES:
            raise ProtocolError("encoding", "rows of shares are cut short")
        return message


@dataclass(frozen=True)
class MaskRequest:
    """M2, server to client: U2, and the rows that were dealt to this client.

    Attributes:
        context: ctx1.
        masking: U2, increasing.
        rows: of each dealer in U2 that has this client among its recipients, by increasing index.
    """

    context: bytes
    masking: tuple[int, ...]
    rows: bytes

    def __post_init__(self) -> None:
        check_increasing(self.masking)

    def row(self, position: int) -> tuple[bytes, bytes]:
        """Sealed shares and commitment of the dealer at this position."""
        start = position * ROW_BYTES
        row = self.rows[start : start + ROW_BYTES]
        return row[:SEALED_BYTES], row[SEALED_BYTES:]

    @property
    def num_rows(self) -> int:
        """How many dealers there are."""
        return len(self.rows) // ROW_BYTES

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = start("M2/request", self.context, SERVER)
        writer.numbers(self.masking)
        return writer.data(self.rows).finish()

    @classmethod
    def decode(cls, data: bytes) -> MaskRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = open_(data, "M2/request", from_server=True)
        message = cls(context, reader.numbers(), reader.data())
        reader.end()
        if len(message.rows) % ROW_BYTES:
            raise ProtocolError("encoding", "rows of shares are cut short")
        return message


@dataclass(frozen=True)
class MaskAnswer(Signed):
    """M2, client to server: y was sent. The packed words travel beside it.

    Attributes:
        context: ctx2.
        sender: the client's index.
        tag: of the packed words, under a key that this client shares with the server; 16 bytes.
        signature: over the tag. Peers ask for it before they help to open a sum with this vector in it.
    """

    LABEL: ClassVar = "M2/answer"
    context: bytes
    sender: int
    tag: bytes
    signature: bytes = b""

    def _write(self, writer: Writer) -> None:
        writer.data(self.tag)

    @classmethod
    def decode(cls, data: bytes) -> MaskAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M2/answer")
        message = cls(context, sender, reader.data(TAG_BYTES), reader.data(SIGNATURE_BYTES))
        reader.end()
        return message


@dataclass(frozen=True)
class Complaint(Signed):
    """M2, client to server, instead of y: a dealer's row does not open, or not to what its commitment says.

    Attributes:
        context: ctx2.
        sender: who complains.
        dealer: about whom.
        signature: over the dealer's index.
    """

    LABEL: ClassVar = "M2/complaint"
    context: bytes
    sender: int
    dealer: int
    signature: bytes = b""

    def _write(self, writer: Writer) -> None:
        writer.number(self.dealer)

    @classmethod
    def decode(cls, data: bytes) -> Complaint:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M2/complaint")
        message = cls(context, sender, reader.number(), reader.data(SIGNATURE_BYTES))
        reader.end()
        return message

    @staticmethod
    def is_one(data: bytes) -> bool:
        """Whether bytes claim to be a complaint."""
        return data.startswith(Writer("M2/complaint").finish())


@dataclass(frozen=True)
class ConfirmRequest:
    """M3, server to client: U3, with proof that its neighbours in it have sent their vectors.

    Attributes:
        context: ctx2.
        survivors: U3, increasing.
        proofs: index, tag and signature of the `MaskAnswer` of members of U3, by increasing index.
    """

    context: bytes
    survivors: tuple[int, ...]
    proofs: tuple[tuple[int, bytes, bytes], ...]

    def __post_init__(self) -> None:
        check_increasing(self.survivors)
        check_increasing([index for index, _, _ in self.proofs])

    def answers(self) -> dict[int, MaskAnswer]:
        """What each of these members is said to have answered."""
        return {
            index: MaskAnswer(self.context, index, tag, signature) for index, tag, signature in self.proofs
        }

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = start("M3/request", self.context, SERVER)
        writer.numbers(self.survivors)
        writer.number(len(self.proofs))
        for index, tag, signature in self.proofs:
            writer.number(index).data(tag).data(signature)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> ConfirmRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = open_(data, "M3/request", from_server=True)
        survivors = reader.numbers()
        proofs = tuple(
            (reader.number(), reader.data(TAG_BYTES), reader.data(SIGNATURE_BYTES))
            for _ in range(reader.number())
        )
        reader.end()
        return cls(context, survivors, proofs)


@dataclass(frozen=True)
class ConfirmAnswer(Signed):
    """M3, client to server: this client helps to open the sum over U3, and no other in this context.

    Attributes:
        context: ctx2.
        sender: the client's index.
        survivors: U3; not sent, since everybody who reads this knows it.
        signature: over U3.
    """

    LABEL: ClassVar = "M3/answer"
    context: bytes
    sender: int
    survivors: tuple[int, ...]
    signature: bytes = b""

    def _write(self, writer: Writer) -> None:
        writer.numbers(self.survivors)

    def encode(self) -> bytes:
        """Canonical bytes."""
        return start("M3/answer", self.context, self.sender).data(self.signature).finish()

    @classmethod
    def decode(cls, data: bytes, survivors: tuple[int, ...]) -> ConfirmAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M3/answer")
        message = cls(context, sender, survivors, reader.data(SIGNATURE_BYTES))
        reader.end()
        return message


@dataclass(frozen=True)
class UnmaskRequest:
    """M4, server to client: enough of U3 have confirmed it.

    Attributes:
        context: ctx2.
        survivors: U3, increasing.
        signatures: index and signature of `ConfirmAnswer`s over it, by increasing index.
    """

    context: bytes
    survivors: tuple[int, ...]
    signatures: tuple[tuple[int, bytes], ...]

    def __post_init__(self) -> None:
        check_increasing(self.survivors)
        check_increasing([index for index, _ in self.signatures])

    def answers(self) -> Iterable[ConfirmAnswer]:
        """What these members are said to have answered."""
        pairs = self.signatures
        return (ConfirmAnswer(self.context, index, self.survivors, signature) for index, signature in pairs)

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = start("M4/request", self.context, SERVER)
        writer.numbers(self.survivors)
        writer.number(len(self.signatures))
        for index, signature in self.signatures:
            writer.number(index).data(signature)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> UnmaskRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = open_(data, "M4/request", from_server=True)
        survivors = reader.numbers()
        signatures = tuple((reader.number(), reader.data(SIGNATURE_BYTES)) for _ in range(reader.number()))
        reader.end()
        return cls(context, survivors, signatures)


@dataclass(frozen=True)
class UnmaskAnswer(Signed):
    """M4, client to server: one share of every client of U2 that dealt to this one.

    Attributes:
        context: ctx2.
        sender: the client's index.
        openings: by increasing dealer, 97 bytes each: of the own mask of a dealer in U3, of the mask key of another.
        signature: over the openings.
    """

    LABEL: ClassVar = "M4/answer"
    context: bytes
    sender: int
    openings: bytes = field(repr=False)
    signature: bytes = b""

    @property
    def num_openings(self) -> int:
        """How many dealers there are."""
        return len(self.openings) // OPENING_BYTES

    def opening(self, position: int) -> bytes:
        """The bytes of the opening at this position."""
        return self.openings[position * OPENING_BYTES : (position + 1) * OPENING_BYTES]

    def _write(self, writer: Writer) -> None:
        writer.data(self.openings)

    @classmethod
    def decode(cls, data: bytes) -> UnmaskAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = open_(data, "M4/answer")
        message = cls(context, sender, reader.data(), reader.data(SIGNATURE_BYTES))
        reader.end()
        if len(message.openings) % OPENING_BYTES:
            raise ProtocolError("encoding", "openings of shares are cut short")
        return message
