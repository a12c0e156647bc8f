from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.secagg.prg import add_mask, keystream

KEY = bytes(range(32))
BLOCK_WORDS = 1 << 16


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


def test_threads_do_not_share_scratch_memory():
    def mask(i):
        acc = np.zeros(300_000, dtype=np.uint32)
        add_mask(acc, bytes([i]) * 32, 1)
        return acc

    with ThreadPoolExecutor(4) as pool:
        for i, acc in enumerate(pool.map(mask, range(8))):
            assert np.array_equal(acc, keystream(bytes([i]) * 32, 1_200_000).view("<u4"))


def test_what_is_no_key_and_no_vector_is_an_error():
    words = np.zeros(4, dtype=np.uint32)
    for key in (b"", bytes(16), bytes(31), bytes(33)):
        with pytest.raises(ValueError, match="32 bytes"):
            keystream(key, 4)
    for acc, sign in ((words.view(np.int32), 1), (words.reshape(2, 2), 1), (words, 2), (words, 0)):
        with pytest.raises(ValueError, match="uint32"):
            add_mask(acc, KEY, sign)
