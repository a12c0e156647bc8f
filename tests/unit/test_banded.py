"""The matrix behind noise that is taken back: against dense matrices, and its sensitivity by brute force."""

import itertools
import math

import numpy as np
import pytest
from numpy.typing import NDArray

from tacit.privacy.banded import UNIT, coefficients, column_norm, dies_away, inverse

Matrix = NDArray[np.float64]


def dense(column: NDArray[np.floating] | NDArray[np.int64], n: int) -> Matrix:
    """The lower triangular Toeplitz matrix with this first column."""
    return sum((np.eye(n, k=-k) * value for k, value in enumerate(column[:n])), np.zeros((n, n)))


def prefix_sums(n: int, momentum: float = 0.0) -> Matrix:
    """What the model is made of: row t is how much of each update is in it after round t."""
    return dense(np.cumsum(momentum ** np.arange(n)), n)


def patterns(n: int, separation: int) -> list[tuple[int, ...]]:
    """Every way to take part in n rounds that keeps the separation."""
    chosen = itertools.chain.from_iterable(itertools.combinations(range(n), k) for k in range(1, n + 1))
    return [p for p in chosen if all(b - a >= separation for a, b in itertools.pairwise(p))]


def moved(c: Matrix, pattern: tuple[int, ...]) -> float:
    """The most that vectors of norm 1 in these rounds move C times the sums by: all alike, as no entry is negative."""
    return float(np.linalg.norm(c[:, list(pattern)].sum(axis=1)))


@pytest.mark.parametrize("momentum", [0.0, 0.5, 0.9])
def test_with_all_bands_the_matrix_is_the_square_root_of_the_prefix_sums(momentum: float) -> None:
    n = 24
    c = dense(coefficients(n, momentum), n) / UNIT
    wrong = np.abs(c @ c - prefix_sums(n, momentum))
    assert wrong.max() <= 2 * np.abs(c).sum(axis=1).max() * 0.5 / UNIT, (
        "no more than rounding to 2^-8 explains"
    )
    assert (coefficients(n, momentum) == coefficients(40, momentum)[:n]).all(), "a band more changes no other"


@pytest.mark.parametrize(("bands", "momentum"), [(1, 0.0), (2, 0.0), (7, 0.0), (5, 0.9), (64, 0.95)])
def test_the_inverse_is_that_of_the_dense_matrix_and_dies_away(bands: int, momentum: float) -> None:
    n = 200
    c = coefficients(bands, momentum)
    column = inverse(bands, momentum, n)
    np.testing.assert_allclose(column, np.linalg.inv(dense(c / UNIT, n))[:, 0], rtol=0, atol=1e-9)
    assert (np.diff(c) <= 0).all() and c[-1] > 0 and (bands == 1 or c[0] > c[1])
    assert bands == 1 or np.abs(np.roots(c[::-1])).min() > 1.0, "zeros outside the unit circle"


@pytest.mark.parametrize("bands", [2, 3, 8])
def test_momentum_so_near_1_that_the_inverse_does_not_die_away_is_known(bands: int) -> None:
    lasting = [np.abs(inverse(bands, momentum, 20_000)[-100:]).max() for momentum in (0.996, 0.9961)]
    assert lasting[0] < 1e-3 and dies_away(bands, 0.996)
    assert not dies_away(bands, 0.9961) and dies_away(1, 0.9961)
    assert bands > 2 or lasting[1] == 1.0


@pytest.mark.parametrize(
    ("bands", "separation", "momentum"), [(1, 1, 0.0), (3, 3, 0.0), (4, 4, 0.9), (3, 5, 0.5)]
)
def test_however_a_client_takes_part_it_moves_no_more_than_its_number_of_times(
    bands: int, separation: int, momentum: float
) -> None:
    n = 12
    c, norm = dense(coefficients(bands, momentum), n), column_norm(bands, momentum)
    largest = 0.0
    for pattern in patterns(n, separation):
        assert moved(c, pattern) <= math.sqrt(len(pattern)) * norm * (1 + 1e-12), pattern
        largest = max(largest, moved(c, pattern))
    assert largest > 0.9 * math.sqrt(math.ceil(n / separation)) * norm, "and it can come near"
    if bands > 1:
        closer = max(moved(c, p) / math.sqrt(len(p)) for p in patterns(n, bands - 1))
        assert closer > 1.01 * norm, "one round closer, and it would be more"


@pytest.mark.parametrize("bands", [4, 16])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_rounding_the_matrix_costs_less_than_a_hundredth_of_error(bands: int, momentum: float) -> None:
    n = 64
    steps = np.arange(1, bands)
    root = np.concatenate([[1.0], np.cumprod((2 * steps - 1) / (2 * steps))])
    exact = np.convolve(root, root * momentum ** np.arange(bands))[:bands]

    def error(column: Matrix) -> float:
        b = prefix_sums(n, momentum) @ np.linalg.inv(dense(column, n))
        return float(np.linalg.norm(column) * np.linalg.norm(b))

    assert error(coefficients(bands, momentum) / UNIT) < 1.01 * error(exact)
