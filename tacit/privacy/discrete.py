"""Integer noise: the discrete Gaussian of Canonne, Kamath and Steinke, drawn exactly and many at a time.

The discrete Gaussian of scale sigma gives the integer x a probability in proportion to exp(-x^2 / (2 sigma^2)).
Algorithms 2 and 3 of "The discrete Gaussian for differential privacy" (NeurIPS 2020) draw it by rejection: a
proposal from the discrete Laplace distribution of scale t = floor(sigma) + 1 is kept with probability
exp(-(|x| - sigma^2 / t)^2 / (2 sigma^2)). Each of their decisions is whether a uniform real number is below
exp(-gamma) for a rational gamma. It is made in float64 for many proposals at once where that leaves no doubt, and
in exact arithmetic where it does, so what is drawn depends on no rounding and on no machine.

What is read of the stream, in 64-bit words: batches of m = min(16384, 3 x missing) proposals until nothing is missing.

    m words    sign (lowest bit: 1 is minus) and u = (the other 63 bits) mod t; where they are 2^63 - (2^63 mod t)
               or more the proposal is dropped
    m words    first 64 bits of the uniform number that must be below exp(-u / t)
    m words    first 64 bits of the one whose comparisons with exp(-1), exp(-2), ... count v; |x| = u + t v,
               and minus zero is dropped
    m words    first 64 bits of the one that must be below exp(-(|x| - sigma^2 / t)^2 / (2 sigma^2))

A comparison that 64 bits leave open reads further words, after the batch: first those of the second group, in order,
then of the third, then of the fourth, each only for proposals that are still in. What a batch gives beyond what is
missing is dropped.

How long a draw takes depends on the numbers drawn, but not on the update that they are added to.
"""

from __future__ import annotations

from collections.abc import Callable
from decimal import Context, Decimal
from fractions import Fraction
from functools import lru_cache
from typing import Final, Protocol

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.int64]
Words = NDArray[np.uint64]

MAX_STD: Final = 2.0**32

_BATCH: Final = 1 << 14
_DOUBT: Final = 2.0**-30  # relative; float64 is off by less than 2^-45 in every comparison
_ONE: Final = 2.0**64  # of a word's units


class WordStream(Protocol):
    """Where random words come from: `tacit.privacy.noise.Stream`."""

    def words(self, n: int) -> Words:
        """The next n words, shape (n,), uint64."""
        ...


def add_noise(values: Integers, std: float, stream: WordStream) -> Integers:
    """A bounded vector, or a sum of them, with noise; a client's share and a server's noise are both added here.

    Args:
        values: shape (d,).
        std: scale of the noise in each coordinate, in integer units; 0 = none.
        stream: serves this one vector.
    """
    return values + discrete_gaussian(stream, values.size, std)


def discrete_gaussian(stream: WordStream, n: int, std: float) -> Integers:
    """Independent draws from the discrete Gaussian of scale `std`.

    Args:
        stream: serves this one vector.
        n: how many.
        std: sigma, the standard deviation (of which the true one is a little less where sigma is below 1), at
            most 2^32; 0 gives zeros and reads nothing.

    Returns:
        Shape (n,).

    Guarantees:
        The distribution is that of the formula, not an approximation of it, as far as the stream is uniform.
    """
    if not 0 <= std <= MAX_STD:  # false for NaN too
        raise ValueError(f"a scale is a number from 0 to 2^32, not {std}")
    out = np.zeros(n, dtype=np.int64)
    have = 0 if std else n
    while have < n:
        drawn = _batch(stream, min(_BATCH, 3 * (n - have)), std)[: n - have]
        out[have : have + drawn.size] = drawn
        have += drawn.size
    return out


