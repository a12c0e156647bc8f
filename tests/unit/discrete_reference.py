"""Algorithms 1 to 3 of Canonne, Kamath and Steinke (2020), one number at a time, in integers and fractions alone.

It reads a stream in the layout that `tacit.privacy.discrete` documents and shares no code with it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from fractions import Fraction
from functools import cache

Words = Callable[[int], list[int]]  # the next n words of the stream


class Uniform:
    def __init__(self, word: int, words: Words) -> None:
        self.value, self.bits, self.words = word, 64, words

    def below_exp(self, gamma: Fraction) -> bool:
        while True:
            for precision in (48, self.bits + 64, self.bits + 256):
                low, high = exp_bounds(gamma, precision)
                if (self.value + 1) << precision <= low << self.bits:
                    return True
                if self.value << precision >= high << self.bits:
                    return False
            self.value = self.value << 64 | self.words(1)[0]
            self.bits += 64


@cache
def exp_bounds(gamma: Fraction, precision: int) -> tuple[int, int]:
    """Integers around exp(-gamma) 2^precision: the alternating series, each term rounded down."""
    if gamma > precision:
        return 0, 1
    guard = 2 * int(gamma) + 16  # the largest term is below e^gamma
    term, total, terms = 1 << (precision + guard), 0, 0
    while term:
        total += -term if terms % 2 else term
        terms += 1
        term = term * gamma.numerator // (gamma.denominator * terms)
    # A term is short by less than 1 + its predecessor's shortfall times gamma / terms: in all below terms e^gamma.
    error = (terms + 2) << (2 * int(gamma) + 2)
    return max(0, (total - error) >> guard), ((total + error) >> guard) + 1


def proposals(words: Words, m: int, std: Fraction) -> Iterator[int]:
    t, variance = std.numerator // std.denominator + 1, std * std
    heads, thin, counts, keep = (words(m) for _ in range(4))
    left = []
    for i in range(m):
        uniform = heads[i] // 2
        if uniform < 2**63 - 2**63 % t and Uniform(thin[i], words).below_exp(Fraction(uniform % t, t)):
            left.append((i, heads[i] % 2, uniform % t))
    magnitudes = []
    for i, minus, u in left:
        number, v = Uniform(counts[i], words), 0
        while number.below_exp(Fraction(v + 1)):
            v += 1
        magnitudes.append((i, minus, u + t * v))
    for i, minus, x in magnitudes:
        if minus and x == 0:
            continue
        if Uniform(keep[i], words).below_exp((x - variance / t) ** 2 / (2 * variance)):
            yield -x if minus else x


def discrete_gaussian(words: Words, n: int, std: float) -> list[int]:
    out: list[int] = []
    while len(out) < n:
        out += proposals(words, min(16384, 3 * (n - len(out))), Fraction(std))
    return out[:n]
