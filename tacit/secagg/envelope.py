"""What all messages of the protocol have: a header of label, context and sender, and for most a signature."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar, Final, NamedTuple, Protocol, Self

from tacit.errors import ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.members import SERVER

SIGNATURE_BYTES: Final = 64


class Statement(NamedTuple):
    """What a signature covers: the first arguments of `Identity.sign`, the last ones of `identity.verify`."""

    label: str
    context: bytes
    sender: int
    body_hash: bytes


class Signer(Protocol):
    """A holder of an identity key."""

    def sign(self, label: str, context: bytes, sender: int, body_hash: bytes) -> bytes:
        """64 bytes."""
        ...


class Signed:
    """A message under its sender's signature, which is its last field and covers all the others."""

    LABEL: ClassVar[str]
    if TYPE_CHECKING:
        context: Any  # bytes: a field, or a property
        sender: Any  # int
        signature: bytes

    def _write(self, writer: Writer) -> None:
        """The fields behind the header and before the signature."""
        raise NotImplementedError

    def _unsigned(self) -> Writer:
        writer = start(self.LABEL, self.context, self.sender)
        self._write(writer)
        return writer

    @property
    def statement(self) -> Statement:
        """What the signature covers."""
        return Statement(self.LABEL, self.context, self.sender, self._unsigned().hash())

    def signed(self, signer: Signer) -> Self:
        """The same message with its signature."""
        return replace(self, signature=signer.sign(*self.statement))  # type: ignore[type-var]

    def encode(self) -> bytes:
        """Canonical bytes."""
        return self._unsigned().data(self.signature).finish()


def start(label: str, context: bytes, sender: int) -> Writer:
    """The header."""
    return Writer(label).data(context).number(sender)


def open_(data: bytes, label: str, *, from_server: bool = False) -> tuple[Reader, bytes, int]:
    """The reader behind the header, the context and the sender."""
    reader = Reader(data, label)
    context, sender = reader.data(HASH_BYTES), reader.number()
    if (sender == SERVER) != from_server or sender > SERVER:
        raise ProtocolError("sender", "a request comes from the server and an answer from a member")
    return reader, context, sender
