"""The streams of a cohort's members: one key for a purpose and a round, and in it a place of its own for each member.

A derived key is dear next to the few numbers that a small client reads of it, so members share the key and differ in
the nonce of AES-CTR: the first 96 bits of SHA-256 of the label. Where all members are simulated in one process, their
words are then one encryption of many counter blocks, and each gets the very words that its own stream gives alone.

Keys of the operating system are fresh each time, so nobody can ask for the same numbers twice: there one stream
serves all members, one after the other.

Guarantees:
    What a member reads is the same alone and among others, wherever keys are derived from a seed.
    No two members read the same part of a stream.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from numpy.typing import NDArray

from tacit.privacy.noise import NONCE_BYTES, Keys, Stream, SystemKeys

_BLOCK_BYTES = 16


def stream_of(keys: Keys, purpose: str, member: str, *index: int | str) -> Stream:
    """The stream of one member for `purpose` at `index`, say (round,)."""
    if isinstance(keys, SystemKeys):
        return Stream(keys.key(purpose, *index))
    return Stream(keys.key(purpose, *index), nonce_of(member))


@dataclass(frozen=True)
class Portions:
    """How many words each of some members reads from the beginning of its stream.

    Attributes:
        members: their labels, all different.
        counts: shape (members,).
    """

    members: tuple[str, ...]
    counts: NDArray[np.int64]

    @classmethod
    def even(cls, members: tuple[str, ...], count: int) -> Portions:
        """The same number of words for each."""
        return cls(members, np.full(len(members), count, dtype=np.int64))

    @property
    def total(self) -> int:
        """Words of all members together."""
        return int(self.counts.sum())

    def read(self, keys: Keys, purpose: str, *index: int | str) -> NDArray[np.uint64]:
        """The words of all members, one member after the other: shape (total,)."""
        if isinstance(keys, SystemKeys):
            return Stream(keys.key(purpose, *index)).words(self.total)
        cipher = Cipher(algorithms.AES(keys.key(purpose, *index)), modes.ECB()).encryptor()  # noqa: S305 - CTR by hand
        blocks = self._blocks
        out = np.empty(blocks.size + _BLOCK_BYTES - 1, dtype=np.uint8)
        cipher.update_into(blocks.data, out.data)
        words = out[: blocks.size].view("<u8")
        return words if self._kept is None else words[self._kept]

    @cached_property
    def _blocks(self) -> NDArray[np.uint8]:
        """The counter blocks of all members: nonce, then 32 bits that count from 0, shape (bytes,)."""
        nonces = np.frombuffer(b"".join(map(nonce_of, self.members)), dtype="<u4").reshape(-1, 3)
        lengths = (self.counts + 1) // 2
        blocks = np.empty((int(lengths.sum()), 4), dtype="<u4")
        blocks[:, :3] = np.repeat(nonces, lengths, axis=0)
        starts = np.repeat(np.cumsum(lengths) - lengths, lengths)
        blocks[:, 3] = (np.arange(len(blocks)) - starts).astype(">u4").view("<u4")
        return blocks.view(np.uint8).ravel()

    @cached_property
    def _kept(self) -> NDArray[np.int64] | None:
        """Which words of the blocks are read; None where it is all of them."""
        if not (self.counts % 2).any():
            return None
        odd = np.flatnonzero(self.counts % 2)
        unread = np.cumsum((self.counts + 1) // 2 * 2)[odd] - 1
        return np.delete(np.arange(unread[-1] + 1 + int(self.counts[odd[-1] + 1 :].sum())), unread)


class Normals:
    """Normal noise for some members at once, each from a stream of its own.

    Args:
        keys: where the streams' keys come from.
        purpose: of the noise.
        members: labels.
        index: of the noise, say (round,).
    """

    def __init__(self, keys: Keys, purpose: str, members: Sequence[str], *index: int | str) -> None:
        self._num_members = len(members)
        secret = isinstance(keys, SystemKeys)
        labels = members[:1] if secret else members
        self._streams = [stream_of(keys, purpose, label, *index) for label in labels]

    def draw(self, size: int, std: float) -> NDArray[np.float64]:
        """The next `size` normals of each member, shape (members, size); see `Stream.gaussian`."""
        from tacit.privacy.normals import gaussians  # which loads torch

        if len(self._streams) == self._num_members:
            return gaussians(self._streams, size, std)
        return self._streams[0].gaussian((self._num_members, size), std)


@lru_cache(maxsize=1 << 15)
def nonce_of(member: str) -> bytes:
    """A member's own 96 bits: two of a million labels share them with a probability below 2**-57."""
    return hashlib.sha256(member.encode()).digest()[:NONCE_BYTES]
