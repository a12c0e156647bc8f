"""The matrix C of noise that is correlated over rounds, and what it does to sensitivity and error.

A model is the sum of all updates so far, with momentum a weighted one, so what counts is the noise of prefix sums.
Round t gets n_t with C n = z, z independent: much of n_t takes back what earlier rounds have added. C is lower
triangular and Toeplitz. Its first column is the beginning of the power series of 1 / sqrt((1 - x) (1 - momentum x)),
the square root of the prefix sums (Fichtenberger, Henzinger, Upadhyay 2023), cut to p bands (Kalinin and Lampert,
NeurIPS 2024) and rounded to multiples of 2^-8, so that C times integers is a matter of integers. The coefficients
fall, c_1 below c_0 (`dies_away`), so all zeros of the polynomial are outside the unit circle (Enestrom, Kakeya), and
what is taken back dies away.

A client that is in a sum once in p rounds at most meets columns of C that do not overlap. What its k vectors of norm 1
move C times the sums by has thus a norm of sqrt(k) |c| at most, for every pattern of participation (Choquette-Choo et
al. 2023, "(Amplified) banded matrix factorization", section 3): k releases, each of a vector of norm |c|.
"""

from __future__ import annotations

import math
from functools import lru_cache
from typing import Final

import numpy as np
from numpy.typing import NDArray

UNIT_BITS: Final = 8
UNIT: Final = 1 << UNIT_BITS  # what stands for 1 in the coefficients


@lru_cache(maxsize=64)
def coefficients(bands: int, momentum: float = 0.0) -> NDArray[np.int64]:
    """The first column of C in units of 2^-8, shape (bands,); nobody writes into it.

    Args:
        bands: p; 1 = noise that is independent from round to round.
        momentum: of the server's step, in [0, 1).
    """
    steps = np.arange(1, bands)
    root = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])  # binomial(2 k, k) / 4^k
    series = np.convolve(root, root * momentum ** np.arange(bands))[:bands]
    column: NDArray[np.int64] = np.rint(UNIT * series).astype(np.int64)
    return column


def dies_away(bands: int, momentum: float) -> bool:
    """Whether |C^-1| stays bounded over rounds: false for momentum so near 1 that c_1 is rounded to c_0."""
    column = coefficients(bands, momentum)
    return bands == 1 or bool(column[1] < column[0])


def column_norm(bands: int, momentum: float = 0.0) -> float:
    """|c| in units of 2^-8: by how much a vector of norm 1 moves C times the sums, in all of a run."""
    return math.sqrt(int(np.square(coefficients(bands, momentum)).sum()))


def inverse(bands: int, momentum: float, rounds: int) -> NDArray[np.float64]:
    """First column of C^-1, shape (rounds,): how much of z_t is in the noise of rounds t, t + 1, ..."""
    c, out = coefficients(bands, momentum) / UNIT, np.zeros(rounds)
    for t in range(rounds):
        reach = min(t, bands - 1)
        out[t] = (t == 0) - c[1 : reach + 1] @ out[t - reach : t][::-1]
    return out
