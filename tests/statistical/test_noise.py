"""The noise and the sampling have the distributions that the accountant assumes. Fixed keys; p > 1e-6."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tacit.privacy.noise import SeededKeys, Stream

KEYS = SeededKeys(20261120)


@pytest.mark.parametrize("std", [0.5, 1.0, 37.0])
def test_gaussian_has_the_stated_mean_and_variance(std: float) -> None:
    n = 1_000_000
    drawn = Stream(KEYS.key("moments", str(std))).gaussian(n, std)
    assert abs(drawn.mean()) < 5 * std / math.sqrt(n)
    assert abs(drawn.var() / std**2 - 1) < 5 * math.sqrt(2 / n)  # 0.7 %
    assert stats.kstest(drawn / std, "norm").pvalue > 1e-6


def test_gaussian_has_the_tails_of_a_normal() -> None:
    n, edges = 4_000_000, np.array([-np.inf, -4.5, -4, -3.5, -3, -2, -1, 0, 1, 2, 3, 3.5, 4, 4.5, np.inf])
    drawn = Stream(KEYS.key("tails")).gaussian(n, 1.0)
    counts = np.histogram(drawn, edges)[0]
    assert stats.chisquare(counts, n * np.diff(stats.norm.cdf(edges))).pvalue > 1e-6


@pytest.mark.parametrize("lag", [1, 2, 8192, 16384])
def test_normals_of_one_stream_are_independent(lag: int) -> None:
    """8192 apart are the two elements that share their four Box-Muller pairs."""
    drawn = Stream(KEYS.key("lags")).gaussian(61 * 16384, 1.0)
    first, second = drawn[:-lag], drawn[lag:]
    for transform in (lambda x: x, np.square, np.abs):
        r = np.corrcoef(transform(first), transform(second))[0, 1]
        assert abs(r) < 5 / math.sqrt(len(first))


def batches(name: str, steps: int, rows: int, q: float) -> NDArray[np.bool_]:
    """Who is in the batch of each step, drawn as training draws it. Shape (steps, rows)."""
    return np.array([Stream(KEYS.key(name, str(q), step)).bernoulli(rows, q) for step in range(steps)])


@pytest.mark.parametrize("q", [0.01, 0.1, 0.5, 0.93])
def test_I18_each_record_is_included_with_probability_q(q: float) -> None:
    steps, rows = 4000, 250
    drawn = batches("inclusion", steps, rows, q)
    error = math.sqrt(q * (1 - q) / steps)
    assert abs(drawn.mean() - q) < 5 * error / math.sqrt(rows)
    assert np.abs(drawn.mean(axis=0) - q).max() < 5 * error


@pytest.mark.parametrize("q", [0.05, 0.3])
def test_I18_two_records_are_included_independently(q: float) -> None:
    """Shuffling labelled Poisson fails here: with a fixed batch size records exclude one another."""
    steps, rows = 20_000, 12
    drawn = batches("pairs", steps, rows, q)
    statistic = 0.0
    for i in range(rows):
        for j in range(i):
            both = np.histogram2d(drawn[:, i], drawn[:, j], bins=2, range=((0, 1), (0, 1)))[0].ravel()
            expected = steps * np.outer((1 - q, q), (1 - q, q)).ravel()
            statistic = max(statistic, stats.chisquare(both, expected).statistic)
    pairs = rows * (rows - 1) / 2
    assert pairs * stats.chi2.sf(statistic, 3) > 1e-6


def test_I18_batch_sizes_have_the_variance_of_independent_draws() -> None:
    steps, rows, q = 20_000, 100, 0.1
    sizes = batches("sizes", steps, rows, q).sum(axis=1)
    expected = stats.binom.pmf(np.arange(rows + 1), rows, q)
    low, high = 3, 19
    counts = [np.count_nonzero(sizes <= low), *(np.count_nonzero(sizes == k) for k in range(low + 1, high))]
    counts.append(np.count_nonzero(sizes >= high))
    probabilities = [expected[: low + 1].sum(), *expected[low + 1 : high], expected[high:].sum()]
    assert stats.chisquare(counts, steps * np.array(probabilities)).pvalue > 1e-6


def test_I18_steps_are_drawn_anew() -> None:
    assert len({batch.tobytes() for batch in batches("anew", 500, 200, 0.1)}) == 500
