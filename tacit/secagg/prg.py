"""Pseudo-random streams: AES-256 in counter mode, from block 0, under a zero nonce.

A key makes one stream and serves one purpose, so the nonce carries nothing (NIST SP 800-38A, section 6.5).
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, CipherContext, algorithms, modes
from numpy.typing import NDArray

from tacit.update import Words

KEY_BYTES: Final = 32

_BLOCK_BYTES: Final = 1 << 17  # a block and its sum stay in the cache; 64 kB to 512 kB are about as fast
_BLOCK_WORDS: Final = _BLOCK_BYTES // 4
_BATCH: Final = 128  # streams that are open at once
_ZEROS: Final = memoryview(bytes(_BLOCK_BYTES))


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
    """Adds (`sign` = 1) or subtracts (-1) the words of one mask, in place, modulo 2^32: see `add_masks`."""
    add_masks(acc, [(seed, sign)])


def add_masks(acc: Words, masks: Sequence[tuple[bytes | bytearray, int]], threads: int = 1) -> None:
    """Adds masks to a vector, in place, modulo 2^32.

    A mask is the stream of its seed read as little-endian 32-bit words. It is made a block at a time, in a buffer
    that is wiped, so masks cost no memory. Each thread has a part of the vector and starts the streams there, which
    counter mode allows; nothing is shared, and the sum is the same whatever their number.

    Args:
        acc: shape (length,); changed in place, and left as it is when a mask is refused.
        masks: 32 bytes that make this one mask, and 1 to add it or -1 to subtract it.
        threads: how many may work at once; fewer do where the vector has fewer blocks.

    Raises:
        ValueError: this is no such vector, seed or sign.
    """
    if acc.dtype != np.uint32 or acc.ndim != 1 or any(sign not in (1, -1) for _, sign in masks):
        raise ValueError("a mask is added to or subtracted from one vector of uint32")
    if any(len(seed) != KEY_BYTES for seed, _ in masks):
        raise ValueError(f"the key of a stream has {KEY_BYTES} bytes")
    num_blocks = -(-acc.size // _BLOCK_WORDS)
    step = -(-num_blocks // max(1, threads)) * _BLOCK_WORDS
    starts = range(0, acc.size, max(1, step))
    if len(starts) <= 1:
        _add_part(acc, 0, masks)
        return
    with ThreadPoolExecutor(len(starts)) as pool:
        parts = [pool.submit(_add_part, acc[start : start + step], start, masks) for start in starts]
    for part in parts:
        part.result()


def _add_part(part: Words, start: int, masks: Sequence[tuple[bytes | bytearray, int]]) -> None:
    """Adds masks to the words from `start` on. A block stays in the cache until all masks of a batch are in it."""
    buffer = np.empty(min(_BLOCK_BYTES, 4 * part.size), dtype=np.uint8)
    first = start * 4 // 16  # the block of AES that makes this word
    try:
        for batch in range(0, len(masks), _BATCH):
            streams = [
                (_cipher(seed, first), np.add if sign == 1 else np.subtract)
                for seed, sign in masks[batch : batch + _BATCH]
            ]
            for at in range(0, part.size, _BLOCK_WORDS):
                block = part[at : at + _BLOCK_WORDS]
                stream = buffer[: 4 * block.size]
                zeros, out, words = _ZEROS[: stream.size], stream.data, stream.view("<u4")
                for cipher, combine in streams:
                    cipher.update_into(zeros, out)
                    combine(block, words, out=block)
    finally:
        buffer[:] = 0


def _cipher(key: bytes | bytearray, first_block: int = 0) -> CipherContext:
    if len(key) != KEY_BYTES:
        raise ValueError(f"the key of a stream has {KEY_BYTES} bytes")
    return Cipher(algorithms.AES(key), modes.CTR(first_block.to_bytes(16))).encryptor()
