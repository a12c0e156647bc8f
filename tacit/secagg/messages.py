"""The messages as canonical bytes: decode(encode(m)) == m, encode(decode(b)) == b, all else `ProtocolError`.

Each message begins with label, context and sender, in this order, so that a receiver sees what a message is
about before it reads the body. These three and a hash of the body are what a signature will cover.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from tacit.errors import ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.members import SERVER, Entry, check_increasing
from tacit.secagg.prg import KEY_BYTES
from tacit.secagg.ring import check_packed
from tacit.update import MaskedUpdate


@dataclass(frozen=True)
class SetupAnswer:
    """M0, client to server: this client's entry of U1.

    Attributes:
        context: ctx0.
        entry: keys, nonce, counter and journal head.
    """

    context: bytes
    entry: Entry

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = _start("M0/answer", self.context, self.entry.index)
        self.entry.write(writer)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> SetupAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = _open(data, "M0/answer")
        entry = Entry.read(reader)
        reader.end()
        if entry.index != sender:
            raise ProtocolError("sender", "an entry was sent by somebody else")
        return cls(context, entry)


@dataclass(frozen=True)
class MaskRequest:
    """M2, server to client: who takes part.

    Attributes:
        context: ctx0.
        entries: U1, by increasing index.
        masking: U2, increasing.
    """

    context: bytes
    entries: tuple[Entry, ...]
    masking: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing([entry.index for entry in self.entries])
        check_increasing(self.masking)

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = _start("M2/request", self.context, SERVER).number(len(self.entries))
        for entry in self.entries:
            entry.write(writer)
        _write_set(writer, self.masking)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> MaskRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = _open(data, "M2/request", from_server=True)
        entries = tuple(Entry.read(reader) for _ in range(reader.number()))
        masking = _read_set(reader)
        reader.end()
        return cls(context, entries, masking)


@dataclass(frozen=True)
class MaskAnswer:
    """M2, client to server: y, the masked vector.

    Attributes:
        context: ctx2.
        sender: the client's index.
        bits: width of a word.
        length: number of words.
        packed: the words, ceil(length * bits / 8) bytes.
    """

    context: bytes
    sender: int
    bits: int
    length: int
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, context: bytes, sender: int, update: MaskedUpdate) -> MaskAnswer:
        """The message that carries this update."""
        return cls(context, sender, update.bits, update.words.size, update.to_bytes())

    def masked_update(self) -> MaskedUpdate:
        """The update that the message carries."""
        return MaskedUpdate.from_bytes(self.packed, self.bits, self.length)

    def encode(self) -> bytes:
        """Canonical bytes: fewer than 256 more than the packed words."""
        writer = _start("M2/answer", self.context, self.sender)
        return writer.number(self.bits).number(self.length).data(self.packed).finish()

    @classmethod
    def decode(cls, data: bytes) -> MaskAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes. The words are not unpacked yet."""
        reader, context, sender = _open(data, "M2/answer")
        answer = cls(context, sender, reader.number(), reader.number(), reader.data())
        reader.end()
        check_packed(answer.packed, answer.bits, answer.length)
        return answer


@dataclass(frozen=True)
class UnmaskRequest:
    """M4, server to client: whose vectors are in the sum.

    Attributes:
        context: ctx2.
        survivors: U3, increasing.
    """

    context: bytes
    survivors: tuple[int, ...]

    def __post_init__(self) -> None:
        check_increasing(self.survivors)

    def encode(self) -> bytes:
        """Canonical bytes."""
        writer = _start("M4/request", self.context, SERVER)
        _write_set(writer, self.survivors)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> UnmaskRequest:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, _ = _open(data, "M4/request", from_server=True)
        survivors = _read_set(reader)
        reader.end()
        return cls(context, survivors)


@dataclass(frozen=True)
class UnmaskAnswer:
    """M4, client to server: the seed of this client's own mask.

    Attributes:
        context: ctx2.
        sender: the client's index.
        seed: b_u, 32 bytes.
    """

    context: bytes
    sender: int
    seed: bytes = field(repr=False)

    def encode(self) -> bytes:
        """Canonical bytes."""
        return _start("M4/answer", self.context, self.sender).data(self.seed).finish()

    @classmethod
    def decode(cls, data: bytes) -> UnmaskAnswer:
        """The reverse of `encode`; `ProtocolError` for any other bytes."""
        reader, context, sender = _open(data, "M4/answer")
        seed = reader.data(KEY_BYTES)
        reader.end()
        return cls(context, sender, seed)


def _start(label: str, context: bytes, sender: int) -> Writer:
    return Writer(label).data(context).number(sender)


def _open(data: bytes, label: str, *, from_server: bool = False) -> tuple[Reader, bytes, int]:
    """The reader behind the header, the context and the sender."""
    reader = Reader(data, label)
    context, sender = reader.data(HASH_BYTES), reader.number()
    if (sender == SERVER) != from_server or sender > SERVER:
        raise ProtocolError("sender", "a request comes from the server and an answer from a member")
    return reader, context, sender


def _write_set(writer: Writer, indices: tuple[int, ...]) -> None:
    writer.number(len(indices))
    for index in indices:
        writer.number(index)


def _read_set(reader: Reader) -> tuple[int, ...]:
    return tuple(reader.number() for _ in range(reader.number()))