def _batch(stream: WordStream, m: int, std: float) -> Integers:
    """What m proposals give."""
    scale = int(std) + 1
    t, variance = np.uint64(scale), Fraction(std) ** 2
    heads, thin, counts, keep = stream.words(4 * m).reshape(4, m)
    uniform = heads >> np.uint64(1)
    below = uniform < np.uint64(2**63 - 2**63 % scale)
    minus, u = (heads & np.uint64(1)).astype(np.bool_), (uniform % t).astype(np.int64)

    left = np.flatnonzero(below)
    thinned = _below_exp(thin[left], u[left] / scale, lambda i: Fraction(int(u[left[i]]), scale), stream)
    left = left[thinned]
    x = u[left] + scale * _count(counts[left], stream)
    signed = (x > 0) | ~minus[left]
    left, x = left[signed], x[signed]

    centre = variance / scale
    kept = _below_exp(
        keep[left],
        ((x - float(centre)) / std) ** 2 / 2,
        lambda i: (int(x[i]) - centre) ** 2 / (2 * variance),
        stream,
    )
    return np.where(minus[left], -x, x)[kept]


def _below_exp(
    words: Words,
    gammas: NDArray[np.float64],
    exact: Callable[[int], Fraction],
    stream: WordStream,
) -> NDArray[np.bool_]:
    """Whether each uniform number is below exp(-gamma).

    Args:
        words: first 64 bits of the numbers, shape (n,).
        gammas: shape (n,), with an error of less than 2^-40.
        exact: i -> gamma number i.
        stream: further bits.
    """
    limits = np.exp(-gammas) * _ONE
    near = words.astype(np.float64)
    below: NDArray[np.bool_] = near + 1 <= limits * (1 - _DOUBT)
    doubtful = ~below & ((near < limits * (1 + _DOUBT)) | (words == 0))
    for i in np.flatnonzero(doubtful):
        below[i] = _Uniform(int(words[i]), stream).is_below_exp(exact(int(i)))
    return below


def _count(words: Words, stream: WordStream) -> Integers:
    """How many of exp(-1), exp(-2), ... each uniform number is below."""
    limits = _powers()
    places = np.searchsorted(limits, words)  # of the first limit that is not below the word
    counts = (limits.size - np.searchsorted(limits, words, side="right")).astype(np.int64)
    for i in np.flatnonzero(limits[np.minimum(places, limits.size - 1)] == words):
        number, count = _Uniform(int(words[i]), stream), 0
        while number.is_below_exp(Fraction(count + 1)):
            count += 1
        counts[i] = count
    return counts


@lru_cache(maxsize=1)
def _powers() -> Words:
    """exp(-k) in units of a word, rounded down, in rising order; the first is 0."""
    limits = [floor_exp(Fraction(k), 64) for k in range(1, 46)]
    return np.array(limits[::-1], dtype=np.uint64)


class _Uniform:
    """A uniform real number in [0, 1) of which as many bits are read as a comparison needs."""

    def __init__(self, word: int, stream: WordStream) -> None:
        self._value, self._bits, self._stream = word, 64, stream

    def is_below_exp(self, gamma: Fraction) -> bool:
        """Whether it is below exp(-gamma)."""
        while True:
            limit = floor_exp(gamma, self._bits)
            if self._value != limit:
                return self._value < limit
            self._value = self._value << 64 | int(self._stream.words(1)[0])
            self._bits += 64


def floor_exp(gamma: Fraction, bits: int) -> int:
    """floor(exp(-gamma) 2^bits), exactly, for gamma of 0 or more.

    A rational power of e other than the zeroth is irrational, so enough digits always tell the floor.
    """
    if gamma == 0:
        return 1 << bits
    digits = bits // 3 + 20
    while True:
        context = Context(prec=digits, Emin=-(10**9), Emax=10**9)
        quotient = context.divide(Decimal(-gamma.numerator), Decimal(gamma.denominator))
        value = context.multiply(context.exp(quotient), Decimal(1 << bits))
        # Each step is rounded to `digits` digits; exp turns the error of gamma into a relative one gamma as large.
        error = value.copy_abs() * (int(gamma) + 4) * Decimal(10) ** (1 - digits)
        low, high = (int(context.add(value, sign * error)) for sign in (-1, 1))
        if low == high:
            return low
        digits *= 2
