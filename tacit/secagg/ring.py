"""Vectors as integers modulo 2^b: fixed-point encoding, packing for the wire, and the way back.

Encoding is the bounded stochastic rounding of a vector of known Euclidean norm; the ideas are those of
Kairouz, Liu and Steinke (ICML 2021, section 4.1), with a bound that holds in every outcome, so that no
draw has to be repeated.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import accumulate
from math import ceil, isfinite, sqrt
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.update import Integers, Words

MIN_BITS: Final = 8
MAX_BITS: Final = 32
_FLOAT_SLACK: Final = 1 - 2.0**-40  # keeps the rounding errors of float64 inside the integer bound
BLOCK: Final = 1 << 16  # words packed together: both sides of a block stay in the cache


def encode(
    values: NDArray[np.float64], *, clip: float, c_int: int, uniforms: NDArray[np.float64]
) -> tuple[Integers, bool]:
    """A real vector as integers of Euclidean norm at most `c_int`.

    The vector is cut at norm `clip`, scaled by (c_int - sqrt(d)) / clip and rounded up with probability equal
    to the fraction. Rounding moves each coordinate by less than 1, so the whole vector by less than sqrt(d).
    Where c_int < 16 sqrt(d) that margin would cost too much: there the scale is c_int / clip, rounded toward
    zero.

    Args:
        values: shape (d,).
        clip: largest norm, in the unit of `values`; above 0.
        c_int: the same norm in integer units.
        uniforms: shape (d,), in [0, 1), independent of `values`.

    Returns:
        The integers, shape (d,), and whether the vector was longer than `clip`.

    Raises:
        Refused: a value is not finite.

    Guarantees:
        sum(int(z)**2) <= c_int**2 in every outcome, tested exactly. Unbiased where it rounds stochastically.
    """
    cut, clipped = clip_norm(values, clip)
    return rounded(cut, clip=clip, c_int=c_int, uniforms=uniforms), clipped


def rounded(cut: NDArray[np.float64], *, clip: float, c_int: int, uniforms: NDArray[np.float64]) -> Integers:
    """The second half of `encode`, for a vector that is no longer than `clip` already."""
    if uniforms.shape != cut.shape:
        raise ValueError("one uniform number for each coordinate")
    scaled = cut * units_per_one(clip, c_int, cut.size)
    if rounds_to_zero(c_int, cut.size):
        integers = np.trunc(scaled).astype(np.int64)
    else:
        floor = np.floor(scaled)
        integers = floor.astype(np.int64) + (uniforms < scaled - floor)
    if squared_norm(integers) > c_int**2:
        raise AssertionError("an encoded vector is longer than its bound")
    return integers


def clip_norm(values: NDArray[np.float64], clip: float) -> tuple[NDArray[np.float64], bool]:
    """The vector itself, or scaled down to Euclidean norm `clip`, and whether it had to be.

    Raises:
        Refused: a value is not finite. Checked first, because every comparison with NaN would let it pass.
    """
    if not np.isfinite(values).all():
        raise Refused("not-finite", "the update has a value that is not a finite number")
    peak = float(np.abs(values).max(initial=0.0))
    if peak == 0.0:
        return values, False
    direction = values / peak  # squares of these neither overflow nor vanish
    length = float(np.linalg.norm(direction))
    if length * peak <= clip:
        return values, False
    return direction * (clip / length), True


def decode(total: Integers, clip: float, c_int: int, d: int) -> NDArray[np.float64]:
    """The real vector that a sum of encoded ones stands for.

    Args:
        total: shape (d,).
        d: length that the vectors were encoded with.
    """
    return total / units_per_one(clip, c_int, d)


def units_per_one(clip: float, c_int: int, d: int) -> float:
    """Integer units that stand for 1.0 in a vector of length `d`."""
    margin = 0.0 if rounds_to_zero(c_int, d) else sqrt(d)
    return (c_int - margin) / clip * _FLOAT_SLACK


def squared_norm(integers: Integers) -> int:
    """The exact sum of squares, shape (d,) to a Python int, whatever its size."""
    peak = max(int(integers.max(initial=0)), -int(integers.min(initial=0)))
    step = 2**62 // max(1, peak * peak)  # so many squares fit an int64
    if step < 64:
        return sum(value * value for value in integers.tolist())
    parts = (integers[start : start + step] for start in range(0, integers.size, step))
    return sum(int(np.dot(part, part)) for part in parts)


def sum_noise(n: int, max_dropouts: int, max_corrupt: int, c_int: int, noise_multiplier: float) -> float:
    """Standard deviation, in integer units, of all the noise in a sum of n vectors.

    Each client adds its share as if only n - D - c others did, so the full sum has more than sigma = z c_int.

    Raises:
        ConfigError: nobody is left to add noise, or z is not a finite number of 0 or more.
    """
    honest = n - max_dropouts - max_corrupt
    if honest < 1:
        raise ConfigError(f"{n} clients less {max_dropouts} drop-outs and {max_corrupt} corrupt leave none")
    if not (isfinite(noise_multiplier) and noise_multiplier >= 0):
        raise ConfigError("the noise multiplier must be a finite number of 0 or more")
    return noise_multiplier * c_int * sqrt(n / honest)


def bits_for(n: int, max_dropouts: int, max_corrupt: int, c_int: int, noise_multiplier: float) -> int:
    """The narrowest word, 8 to 32 bits, in which a sum of n vectors cannot wrap around.

    2^b > 2 (n c_int + 12 sigma_total): strictly, because a sum of exactly n c_int has to stay apart from its
    negative. Twelve standard deviations of noise are passed with a probability below 2^-107 per coordinate.

    Raises:
        ConfigError: it would take more than 32 bits.
    """
    noise = sum_noise(n, max_dropouts, max_corrupt, c_int, noise_multiplier)
    bits = max(MIN_BITS, (2 * (n * c_int + ceil(12 * noise))).bit_length())
    if bits > MAX_BITS:
        raise ConfigError(
            f"a sum over {n} clients needs words of {bits} bits, the most is {MAX_BITS}: "
            "lower secure_aggregation.precision_bits or the cohort"
        )
    return bits


def to_words(integers: Integers) -> Words:
    """Signed integers modulo 2^32, shape kept."""
    return (integers & 0xFFFFFFFF).astype(np.uint32)


def keep_low(words: Words, bits: int) -> Words:
    """The words modulo 2^bits, in place."""
    np.bitwise_and(words, np.uint32(2**bits - 1), out=words)
    return words


def centre(words: Words, bits: int) -> Integers:
    """Residues modulo 2^bits as the signed integers nearest to zero: -2^(bits-1) to 2^(bits-1) - 1."""
    high = np.uint32(MAX_BITS - bits)
    signed = (words << high).view(np.int32)
    signed >>= np.int32(MAX_BITS - bits)  # an arithmetic shift: brings the sign down with it
    return signed.astype(np.int64)


def packed_size(length: int, bits: int) -> int:
    """Bytes of `length` words of `bits` bits."""
    num_whole, rest = divmod(length, BLOCK)
    return num_whole * BLOCK * bits // 8 + _block_size(rest, bits)


def pack(words: Words, bits: int) -> bytes:
    """Words of `bits` bits, 65,536 at a time as planes: a plane holds the same bits of every word of the block.

    The first holds the low 16 bits, or the low 8 where words have fewer than 16. Planes of 8 bits follow as long as
    8 are left, then planes of single bits, eight words to a byte, the first word in the lowest bit. Planes of whole
    bytes are what makes this fast; only a plane of single bits can have room to spare, and less than a byte.

    Args:
        words: shape (length,), uint32, each below 2**bits.
        bits: 8 to 32.

    Returns:
        `packed_size` bytes, at most length * bits / 8 + 7; 16 bits are little-endian; unused bits are 0.
    """
    if int(words.max(initial=0)) >> bits:
        raise ValueError(f"a word does not fit {bits} bits")
    packed = np.empty(packed_size(words.size, bits), dtype=np.uint8)
    for blocks, part in _blocks(words, packed, bits):
        whole, shift, single = _planes_of(part, bits, blocks.shape[1])
        for n, block in enumerate(blocks):
            for lowest, planes in whole:
                planes[n] = block >> lowest
            if single:
                rest = (block >> shift).astype(np.uint8)
                for i, planes in enumerate(single):
                    planes[n] = np.packbits(rest & np.uint8(1 << i), bitorder="little")
    return packed.tobytes()


def check_packed(data: bytes | memoryview, bits: int, length: int) -> None:
    """Refuses what `pack` cannot have made. Looks at sizes and the ends of the planes only.

    Raises:
        ProtocolError: the width is not 8 to 32, the size is wrong, or an unused bit is set.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ProtocolError("bits", f"words have {MIN_BITS} to {MAX_BITS} bits")
    if length < 0 or len(data) != packed_size(length, bits):
        raise ProtocolError("vector-size", f"{len(data)} bytes are not {length} words of {bits} bits")
    if length % 8:
        last = np.frombuffer(data, np.uint8)[-_block_size(length % BLOCK, bits) :]
        _, _, single = _planes_of(last[np.newaxis], bits, length % BLOCK)
        if any(planes[0, -1] >> length % 8 for planes in single):
            raise ProtocolError("padding", "an unused bit of a packed vector is set")


