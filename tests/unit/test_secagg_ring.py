from math import sqrt

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg import ring
from tacit.secagg.packed_sum import PackedSum
from tests.reference import messages

C_INT = 1 << 16


def draw(d, seed=0):
    return np.random.default_rng(seed).random(d)


def encode(values, clip=1.0, c_int=C_INT, uniforms=None):
    values = np.asarray(values, dtype=np.float64)
    return ring.encode(
        values, clip=clip, c_int=c_int, uniforms=draw(values.size) if uniforms is None else uniforms
    )


VECTORS = {
    "zero": np.zeros(10),
    "empty": np.zeros(0),
    "one coordinate at the clip": [1.0],
    "one coordinate beyond it": [-7.0],
    "1e38": np.full(100, 1e38),
    "largest double": np.full(100, np.finfo(float).max),
    "denormal": np.full(100, 5e-324),
    "equal, norm at the clip": np.full(10_000, 0.01),
    "one spike in noise": np.r_[1e6, draw(999)],
    "not contiguous": draw(200)[::2],
    "from float32": draw(50).astype(np.float32),
    "from float16": draw(50).astype(np.float16),
    "many coordinates": draw(100_000) - 0.5,
}


@pytest.mark.parametrize("c_int", [256, 4096, C_INT, 1 << 24])
@pytest.mark.parametrize("name", VECTORS)
def test_I5_the_norm_stays_within_c_int_in_every_outcome(name, c_int):
    values = np.asarray(VECTORS[name], dtype=np.float64)
    for uniforms in (np.zeros(values.size), np.full(values.size, 1 - 2**-53), draw(values.size)):
        integers, _ = encode(values, c_int=c_int, uniforms=uniforms)
        assert sum(int(z) ** 2 for z in integers) <= c_int**2


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_C4_a_number_that_is_not_finite_is_refused(bad):
    for values in ([bad], [0.0] * 5 + [bad]):
        with pytest.raises(Refused) as error:
            encode(values)
        assert error.value.reason == "not-finite"


def test_decoding_undoes_encoding_to_one_unit():
    values = draw(1000) - 0.5
    values *= 0.9 / np.linalg.norm(values)
    integers, clipped = encode(values)
    back = ring.decode(integers, 1.0, C_INT, 1000)
    assert not clipped
    assert np.abs(back - values).max() < 1 / ring.units_per_one(1.0, C_INT, 1000)


def test_a_long_vector_is_cut_at_the_clip_and_keeps_its_direction():
    values = draw(400) - 0.5
    integers, clipped = encode(values * 1e9, clip=2.0)
    back = ring.decode(integers, 2.0, C_INT, 400)
    assert clipped
    assert np.linalg.norm(back) == pytest.approx(2.0, rel=1e-3)
    assert back @ values / np.linalg.norm(back) / np.linalg.norm(values) > 0.9999


