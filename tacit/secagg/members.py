"""Who takes part: a member as the roster knows it, and what it answers to an invitation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

from tacit.errors import ProtocolError
from tacit.population import Nodes
from tacit.secagg.encoding import HASH_BYTES, Reader, Writer
from tacit.secagg.keys import PUBLIC_KEY_BYTES

SERVER: Final = 2**32 - 1  # the sender of a request; members have smaller indices
NONCE_BYTES: Final = 32

_MAX_LABEL_BYTES: Final = 1024


@dataclass(frozen=True, order=True)
class Member:
    """One member of the federation.

    Attributes:
        index: position in the roster, from 0.
        label: its name there.
        key: its Ed25519 identity key, 32 bytes, as enrolled; see `tacit.secagg.identity`.
    """

    index: int
    label: str
    key: bytes

    def __post_init__(self) -> None:
        if not 0 <= self.index < SERVER:
            raise ProtocolError("member", "a roster index has 32 bits")
        try:
            size = len(self.label.encode("utf-8"))
        except UnicodeEncodeError:
            size = 0
        if not 1 <= size <= _MAX_LABEL_BYTES:
            raise ProtocolError("member", f"a label has 1 to {_MAX_LABEL_BYTES} bytes of UTF-8")


class Unenrolled(Mapping[int, Member]):
    """The members of a population by node, each made when it is asked for; they have no keys.

    Args:
        nodes: of the population.
    """

    def __init__(self, nodes: Nodes) -> None:
        self._nodes = nodes

    def __len__(self) -> int:
        return len(self._nodes)

    def __iter__(self) -> Iterator[int]:
        return iter(range(self._nodes.first, self._nodes.first + len(self._nodes)))

    def __getitem__(self, node: int) -> Member:
        index = node - self._nodes.first
        if not 0 <= index < len(self._nodes):
            raise KeyError(node)
        return Member(index, self._nodes.labels[index], b"")


@dataclass(frozen=True)
class Entry:
    """A client's part of U1.

    Attributes:
        index: its roster index.
        enc_pk: X25519 key that shares are sealed to, 32 bytes.
        mask_pk: X25519 key that pairwise masks come from, 32 bytes.
        nonce: 32 bytes drawn for this attempt.
        counter: how many attempts this member has answered in this federation.
        site_head: head of the member's own journal, 32 bytes.
    """

    index: int
    enc_pk: bytes
    mask_pk: bytes
    nonce: bytes
    counter: int
    site_head: bytes

    def write(self, writer: Writer) -> None:
        """All fields, in order."""
        writer.number(self.index)
        writer.data(self.enc_pk).data(self.mask_pk).data(self.nonce)
        writer.number(self.counter).data(self.site_head)

    @classmethod
    def read(cls, reader: Reader) -> Entry:
        """The reverse of `write`."""
        return cls(
            reader.number(),
            reader.data(PUBLIC_KEY_BYTES),
            reader.data(PUBLIC_KEY_BYTES),
            reader.data(NONCE_BYTES),
            reader.number(),
            reader.data(HASH_BYTES),
        )


def check_increasing(indices: Sequence[int]) -> None:
    """Refuses a set that is not in its one order, or has a member twice.

    Raises:
        ProtocolError: with the reason "order".
    """
    if any(low >= high for low, high in pairwise(indices)):
        raise ProtocolError("order", "members are not in increasing order")


def check_distinct(entries: Sequence[Entry]) -> None:
    """Refuses two entries that share an index, a nonce or a key; one key for both uses is refused too.

    Raises:
        ProtocolError: with the reason "duplicate".
    """
    keys = [key for entry in entries for key in (entry.enc_pk, entry.mask_pk)]
    columns = [entry.index for entry in entries], [entry.nonce for entry in entries], keys
    if any(len(set(column)) != len(column) for column in columns):
        raise ProtocolError("duplicate", "two entries share an index, a nonce or a key")
