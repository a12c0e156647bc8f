"""What one client keeps between the messages of an attempt, and its bytes for a session file."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from typing import Final, NoReturn

from tacit.errors import ProtocolError, StorageError
from tacit.secagg.contexts import Cohort, Invitation, cohort_of
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair, erase
from tacit.secagg.members import Entry
from tacit.secagg.prg import KEY_BYTES
from tacit.secagg.sharing import Shares

PHASES: Final = ("new", "keyed", "dealt", "masked", "complained", "confirmed", "unmasked", "closed")
_LABEL: Final = "client-state"


@dataclass(repr=False)
class ClientState:
    """State of one attempt.

    Attributes:
        index: this client's roster index.
        phase: one of `PHASES`.
        invitation: what the client was invited to, and with `entry` what it answered; None before.
        enc: key pair that shares are sealed to; None once erased.
        mask: key pair that pairwise masks come from; None once erased.
        own_seed: b_u, empty before it is drawn and once erased.
        cohort: U1; None before it is known.
        masking: U2; empty before it is known.
        ctx2: its context.
        shares: what each dealer of U2 has given to this client; empty once erased.
        answers: step -> SHA-256 of its request, and the answer: message and vector.
    """

    index: int
    phase: str = "new"
    invitation: Invitation | None = None
    entry: Entry | None = None
    enc: KeyPair | None = None
    mask: KeyPair | None = None
    own_seed: bytearray = field(default_factory=bytearray)
    cohort: Cohort | None = None
    masking: tuple[int, ...] = ()
    ctx2: bytes = b""
    shares: dict[int, Shares] = field(default_factory=dict)
    answers: dict[str, tuple[bytes, bytes, bytes]] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<ClientState of member {self.index}: {self.phase}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("the state of a client is saved by encode() alone")

    def answered(self, step: str, request: bytes) -> tuple[bytes, bytes] | None:
        """The answer that exactly this request got in this step, if any: message and vector."""
        digest, answer, vector = self.answers.get(step, (b"", b"", b""))
        return (answer, vector) if digest == hashlib.sha256(request).digest() else None

    def advance(self, phase: str, step: str, request: bytes, answer: bytes, vector: bytes = b"") -> bytes:
        """Enters the next phase with the answer that led there."""
        self.phase = phase
        self.answers[step] = hashlib.sha256(request).digest(), answer, vector
        return answer

    def erase(self) -> None:
        """Erases every secret. Answers stay: they have been sent."""
        for pair in (self.enc, self.mask):
            if pair is not None:
                pair.erase()
        self.enc = self.mask = None
        erase(self.own_seed)
        self.own_seed = bytearray()
        for shares in self.shares.values():
            shares.erase()
        self.shares = {}

    def encode(self) -> bytes:
        """The whole state, secrets included, for a file that only this participant can read."""
        writer = Writer(_LABEL).number(self.index).text(self.phase)
        writer.number(int(self.invitation is not None))
        if self.invitation is not None and self.entry is not None:
            self.invitation.write(writer)
            self.entry.write(writer)
        for pair in (self.enc, self.mask):
            writer.data(pair.secret() if pair is not None else b"")
        writer.data(self.own_seed)
        entries = [] if self.cohort is None else list(self.cohort.entries.values())
        writer.number(len(entries))
        for entry in entries:
            entry.write(writer)
        writer.numbers(self.masking).data(self.ctx2).number(len(self.shares))
        for dealer, shares in self.shares.items():
            writer.number(dealer).data(shares.encode())
        writer.number(len(self.answers))
        for step, (digest, answer, vector) in self.answers.items():
            writer.text(step).data(digest).data(answer).data(vector)
        return writer.finish()

    @classmethod
    def decode(cls, data: bytes) -> ClientState:
        """The reverse of `encode`.

        Raises:
            StorageError: these are not the bytes of a state.
        """
        try:
            state = cls._read(Reader(data, _LABEL))
        except ProtocolError:
            state = None
        if state is None or state.encode() != data:
            raise StorageError("the session of a secure sum is damaged")
        return state

    @classmethod
    def _read(cls, reader: Reader) -> ClientState:
        state = cls(reader.number(), reader.text())
        if state.phase not in PHASES:
            raise ProtocolError("encoding", "unknown phase")
        invited = reader.number()
        if invited not in (0, 1):
            raise ProtocolError("encoding", "a flag is neither 0 nor 1")
        if invited:
            state.invitation, state.entry = Invitation.read(reader), Entry.read(reader)
        state.enc, state.mask = _read_pair(reader), _read_pair(reader)
        state.own_seed = bytearray(_read_optional(reader, KEY_BYTES))
        entries = tuple(Entry.read(reader) for _ in range(reader.number()))
        if entries and state.invitation is not None:
            state.cohort = cohort_of(state.invitation, entries)
        state.masking = reader.numbers()
        state.ctx2 = _read_optional(reader, HASH_BYTES)
        for _ in range(reader.number()):
            dealer = reader.number()
            state.shares[dealer] = Shares.decode(reader.data())
        for _ in range(reader.number()):
            step = reader.text()
            state.answers[step] = reader.data(HASH_BYTES), reader.data(), reader.data()
        reader.end()
        return state


def _read_pair(reader: Reader) -> KeyPair | None:
    secret = _read_optional(reader, SECRET_KEY_BYTES)
    return KeyPair(secret) if secret else None


def _read_optional(reader: Reader, size: int) -> bytes:
    """A field that is empty or has `size` bytes."""
    value = reader.data()
    if len(value) not in (0, size):
        raise ProtocolError("encoding", f"a field has neither 0 nor {size} bytes")
    return value
