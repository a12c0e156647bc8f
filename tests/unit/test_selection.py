"""The cost of publishing the best of a random number of runs, against evaluations that share no code with it."""

from __future__ import annotations

import math

import numpy as np
import pytest
from dp_accounting import LaplaceDpEvent
from dp_accounting.dp_event import RepeatAndSelectDpEvent
from dp_accounting.rdp import RdpAccountant
from scipy.optimize import minimize_scalar
from scipy.stats import chisquare, logser, nbinom, norm

from tacit.privacy.accountant import Event, epsilon_pld
from tacit.privacy.selection import NumTrials, epsilon_of_best

DELTA = 1e-5
LAWS = [NumTrials(10, 0.0), NumTrials(10, 0.5), NumTrials(10, 1.0), NumTrials(3, 2.0), NumTrials(100, 1.0)]


def by_definition(law: NumTrials, counts: np.ndarray) -> np.ndarray:
    """Chances of the paper's Definition 1, from SciPy's distributions; gamma searched for by bisection."""

    def chances(gamma: float, k: np.ndarray) -> np.ndarray:
        if law.eta == 0:
            return np.asarray(logser.pmf(k, 1 - gamma))
        return np.asarray(nbinom.pmf(k, law.eta, gamma) / nbinom.sf(0, law.eta, gamma))

    everything, low, high = np.arange(1, 20_000), 1e-4, 1.0 - 1e-9
    for _ in range(50):
        middle = math.sqrt(low * high)
        mean = float((everything * chances(middle, everything)).sum())
        low, high = (middle, high) if mean > law.mean else (low, middle)
    return chances(low, counts)


@pytest.mark.parametrize("law", LAWS)
def test_the_number_of_trials_follows_the_distribution_that_its_cost_is_computed_for(law: NumTrials) -> None:
    size = 4000
    drawn = np.array([law.draw() for _ in range(size)])
    edges = np.arange(1, 400)
    expected = size * by_definition(law, edges)
    last = int(np.argmax(expected < 20)) or len(edges)
    found = [int((drawn == k).sum()) for k in edges[:last]]
    rest = size - expected[:last].sum()
    statistic = chisquare([*found, size - sum(found)], [*expected[:last], rest])
    assert statistic.pvalue > 1e-6
    assert drawn.min() == 1


def test_a_draw_is_the_first_number_whose_chance_and_all_below_exceed_a_uniform_one() -> None:
    law = NumTrials(4, 1.0)  # geometric: P(K <= k) = 1 - (3/4)**k
    for u in (0.0, 0.2, 0.26, 0.5, 0.9, 0.9999):
        k = law.draw(lambda u=u: u)  # type: ignore[misc]
        assert 1 - 0.75 ** (k - 1) <= u < 1 - 0.75**k


def by_the_theorem(rho: float, delta: float, law: NumTrials) -> float:
    """Theorem 2 for a run that is (a, rho a)-RDP at all orders; both orders by continuous search."""
    gamma = math.exp(law.log_gamma)

    def constant(b: float) -> float:
        return (1 + law.eta) * ((1 - 1 / b) * rho * b + math.log(1 / gamma) / b)

    best = minimize_scalar(constant, bounds=(1.0, 1e4), method="bounded").fun

    def converted(x: float) -> float:
        a = 1 + math.exp(x)
        rdp = rho * a + best + math.log(law.mean) / (a - 1)
        return float(rdp + math.log1p(-1 / a) - (math.log(delta) + math.log(a)) / (a - 1))

    return min(
        float(minimize_scalar(converted, bounds=bounds, method="bounded").fun)
        for bounds in ((-4.0, 0.0), (0.0, 3.0), (3.0, 8.0))
    )


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("noise", [0.7, 2.0, 10.0])
def test_the_epsilon_is_that_of_the_theorem(law: NumTrials, noise: float) -> None:
    found = epsilon_of_best(Event("gaussian", noise), DELTA, law)
    theirs = by_the_theorem(1 / (2 * noise**2), DELTA, law)
    assert theirs * (1 - 1e-6) <= found <= theirs * 1.02


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("noise", [0.7, 2.0])
def test_the_epsilon_of_the_best_is_an_upper_bound_for_everything_that_is_released(
    law: NumTrials, noise: float
) -> None:
    """Exactly: the best of K numbers with Gaussian noise, the larger the better, with and without a record.

    The largest has the distribution function g(F), g the generating function of K, so the hockey-stick divergence is
    an integral. Training and metrics are one Gaussian here: 1/s**2 adds up.
    """
    events = [
        Event("gaussian", noise * math.sqrt(2), steps=1),
        Event("gaussian", noise * math.sqrt(8), steps=4),
    ]
    epsilon = epsilon_of_best(events, DELTA, law)
    assert epsilon == pytest.approx(epsilon_of_best(Event("gaussian", noise), DELTA, law), rel=1e-9)
    gamma, y = math.exp(law.log_gamma), np.linspace(-12, 12 + 1 / noise, 100_001)

    def density(mean: float) -> np.ndarray:
        left = 1 - (1 - gamma) * norm.cdf(y - mean)
        if law.eta == 0:
            slope = (1 - gamma) / left / -math.log(gamma)
        else:
            slope = law.eta * (1 - gamma) * left ** (-law.eta - 1) / (gamma**-law.eta - 1)
        return np.asarray(slope * norm.pdf(y - mean))

    pair = density(0.0), density(1 / noise)
    assert np.trapezoid(pair[0], y) == pytest.approx(1, abs=1e-6)

    def exact(epsilon: float) -> float:
        return float(
            max(np.trapezoid(np.maximum(p - math.exp(epsilon) * q, 0), y) for p, q in (pair, pair[::-1]))
        )

    assert exact(epsilon) <= DELTA
    assert exact(epsilon_pld(events, DELTA)) > 2 * DELTA, "what one run promises does not hold for the best"


@pytest.mark.parametrize(("eta", "factor"), [(0.0, 2.0), (1.0, 3.0), (0.5, 2.5)])
def test_the_shape_is_the_papers_eta(eta: float, factor: float) -> None:
    """Corollary 3: the best of pure epsilon-DP runs is (2 + eta) epsilon-DP; 3 epsilon is Liu and Talwar's, 2019."""
    accountant = RdpAccountant(orders=[1e10])
    accountant.compose(RepeatAndSelectDpEvent(LaplaceDpEvent(1.0), 1000, eta))
    assert accountant.get_epsilon(1e-10) == pytest.approx(factor, rel=1e-6)


def test_what_has_no_noise_has_no_bound_and_odd_arguments_are_refused() -> None:
    assert epsilon_of_best(Event("gaussian", 0.0), DELTA, NumTrials(5)) == math.inf
    for mean, eta in ((1.0, 1.0), (0.5, 1.0), (math.inf, 1.0), (5.0, -0.5), (5.0, math.nan)):
        with pytest.raises(ValueError, match="no number of trials"):
            NumTrials(mean, eta)
    with pytest.raises(ValueError, match="delta"):
        epsilon_of_best(Event("gaussian", 1.0), 0.0, NumTrials(5))
