"""Randomness: one AES-256-CTR stream per key, and where keys come from.

NumPy's, torch's and `random`'s generators never make noise that is claimed private: a user's seed fixes them
and their state can be reconstructed from their output. Everything here is a function of a 32-byte key.

Guarantees:
    No seed of NumPy, torch or `random` changes a stream.
    A stream made before a fork refuses to be used after it, so that two processes never draw the same noise.
    Normals are the sum of four independent draws divided by two, the mitigation of Holohan and Braghin
    ("Secure random sampling in differential privacy", ESORICS 2021) that Opacus' secure mode uses: one
    floating-point draw leaves gaps that betray the value under it; four make the search for them infeasible,
    not impossible.
"""

from __future__ import annotations

import math
import os
from dataclasses import dataclass
from typing import Final, NoReturn, Protocol

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from numpy.typing import NDArray

KEY_BYTES: Final = 32
NONCE_BYTES: Final = 12

_MOST_BYTES: Final = 1 << 36  # of one nonce: the counter of 32 bits must not run into another's blocks
_ZEROS: Final = memoryview(bytes(1 << 18))


class Stream:
    """A sequence of random numbers, each used once.

    Args:
        key: 32 bytes that serve this stream, and no other with the same nonce.
        nonce: 12 bytes, where streams share a key (`tacit.privacy.streams`).
    """

    def __init__(self, key: bytes, nonce: bytes = bytes(NONCE_BYTES)) -> None:
        if len(key) != KEY_BYTES or len(nonce) != NONCE_BYTES:
            raise ValueError(f"a stream needs a key of {KEY_BYTES} bytes and a nonce of {NONCE_BYTES}")
        self._cipher = Cipher(algorithms.AES(key), modes.CTR(nonce + bytes(4))).encryptor()
        self._process, self._left = os.getpid(), _MOST_BYTES

    def __repr__(self) -> str:
        return "<Stream: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a Stream is not copied: two copies would draw the same noise")

    def bytes(self, n: int) -> bytes:
        """The next `n` bytes of the key's AES-256-CTR stream (nonce, then the counter from block 0)."""
        return self._draw(n).tobytes()

    def uniform(self, shape: int | tuple[int, ...]) -> NDArray[np.float64]:
        """Multiples of 2**-53 in [0, 1), eight bytes each, shape `shape`."""
        return in_unit_interval(self.words(_size(shape))).reshape(shape)

    def bernoulli(self, n: int, q: float) -> NDArray[np.bool_]:
        """Independent draws that are true with probability floor(q * 2**64) / 2**64, never above `q`.

        Args:
            n: number of draws.
            q: probability; 1 is always true.

        Returns:
            Shape (n,). Eight bytes of the stream are used for each, whatever `q` is.
        """
        return below(self.words(n), q)

    def gaussian(self, shape: int | tuple[int, ...], std: float) -> NDArray[np.float64]:
        """Normals of mean 0, shape `shape`, each the sum of four independent draws divided by two.

        Args:
            shape: shape of the result.
            std: standard deviation; 0 gives zeros and uses nothing of the stream.

        Returns:
            Finite values: no draw is above 8.6 standard deviations, the sum of four none above 17.2.
        """
        from tacit.privacy.normals import gaussians

        return gaussians([self], _size(shape), std).reshape(shape)

    def rounding(self, values: NDArray[np.float64]) -> NDArray[np.int64]:
        """Each value rounded up or down at random so that its expectation is the value. Same shape.

        Raises:
            ValueError: a value is not finite, or of 2**53 or more (it has no fraction left to round).
        """
        if not np.all(np.abs(values) < 2.0**53):
            raise ValueError("only finite values below 2**53 are rounded")
        floor = np.floor(values)
        return floor.astype(np.int64) + (self.uniform(values.shape) < values - floor)

    def words(self, n: int) -> NDArray[np.uint64]:
        """The next `8 n` bytes as little-endian 64-bit words, shape (n,)."""
        return self._draw(8 * n).view("<u8")

    def fill(self, out: NDArray[np.uint64]) -> None:
        """Writes the next `8 n` bytes over a contiguous array of n words; see `words`."""
        self._fill(out.reshape(-1).view(np.uint8))

    def _draw(self, n: int) -> NDArray[np.uint8]:
        out = np.empty(n, dtype=np.uint8)
        self._fill(out)
        return out

    def _fill(self, out: NDArray[np.uint8]) -> None:
        if os.getpid() != self._process:
            raise RuntimeError(
                "this stream was made before a fork; make one from a fresh key in this process"
            )
        self._left -= len(out)
        if self._left < 0:
            raise RuntimeError("this stream is used up")
        for start in range(0, len(out), len(_ZEROS)):
            part = out[start : start + len(_ZEROS)]
            self._cipher.update_into(_ZEROS[: part.size], part.data)


class Keys(Protocol):
    """A source of 32-byte keys. A key is for one purpose and one index, and makes one stream."""

    def key(self, purpose: str, *index: int | str) -> bytes:
        """The key for `purpose`, say "noise", at `index`, say (round, step)."""
        ...


@dataclass(frozen=True)
class SystemKeys:
    """Keys of the operating system, fresh each time: what private noise and Poisson draws are made of."""

    def key(self, purpose: str, *index: int | str) -> bytes:
        """32 new bytes; purpose and index say what for and change nothing."""
        return os.urandom(KEY_BYTES)


@dataclass(frozen=True)
class SeededKeys:
    """Keys derived from a seed (HKDF-SHA256, RFC 5869): data, splits, rounding, and noise in tests.

    Noise from these keys is NOT PRIVATE: whoever knows the seed can subtract it.

    Attributes:
        seed: any integer.
    """

    seed: int

    def key(self, purpose: str, *index: int | str) -> bytes:
        """The same 32 bytes for the same seed, purpose and index; others for any other."""
        info = b"".join(_field(part) for part in ("tacit/keys/1", purpose, *index))
        return HKDF(SHA256(), KEY_BYTES, salt=None, info=info).derive(_field(self.seed))


def below(words: NDArray[np.uint64], q: float) -> NDArray[np.bool_]:
    """`Stream.bernoulli` of words that were read already, same shape.

    Raises:
        ValueError: `q` is no probability.
    """
    if not 0 <= q <= 1:
        raise ValueError(f"a probability is within [0, 1], not {q}")
    if q == 1:
        return np.ones(words.shape, dtype=np.bool_)
    return words < np.uint64(int(math.ldexp(q, 64)))  # ldexp only moves the exponent: exact


def in_unit_interval(words: NDArray[np.uint64]) -> NDArray[np.float64]:
    """`Stream.uniform` of words that were read already, same shape; writes over them."""
    words >>= np.uint64(11)
    values = words.astype(np.float64)
    values *= 2.0**-53
    return values


def _field(value: int | str) -> bytes:
    """Type, length and text of one field, so that no two sequences of fields have the same bytes."""
    kind, text = (b"s", value.encode()) if isinstance(value, str) else (b"i", f"{value:d}".encode())
    return kind + len(text).to_bytes(4, "big") + text


def _size(shape: int | tuple[int, ...]) -> int:
    return shape if isinstance(shape, int) else math.prod(shape)