def test_rounding_is_unbiased():
    value, trials = 0.3, 200_000
    values = np.full(4, value)  # norm 0.6
    scaled = value * ring.units_per_one(1.0, C_INT, 4)
    rounded = np.concatenate([encode(values, uniforms=draw(4, seed))[0] for seed in range(trials // 4)])
    assert set(np.unique(rounded)) == {int(scaled), int(scaled) + 1}
    assert abs(rounded.mean() - scaled) < 5 * 0.5 / sqrt(trials)


def test_a_coarse_grid_rounds_toward_zero():
    d = 10_000  # 16 sqrt(d) = 1600 > 1024
    values = np.where(draw(d) < 0.5, -0.0099, 0.0099)
    integers, _ = encode(values, c_int=1024, uniforms=np.zeros(d))
    assert np.array_equal(integers, np.trunc(values * ring.units_per_one(1.0, 1024, d)))
    assert np.abs(integers).max() == 10


def test_each_coordinate_needs_its_own_uniform_number():
    with pytest.raises(ValueError, match="uniform"):
        encode([0.5, 0.5], uniforms=np.zeros(1))


@pytest.mark.parametrize(
    "values", [[], [0], [3, -4], [2**31] * 100, [-(2**31)] * 5, [2**40, -(2**40)], [1] * 70_000]
)
def test_the_squared_norm_is_exact(values):
    assert ring.squared_norm(np.array(values, dtype=np.int64)) == sum(z * z for z in values)


def test_the_squared_norm_is_exact_over_many_blocks():
    values = np.random.default_rng(1).integers(-(2**24), 2**24, 300_000)
    assert ring.squared_norm(values) == sum(z * z for z in values.tolist())


# n, D, c, z at C_int = 2^16: the table of the design.
@pytest.mark.parametrize(
    ("n", "dropouts", "corrupt", "noise", "bits"),
    [
        (100, 20, 10, 0.0, 24),
        (100, 20, 10, 1.9, 24),
        (100, 20, 10, 6.0, 25),
        (100, 20, 10, 8.0, 25),
        (100, 20, 10, 14.0, 26),
        (3, 0, 1, 0.0, 19),
        (8, 0, 1, 0.0, 21),  # a power of two: n C_int must stay apart from -n C_int
        (16_000, 0, 1, 0.0, 31),
    ],
)
def test_the_width_of_a_word(n, dropouts, corrupt, noise, bits):
    assert ring.bits_for(n, dropouts, corrupt, C_INT, noise) == bits


def test_a_word_has_at_least_8_and_at_most_32_bits():
    assert ring.bits_for(3, 0, 1, 1, 0.0) == 8
    assert ring.bits_for(127, 0, 1, 1 << 24, 0.0) == 32
    for arguments in (
        (128, 0, 1, 1 << 24, 0.0),
        (3, 1, 2, 16, 0.0),
        (5, 0, 1, 16, np.nan),
        (5, 0, 1, 16, -1),
    ):
        with pytest.raises(ConfigError):
            ring.bits_for(*arguments)


@pytest.mark.parametrize("n", range(2, 131))
def test_A9_a_sum_at_the_bound_does_not_wrap(n):
    bits = ring.bits_for(n, 0, 1, C_INT, 0.0)
    for extreme in (C_INT, -C_INT):
        words = np.zeros(1, dtype=np.uint32)
        for _ in range(n):
            words += ring.to_words(np.array([extreme]))
        assert ring.centre(words, bits).tolist() == [n * extreme]


@pytest.mark.parametrize("bits", [8, 13, 24, 31, 32])
def test_centring_gives_the_integer_nearest_to_zero(bits):
    half = 2 ** (bits - 1)
    integers = np.array([0, 1, -1, half - 1, -half, 5 - half])
    words = ring.keep_low(ring.to_words(integers), bits)
    assert int(words.max()) < 2**bits
    assert np.array_equal(ring.centre(words, bits), integers)
    if bits < 32:  # bits above the word are no part of it
        assert np.array_equal(ring.centre(words | np.uint32(1 << bits), bits), integers)


@pytest.mark.parametrize("bits", range(8, 33))
def test_A11_packing_is_planes_of_16_8_and_single_bits(bits):
    for length in (0, 1, 2, 7, 8, 9, 31, 1001, 65_535, 65_536, 65_537, 140_003):
        words = np.random.default_rng(length).integers(0, 2**bits, length, dtype=np.uint32)
        data = ring.pack(words, bits)
        assert len(data) == ring.packed_size(length, bits) <= length * bits / 8 + 7
        assert np.array_equal(ring.unpack(data, bits, length), words)
        if length <= 1001:
            assert data == planes_by_hand(words.tolist(), bits)


@pytest.mark.parametrize("bits", [8, 13, 24, 25])
def test_A8_the_second_implementation_packs_more_than_one_block_alike(bits):
    words = np.random.default_rng(bits).integers(0, 2**bits, 65_536 + 13, dtype=np.uint32)
    data = ring.pack(words, bits)
    assert data == messages.pack(words.tolist(), bits)
    assert messages.unpack(data, words.size, bits) == words.tolist()


def planes_by_hand(words, bits):
    whole = 16 if bits >= 16 else 8
    data = b"".join((word % 2**whole).to_bytes(whole // 8, "little") for word in words)
    while bits - whole >= 8:
        data += bytes(word >> whole & 255 for word in words)
        whole += 8
    for bit in range(whole, bits):
        number = sum((word >> bit & 1) << i for i, word in enumerate(words))
        data += number.to_bytes(-(-len(words) // 8), "little")
    return data


@pytest.mark.parametrize(
    ("words", "bits", "hexadecimal"),
    [
        ([0x12, 0xFF], 8, "12ff"),
        ([0x312, 0x0FF], 10, "12ff0101"),
        ([0x1234, 0xABCD], 16, "3412cdab"),
        ([0x123456, 0xABCDEF], 24, "5634efcd12ab"),
        ([0x1123456, 0x0ABCDEF, 0x1000000], 25, "5634efcd000012ab0005"),
        ([0x12345678, 0xABCDEF01], 32, "785601ef34cd12ab"),
        ([256, 0, 0, 0, 0, 0, 0, 256, 256], 9, "00" * 9 + "8101"),
    ],
)
def test_A8_packed_words_written_by_hand(words, bits, hexadecimal):
    words = np.array(words, dtype=np.uint32)
    assert ring.pack(words, bits).hex() == hexadecimal
    assert np.array_equal(ring.unpack(bytes.fromhex(hexadecimal), bits, words.size), words)


@pytest.mark.parametrize("bits", range(8, 33))
@pytest.mark.parametrize("length", [0, 1, 13, 65_536, 131_073])
def test_packed_words_are_added_and_taken_back_modulo_2_to_the_b(bits, length):
    source, mask = np.random.default_rng(bits), np.uint32(2**bits - 1)
    total, expected = PackedSum(length, bits), np.zeros(length, dtype=np.uint32)
    for form in (bytes, bytearray, lambda data: memoryview(b"x" + data)[1:]):
        words = source.integers(0, 2**bits, length, dtype=np.uint32)
        words[::3] = mask  # carries through every plane
        data, seen = ring.pack(words, bits), []
        total.add(form(data), lambda part, seen=seen: seen.append(bytes(part)))
        expected = expected + words & mask
        assert np.array_equal(total.words(), expected)
        assert b"".join(seen) == data
    again = PackedSum(length, bits)
    again.restore(total.words())
    again.subtract(data)
    assert np.array_equal(again.words(), expected - words & mask)


def test_the_largest_words_of_1000_vectors_are_added():
    for bits in (8, 11, 16, 24, 27, 32):
        total, data = PackedSum(3, bits), ring.pack(np.full(3, 2**bits - 1, dtype=np.uint32), bits)
        for _ in range(1000):
            total.add(data)
        assert total.words().tolist() == [(2**bits - 1) * 1000 % 2**bits] * 3


def test_C3_a_refused_vector_leaves_the_sum_as_it_is():
    good = ring.pack(np.arange(9, dtype=np.uint32), 9)
    for data, bits in ((good[:-1], 9), (good + b"\0", 9), (good, 10), (good[:-1] + b"\x03", 9), (good, 33)):
        total = PackedSum(9, min(bits, 32))
        total.restore(np.arange(9, dtype=np.uint32))
        with pytest.raises(ProtocolError):
            total.add(data)
        assert np.array_equal(total.words(), np.arange(9))


def test_C3_every_unused_bit_of_every_plane_is_checked():
    for bits, length in ((9, 3), (15, 1), (23, 13), (31, 7)):
        data = ring.pack(np.zeros(length, dtype=np.uint32), bits)
        num_single, size = bits % 8, -(-length // 8)
        for plane in range(num_single):
            end = len(data) - plane * size - 1
            for bit in range(8):
                wrong = bytearray(data)
                wrong[end] = 1 << bit
                if bit < length % 8:
                    ring.unpack(bytes(wrong), bits, length)
                    continue
                with pytest.raises(ProtocolError) as error:
                    ring.unpack(bytes(wrong), bits, length)
                assert error.value.reason == "padding"


def test_a_word_that_does_not_fit_is_an_error():
    with pytest.raises(ValueError, match="does not fit"):
        ring.pack(np.array([256], dtype=np.uint32), 8)


@pytest.mark.parametrize(
    ("data", "bits", "length", "reason"),
    [
        (b"\0\0", 8, 1, "vector-size"),
        (b"", 8, 1, "vector-size"),
        (b"\0", 8, -1, "vector-size"),
        (b"\0", 9, 2**62, "vector-size"),
        (b"\0" * 7, 7, 8, "bits"),
        (b"\0" * 33, 33, 8, "bits"),
        (b"", 0, 0, "bits"),
        (b"\xff\x02", 9, 1, "padding"),
        (b"\xff\x80", 9, 1, "padding"),
        (b"\0" * (65_536 * 9 // 8) + b"\xff\x02", 9, 65_537, "padding"),
    ],
)
def test_C3_what_pack_cannot_have_made_is_refused(data, bits, length, reason):
    with pytest.raises(ProtocolError) as error:
        ring.unpack(data, bits, length)
    assert error.value.reason == reason