def unpack(data: bytes | memoryview, bits: int, length: int) -> Words:
    """The words that `pack` was given, shape (length,).

    Raises:
        ProtocolError: these are not the bytes of `length` words of `bits` bits; nothing is allocated then.
    """
    check_packed(data, bits, length)
    words = np.zeros(length, dtype=np.uint32)
    for blocks, part in _blocks(words, np.frombuffer(data, np.uint8), bits):
        whole, shift, single = _planes_of(part, bits, blocks.shape[1])
        for lowest, plane in whole:
            blocks |= plane.astype(np.uint32) << lowest
        for i, plane in enumerate(single):
            bit = np.unpackbits(plane, axis=1, count=blocks.shape[1], bitorder="little")
            blocks |= bit.astype(np.uint32) << (shift + np.uint32(i))
    return words


def _blocks(words: Words, packed: NDArray[np.uint8], bits: int) -> Iterator[tuple[Words, NDArray[np.uint8]]]:
    """Blocks of one length and their packed forms, a row each: first the whole blocks, then the rest."""
    num_whole, rest = divmod(words.size, BLOCK)
    inside, at = num_whole * BLOCK, num_whole * _block_size(BLOCK, bits)
    if num_whole:
        yield words[:inside].reshape(num_whole, BLOCK), packed[:at].reshape(num_whole, -1)
    if rest:
        yield words[np.newaxis, inside:], packed[np.newaxis, at:]


