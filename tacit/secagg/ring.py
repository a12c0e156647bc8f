"""Vectors as integers modulo 2^b: fixed-point encoding, packing for the wire, and the way back.

Encoding is the bounded stochastic rounding of a vector of known Euclidean norm; the ideas are those of
Kairouz, Liu and Steinke (ICML 2021, section 4.1), with a bound that holds in every outcome, so that no
draw has to be repeated.
"""

from __future__ import annotations

from math import ceil, isfinite, sqrt
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.update import Integers, Words

MIN_BITS: Final = 8
MAX_BITS: Final = 32
_FLOAT_SLACK: Final = 1 - 2.0**-40  # keeps the rounding errors of float64 inside the integer bound
_PACK_WORDS: Final = 1 << 15  # words packed at a time: both sides of the block stay in the cache


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
    if uniforms.shape != values.shape:
        raise ValueError("one uniform number for each coordinate")
    cut, clipped = clip_norm(values, clip)
    scaled = cut * units_per_one(clip, c_int, values.size)
    if _rounds_to_zero(c_int, values.size):
        integers = np.trunc(scaled).astype(np.int64)
    else:
        floor = np.floor(scaled)
        integers = floor.astype(np.int64) + (uniforms < scaled - floor)
    if squared_norm(integers) > c_int**2:
        raise AssertionError("an encoded vector is longer than its bound")
    return integers, clipped


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
    margin = 0.0 if _rounds_to_zero(c_int, d) else sqrt(d)
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
    half = np.int64(1) << np.int64(bits - 1)
    modulus = 2 * half
    return (words.astype(np.int64) + half) % modulus - half


def packed_size(length: int, bits: int) -> int:
    """Bytes of `length` words of `bits` bits."""
    return -(-length * bits // 8)


def pack(words: Words, bits: int) -> bytes:
    """Words of `bits` bits without gaps: word i is bits [i b, (i+1) b) of one little-endian number.

    Args:
        words: shape (length,), uint32, each below 2**bits.
        bits: 8 to 32; at 32 the bytes are those of little-endian uint32.

    Returns:
        ceil(length * bits / 8) bytes; unused high bits of the last one are 0.
    """
    if int(words.max(initial=0)) >> bits:
        raise ValueError(f"a word does not fit {bits} bits")
    packed = np.zeros((-(-words.size // 32), bits), dtype="<u4")
    for start in range(0, words.size, _PACK_WORDS):
        columns = _columns(words[start : start + _PACK_WORDS], 32)
        out = np.zeros((bits, columns.shape[1]), dtype=np.uint32)
        for i in range(32):
            row, shift = divmod(i * bits, 32)
            out[row] |= columns[i] << np.uint32(shift)
            if shift + bits > 32:
                out[row + 1] |= columns[i] >> np.uint32(32 - shift)
        packed[start // 32 : start // 32 + out.shape[1]] = out.T
    return packed.reshape(-1).view(np.uint8)[: packed_size(words.size, bits)].tobytes()


def check_packed(data: bytes, bits: int, length: int) -> None:
    """Refuses what `pack` cannot have made. Looks at sizes and the last byte only.

    Raises:
        ProtocolError: the width is not 8 to 32, the size is wrong, or an unused bit is set.
    """
    if not MIN_BITS <= bits <= MAX_BITS:
        raise ProtocolError("bits", f"words have {MIN_BITS} to {MAX_BITS} bits")
    if length < 0 or len(data) != packed_size(length, bits):
        raise ProtocolError("vector-size", f"{len(data)} bytes are not {length} words of {bits} bits")
    used = length * bits % 8
    if used and data[-1] >> used:
        raise ProtocolError("padding", "an unused bit of a packed vector is set")


def unpack(data: bytes, bits: int, length: int) -> Words:
    """The words that `pack` was given, shape (length,).

    Raises:
        ProtocolError: these are not the bytes of `length` words of `bits` bits; nothing is allocated then.
    """
    check_packed(data, bits, length)
    source = np.zeros(-(-length // 32) * bits, dtype="<u4")
    source.view(np.uint8)[: len(data)] = np.frombuffer(data, dtype=np.uint8)
    words = np.empty((-(-length // 32), 32), dtype=np.uint32)
    step = _PACK_WORDS // 32
    for start in range(0, len(words), step):
        columns = _columns(source[start * bits : (start + step) * bits], bits)
        out = np.empty((32, columns.shape[1]), dtype=np.uint32)
        for i in range(32):
            row, shift = divmod(i * bits, 32)
            out[i] = columns[row] >> np.uint32(shift)
            if shift + bits > 32:
                out[i] |= columns[row + 1] << np.uint32(32 - shift)
        words[start : start + step] = out.T
    return keep_low(words.reshape(-1)[:length], bits)


def _columns(flat: NDArray[np.uint32], width: int) -> NDArray[np.uint32]:
    """Column i holds every `width`-th item from i on, as one contiguous row; zeros fill the last group."""
    groups = -(-flat.size // width)
    if flat.size < groups * width:
        flat = np.concatenate([flat, np.zeros(groups * width - flat.size, dtype=np.uint32)])
    return np.ascontiguousarray(flat.reshape(groups, width).T, dtype=np.uint32)


def _rounds_to_zero(c_int: int, d: int) -> bool:
    return c_int < 16 * sqrt(d)
