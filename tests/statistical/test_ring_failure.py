"""The failure bound of the ring against rings themselves, n = 500, c = D = 5 %.

2^-20 cannot be seen happening. What is counted is the whole distribution that its tail is taken from, and the
union bound at degrees where it can be seen.
"""

import numpy as np
import pytest
from scipy.stats import chisquare, hypergeom

from tacit.secagg.degree import FAILURE_BITS, most, ring_degree
from tacit.secagg.graph import shuffled

N, DROPPED, CORRUPT = 500, 25, 25
RINGS = 3000
WIDTH = 5.0  # standard errors that a count may be off by: about one run in a million


def missing(dropped, k):
    """Shape (rings, places): dropped neighbours of the client at each place."""
    steps = [step for step in range(-k // 2, k // 2 + 1) if step]
    return sum(np.roll(dropped, step, axis=1) for step in steps)


@pytest.fixture(scope="module")
def orders():
    """Shape (rings, places): roster indices; 0 to 24 have dropped."""
    return np.array([shuffled(range(N), seed.to_bytes(32, "big")) for seed in range(RINGS)])


@pytest.fixture(scope="module")
def dropped(orders):
    """Shape (rings, places): whether the client at a place has dropped."""
    return orders < DROPPED


def test_A7_neighbours_that_vanish_are_hypergeometric(orders, dropped):
    """One client of every ring, so that the counts are independent."""
    k, _ = ring_degree(N, CORRUPT, DROPPED)
    first = missing(dropped, k)[orders == N - 1]
    expected = hypergeom(N - 1, DROPPED, k)
    low, high = int(expected.ppf(0.01)), int(expected.ppf(0.99))
    seen = np.bincount(np.clip(first, low, high) - low, minlength=high - low + 1)
    share = [expected.cdf(low), *expected.pmf(range(low + 1, high)), expected.sf(high - 1)]
    assert chisquare(seen, RINGS * np.array(share)).pvalue > 1e-6


@pytest.mark.parametrize("k", [20, 40, 86])
def test_A7_the_union_bound_holds_and_is_not_far_off(dropped, k):
    """Rings in which some honest client misses more than j neighbours, against (n - c) P[Hyp > j]."""
    honest = ~dropped
    worst = np.where(honest, missing(dropped, k), 0).max(axis=1)
    for j in range(k):
        bound = (N - DROPPED) * hypergeom.sf(j, N - 1, DROPPED, k)
        if not 0.002 < bound < 0.5:
            continue
        rate = np.mean(worst > j)
        error = WIDTH * np.sqrt(bound / RINGS)
        assert rate < bound + error
        assert rate > bound / 20 - error  # neighbourhoods overlap: one bad place makes several bad clients
        assert most(N - 1, DROPPED, k, N - DROPPED, 0) <= j  # and this is the bound that the quantile is of


def test_A7_at_the_degree_of_500_no_ring_fails(dropped):
    k, t = ring_degree(N, CORRUPT, DROPPED)
    assert most(N - 1, DROPPED, k, N - CORRUPT, FAILURE_BITS) <= k - t
    assert missing(dropped, k).max() <= k - t