def _block_size(length: int, bits: int) -> int:
    """Bytes of one block of `length` words."""
    whole, _, num_single = plane_widths(bits)
    return sum(length * width // 8 for _, width in whole) + num_single * -(-length // 8)


def plane_widths(bits: int) -> tuple[list[tuple[int, int]], int, int]:
    """Lowest bit and width of each plane of whole bytes; the lowest of the single bits, and how many there are."""
    widths = [16 if bits >= 16 else 8]
    widths += [8] * ((bits - widths[0]) // 8)
    used = sum(widths)
    return list(zip(accumulate([0, *widths]), widths, strict=False)), used, bits - used


def _planes_of(
    blocks: NDArray[np.uint8], bits: int, length: int
) -> tuple[list[tuple[np.uint32, NDArray[Any]]], np.uint32, list[NDArray[np.uint8]]]:
    """Planes of packed blocks of `length` words, a row for each block.

    Args:
        blocks: shape (number of blocks, bytes of one).

    Returns:
        The planes of whole bytes, each with its lowest bit; the lowest of the single bits; their planes.
    """
    widths, lowest, num_single = plane_widths(bits)
    whole, at = [], 0
    for shift, width in widths:
        plane = blocks[:, at : (at := at + length * width // 8)]
        whole.append((np.uint32(shift), plane.view("<u2") if width == 16 else plane))
    size = -(-length // 8)
    return whole, np.uint32(lowest), [blocks[:, at + i * size :][:, :size] for i in range(num_single)]


def rounds_to_zero(c_int: int, d: int) -> bool:
    """Whether the margin of stochastic rounding would cost too much."""
    return c_int < 16 * sqrt(d)
