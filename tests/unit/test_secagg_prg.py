import hashlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.secagg import prg
from tacit.secagg.prg import add_mask, add_masks, keystream

KEY = bytes(range(32))
BLOCK_WORDS = 1 << 15


def test_the_first_block_of_the_zero_key_is_the_published_one():
    # AES-256 of the zero block under the zero key (NIST AESAVS known answer: key 0, plaintext 0).
    assert keystream(bytes(32), 16).tobytes().hex() == "dc95c078a2408989ad48a21492842087"


def test_block_i_is_the_encrypted_number_i():
    cipher = Cipher(algorithms.AES(KEY), modes.ECB()).encryptor()
    expected = b"".join(cipher.update(i.to_bytes(16, "big")) for i in range(300))
    assert keystream(KEY, 4790).tobytes() == expected[:4790]


@pytest.mark.parametrize("length", [0, 1, 7, BLOCK_WORDS - 1, BLOCK_WORDS, BLOCK_WORDS + 1, 200_003])
@pytest.mark.parametrize("sign", [1, -1])
def test_a_mask_is_the_stream_as_little_endian_words(length, sign):
    start = np.arange(length, dtype=np.uint32) * np.uint32(2654435761)
    acc = start.copy()
    add_mask(acc, KEY, sign)
    words = keystream(KEY, 4 * length).view("<u4").astype(np.int64)
    assert np.array_equal(acc, ((start.astype(np.int64) + sign * words) % 2**32).astype(np.uint32))
    add_mask(acc, KEY, -sign)
    assert np.array_equal(acc, start)


def test_A14_every_byte_of_the_seed_counts():
    streams = {keystream(KEY, 16).tobytes()}
    for i in range(32):
        changed = bytearray(KEY)
        changed[i] ^= 1
        streams.add(keystream(changed, 16).tobytes())
        acc = np.zeros(4, dtype=np.uint32)
        add_mask(acc, changed, 1)
        streams.add(acc.astype("<u4").tobytes())
    assert len(streams) == 33


def masks_of(count):
    return [(hashlib.sha256(i.to_bytes(2)).digest(), 1 if i % 3 else -1) for i in range(count)]


def sum_of(masks, length):
    """The masks beside each other, in integers that cannot wrap around."""
    total = np.zeros(length, dtype=np.int64)
    for seed, sign in masks:
        total += sign * keystream(seed, 4 * length).view("<u4").astype(np.int64)
    return (total % 2**32).astype(np.uint32)


@pytest.mark.parametrize("threads", [0, 1, 2, 3, 5, 16])
@pytest.mark.parametrize(
    "length",
    [0, 1, 5, BLOCK_WORDS, BLOCK_WORDS + 1, 2 * BLOCK_WORDS - 3, 3 * BLOCK_WORDS, 5 * BLOCK_WORDS + 7],
)
def test_a_sum_of_masks_is_the_same_for_any_number_of_threads(length, threads):
    masks, start = masks_of(7), np.arange(length, dtype=np.uint32)
    acc = start.copy()
    add_masks(acc, masks, threads)
    assert np.array_equal(acc, start + sum_of(masks, length))


@pytest.mark.parametrize("count", [0, 1, 127, 128, 129, 300])
def test_A14_none_of_many_masks_is_left_out(count):
    acc = np.zeros(33, dtype=np.uint32)
    add_masks(acc, masks_of(count))
    assert np.array_equal(acc, sum_of(masks_of(count), 33))


def test_masks_that_cancel_leave_the_vector_as_it_was():
    masks, start = masks_of(5), np.arange(2 * BLOCK_WORDS, dtype=np.uint32)
    acc = start.copy()
    add_masks(acc, masks + [(seed, -sign) for seed, sign in reversed(masks)], threads=2)
    assert np.array_equal(acc, start)


def test_callers_in_several_threads_do_not_disturb_each_other():
    def mask(i):
        acc = np.zeros(300_000, dtype=np.uint32)
        add_masks(acc, [(bytes([i]) * 32, 1)], threads=2)
        return acc

    with ThreadPoolExecutor(4) as pool:
        for i, acc in enumerate(pool.map(mask, range(8))):
            assert np.array_equal(acc, keystream(bytes([i]) * 32, 1_200_000).view("<u4"))


@pytest.mark.parametrize("threads", [1, 2])
def test_no_mask_is_left_in_memory(threads, monkeypatch):
    buffers, empty = [], np.empty

    def kept(*arguments, **named):
        buffers.append(empty(*arguments, **named))
        return buffers[-1]

    def spoilt(*arguments, **named):
        raise KeyboardInterrupt

    acc = np.zeros(2 * BLOCK_WORDS, dtype=np.uint32)
    monkeypatch.setattr(prg.np, "empty", kept)
    add_masks(acc, masks_of(2), threads)
    assert acc.any()
    monkeypatch.setattr(prg.np, "subtract", spoilt)  # also when it is interrupted
    with pytest.raises(KeyboardInterrupt):
        add_masks(acc, masks_of(2), threads)
    assert len(buffers) == 2 * threads
    assert not any(buffer.any() for buffer in buffers)


def test_what_is_no_key_and_no_vector_is_an_error():
    words = np.zeros(4, dtype=np.uint32)
    for key in (b"", bytes(16), bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            keystream(key, 4)
        with pytest.raises(ValueError, match="32 bytes"):
            add_masks(words, [(KEY, 1)] * 200 + [(key, 1)])
    for acc, sign in ((words.view(np.int32), 1), (words.reshape(2, 2), 1), (words, 2), (words, 0)):
        with pytest.raises(ValueError, match="uint32"):
            add_mask(acc, KEY, sign)
        with pytest.raises(ValueError, match="uint32"):
            add_masks(acc, [(KEY, 1), (KEY, sign)])
    assert not words.any()
