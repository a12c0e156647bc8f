"""Pseudo-random streams: AES-256 in counter mode, from block 0, under a zero nonce.

A key makes one stream and serves one purpose, so the nonce carries nothing (NIST SP 800-38A, section 6.5).
"""

from __future__ import annotations

import threading
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from tacit.update import Words

KEY_BYTES: Final = 32

_BLOCK_BYTES: Final = 1 << 18  # a block and its sum stay in the cache; 128 kB to 512 kB are about as fast
_ZEROS: Final = memoryview(bytes(_BLOCK_BYTES))
_scratch = threading.local()


def keystream(key: bytes | bytearray, num_bytes: int) -> NDArray[np.uint8]:
    """The first `num_bytes` of the AES-256-CTR stream of `key`.

    Args:
        key: 32 bytes.
        num_bytes: length, 0 or more.

    Returns:
        Shape (num_bytes,), a fresh array.
    """
    cipher = _cipher(key)
    stream = np.empty(num_bytes, dtype=np.uint8)
    for start in range(0, num_bytes, _BLOCK_BYTES):
        part = stream[start : start + _BLOCK_BYTES]
        cipher.update_into(_ZEROS[: part.size], part.data)
    return stream


def add_mask(acc: Words, seed: bytes | bytearray, sign: int) -> None:
    """Adds (`sign` = 1) or subtracts (-1) the words of one mask, in place, modulo 2^32.

    The mask is the stream of `seed` read as little-endian 32-bit words. It is made a block at a time in a
    buffer that the thread keeps and wipes, so a mask costs no memory.

    Args:
        acc: shape (length,), contiguous; changed in place.
        seed: 32 bytes that make this one mask.
        sign: 1 or -1.
    """
    if sign not in (1, -1) or acc.dtype != np.uint32 or acc.ndim != 1:
        raise ValueError("a mask is added to or subtracted from one vector of uint32")
    combine = np.add if sign == 1 else np.subtract
    cipher = _cipher(seed)
    buffer = _buffer()
    words = buffer.view("<u4")
    for start in range(0, acc.size, words.size):
        part = acc[start : start + words.size]
        used = 4 * part.size
        cipher.update_into(_ZEROS[:used], buffer[:used].data)
        combine(part, words[: part.size], out=part)
    buffer[: min(4 * acc.size, _BLOCK_BYTES)] = 0


def _cipher(key: bytes | bytearray) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of a stream has {KEY_BYTES} bytes")
    return Cipher(algorithms.AES(key), modes.CTR(bytes(16))).encryptor()


def _buffer() -> NDArray[np.uint8]:
    """This thread's block of scratch memory."""
    if not hasattr(_scratch, "block"):
        _scratch.block = np.empty(_BLOCK_BYTES, dtype=np.uint8)
    block: NDArray[np.uint8] = _scratch.block
    return block
