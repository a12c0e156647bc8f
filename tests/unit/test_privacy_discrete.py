"""The vectorised discrete Gaussian draws exactly what the paper's algorithm does, word for word of the stream."""

from __future__ import annotations

import math
from collections.abc import Callable
from decimal import Decimal, localcontext
from fractions import Fraction

import numpy as np
import pytest
from numpy.typing import NDArray

from tacit.privacy import discrete
from tacit.privacy.discrete import discrete_gaussian, floor_exp
from tacit.privacy.noise import SeededKeys, Stream
from tests.unit import discrete_reference as reference

KEYS = SeededKeys(20261121)
SIGMAS = (0.1, 0.5, 1.0, 25.3, 65536.0, 3.2 * 65536)


def words_of(stream: Stream) -> Callable[[int], list[int]]:
    def words(n: int) -> list[int]:
        data = stream.bytes(8 * n)
        return [int.from_bytes(data[i : i + 8], "little") for i in range(0, 8 * n, 8)]

    return words


class Crafted:
    """A stream that begins with given words."""

    def __init__(self, *words: int) -> None:
        self.left = list(words)
        self.read = 0

    def words(self, n: int) -> NDArray[np.uint64]:
        taken, self.left = self.left[:n], self.left[n:]
        self.read += n
        return np.array(taken, dtype=np.uint64)

    def listed(self, n: int) -> list[int]:
        return [int(word) for word in self.words(n)]


@pytest.mark.parametrize("std", SIGMAS)
def test_I4_the_vectorised_sampler_draws_what_the_exact_reference_draws(std: float) -> None:
    key = KEYS.key("reference", str(std))
    drawn = discrete_gaussian(Stream(key), 10_000, std)
    assert drawn.tolist() == reference.discrete_gaussian(words_of(Stream(key)), 10_000, std)


@pytest.mark.parametrize("std", SIGMAS)
def test_I4_what_is_drawn_depends_on_no_rounding(std: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """With everything in doubt, all decisions are made in exact arithmetic, and they are the same."""
    key = KEYS.key("doubt", str(std))
    drawn = discrete_gaussian(Stream(key), 1500, std)
    monkeypatch.setattr(discrete, "_DOUBT", 1.0)
    assert (discrete_gaussian(Stream(key), 1500, std) == drawn).all()


def crafted_batch(head: int, thin: int, count: int, keep: int, *further: int) -> list[int]:
    """The words of one batch of three, of which the last two proposals are dropped, and a batch after it."""
    drop, half = 2**64 - 1, 2**63
    batch = [head, 2, 2, thin, drop, drop, count, half, half, keep, half, half, *further]
    return batch + [2, 2, 2, 1, 1, 1, half, half, half, 1, 1, 1] * 20


CUT = floor_exp(Fraction(1, 3), 64)  # with sigma 2.5: t = 3, u = 1


@pytest.mark.parametrize("std", [2.5])
@pytest.mark.parametrize(
    ("head", "thin", "count", "keep", "further"),
    [
        (2, CUT - 1, 2**63, 0, []),
        (2, CUT, 2**63, 1, [0]),
        (2, CUT, 2**63, 1, [2**64 - 1]),
        (2, CUT + 1, 2**63, 1, []),
        (2, CUT, 2**63, 1, [floor_exp(Fraction(1, 3), 128) % 2**64, 5]),
        (3, 1, floor_exp(Fraction(1), 64), 1, [0]),
        (3, 1, floor_exp(Fraction(2), 64), 1, [2**64 - 1]),
        (3, 1, 0, 1, [2**63, 17]),
        (3, 1, 1, 1, []),
    ],
)
def test_I4_a_comparison_that_64_bits_leave_open_reads_further_words(
    std: float, head: int, thin: int, count: int, keep: int, further: list[int]
) -> None:
    words = crafted_batch(head, thin, count, keep, *further)
    ours, theirs = Crafted(*words), Crafted(*words)
    drawn = discrete_gaussian(ours, 1, std).tolist()
    assert drawn == reference.discrete_gaussian(theirs.listed, 1, std)
    assert ours.read == theirs.read


def test_floor_exp_is_the_floor() -> None:
    with localcontext(prec=400):
        for gamma in (
            Fraction(1),
            Fraction(1, 3),
            Fraction(10**9 + 7, 10**9),
            Fraction(200),
            Fraction(1, 10**40),
        ):
            for bits in (64, 128, 640):
                exact = (-Decimal(gamma.numerator) / gamma.denominator).exp() * Decimal(2) ** bits
                assert floor_exp(gamma, bits) == int(exact)
    assert floor_exp(Fraction(0), 64) == 2**64
    assert floor_exp(Fraction(1000), 64) == 0


def test_no_scale_gives_zeros_and_reads_nothing() -> None:
    stream = Crafted()
    assert discrete_gaussian(stream, 5, 0.0).tolist() == [0] * 5
    assert discrete_gaussian(stream, 0, 3.0).size == 0
    assert stream.read == 0


@pytest.mark.parametrize("std", [-1.0, math.nan, math.inf, 2.0**33])
def test_a_scale_that_is_none_is_refused(std: float) -> None:
    with pytest.raises(ValueError, match="scale"):
        discrete_gaussian(Crafted(), 3, std)


def test_a_vector_is_the_beginning_of_a_longer_one_within_a_batch_size() -> None:
    """Batches are as long as the layout says; over 16384 proposals their length no longer depends on n."""
    key = KEYS.key("prefix")
    longer = discrete_gaussian(Stream(key), 40_000, 7.0)
    assert (discrete_gaussian(Stream(key), 30_000, 7.0)[:20_000] == longer[:20_000]).all()
