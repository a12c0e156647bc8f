"""The estimators of the privacy audit against published and computed figures, and against simple simulations."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import integrate, stats

from tacit.privacy.audit_bounds import Counts, one_run_bound, one_run_p_value, threshold_bound
from tacit.privacy.audit_estimates import gaussian_epsilon, mu_of, two_gaussians_epsilon


@pytest.mark.parametrize(
    ("correct", "guesses", "canaries", "bound"), [(100, 100, 1000, 3.47), (500, 500, 5000, 4.98)]
)
def test_I9_goldens_of_the_one_run_bound(correct: int, guesses: int, canaries: int, bound: float) -> None:
    """At delta 1e-5 and 95 %; the third digit is that of the catalogue."""
    assert round(one_run_bound(correct, guesses, canaries, 1e-5), 2) == bound


@pytest.mark.parametrize(
    ("counts", "bound"),
    [
        (Counts(1000, 1000, 0, 1000), 5.60),  # no noise at all
        (Counts(228, 10_000, 13, 10_000), 2.20),  # a Gaussian with z = 1: the expected counts at threshold 3
        (Counts(539, 100_000, 19, 100_000), 2.81),  # the same, threshold 3.55
    ],
)
def test_I7_goldens_of_the_threshold_bound(counts: Counts, bound: float) -> None:
    """At delta 1e-5 and 95 %."""
    assert abs(threshold_bound(counts, 1e-5) - bound) < 0.01


def test_without_delta_the_one_run_bound_is_that_of_randomised_response() -> None:
    for epsilon in (0.5, 2.0):
        q = math.exp(epsilon) / (1 + math.exp(epsilon))
        assert one_run_p_value(30, 50, 400, epsilon, 0.0) == pytest.approx(stats.binom.sf(29, 50, q))
    # A bound's own p-value is the allowed error; no right guess proves nothing.
    bound = one_run_bound(48, 50, 400, 0.0)
    assert one_run_p_value(48, 50, 400, bound, 0.0) == pytest.approx(0.05, abs=1e-5)
    assert one_run_bound(0, 50, 400, 0.0) == one_run_bound(0, 0, 400, 1e-5) == 0.0


def test_the_shift_that_delta_allows_is_the_worst_one() -> None:
    """The optimum of the linear programme behind it, found by trying every shift."""
    correct, guesses, canaries, epsilon, delta = 18, 20, 100, 1.0, 1e-3
    q = 1 / (1 + math.exp(-epsilon))
    worst = max(
        sum(stats.binom.pmf(correct - j, guesses, q) for j in range(1, i + 1)) / i
        for i in range(1, correct + 1)
    )
    expected = stats.binom.sf(correct - 1, guesses, q) + 2 * canaries * delta * worst
    assert one_run_p_value(correct, guesses, canaries, epsilon, delta) == pytest.approx(expected)
    bounds = [one_run_bound(correct, guesses, canaries, d) for d in (0.0, 1e-5, 1e-3, 1e-2)]
    assert bounds == sorted(bounds, reverse=True) and bounds[0] > bounds[-1]


def test_a_bound_exceeds_epsilon_with_a_probability_of_at_most_one_minus_confidence() -> None:
    """Randomised response is the mechanism for which both are tight."""
    rng, epsilon, runs = np.random.default_rng(1), 1.5, 400
    q = 1 / (1 + math.exp(-epsilon))
    one_run = [one_run_bound(int(rng.binomial(200, q)), 200, 200, 0.0) for _ in range(runs)]
    fixed = [
        threshold_bound(Counts(rng.binomial(2000, q), 2000, rng.binomial(2000, 1 - q), 2000), 0.0)
        for _ in range(runs)
    ]
    allowed = stats.binom.ppf(1 - 1e-6, runs, 0.05)
    assert sum(b > epsilon for b in one_run) <= allowed and sum(b > epsilon for b in fixed) <= allowed
    assert max(one_run) > 1.2 and max(fixed) > 1.2, "bounds that are never near say nothing"


@pytest.mark.parametrize("counts", [(3, 2, 0, 2), (-1, 2, 0, 2), (0, 0, 0, 2)])
def test_counts_that_cannot_be_are_refused(counts: tuple[int, int, int, int]) -> None:
    with pytest.raises(ValueError, match="no outcome"):
        threshold_bound(Counts(*counts), 1e-5)
    with pytest.raises(ValueError, match="no outcome"):
        one_run_p_value(3, 2, 5, 1.0, 0.0)


@pytest.mark.parametrize(("z", "epsilon"), [(1.0, 4.377), (2.0, 1.993), (4.0, 0.926)])
def test_the_epsilon_of_a_gaussian_is_that_of_the_accountant(z: float, epsilon: float) -> None:
    assert round(gaussian_epsilon(1 / z, 1e-5), 3) == pytest.approx(epsilon, abs=1.1e-3)


@pytest.mark.parametrize(
    ("null", "other"), [((0.0, 1.0), (1.0, 1.0)), ((0.0, 1.0), (2.0, 1.7)), ((0.2, 0.3), (0.1, 0.2))]
)
def test_two_gaussians_are_as_close_as_their_densities(
    null: tuple[float, float], other: tuple[float, float]
) -> None:
    delta = 1e-3
    epsilon = two_gaussians_epsilon(null, other, delta)
    assert epsilon == pytest.approx(two_gaussians_epsilon(other, null, delta))

    def excess(p: tuple[float, float], q: tuple[float, float]) -> float:
        def gap(x: float) -> float:
            return max(0.0, stats.norm.pdf(x, *p) - math.exp(epsilon) * stats.norm.pdf(x, *q))

        return float(integrate.quad(gap, -12, 12, limit=500, points=[p[0], q[0]])[0])

    assert max(excess(null, other), excess(other, null)) == pytest.approx(delta, rel=1e-3)


def test_two_gaussians_of_one_variance_are_a_gaussian_mechanism() -> None:
    assert two_gaussians_epsilon((3.0, 2.0), (5.0, 2.0), 1e-5) == pytest.approx(gaussian_epsilon(1.0, 1e-5))
    assert two_gaussians_epsilon((1.0, 2.0), (1.0, 2.0), 1e-5) == 0.0
    assert math.isinf(two_gaussians_epsilon((0.0, 1e-3), (1.0, 1e-3), 1e-5))


def test_mu_and_its_error_are_those_of_many_samples() -> None:
    rng = np.random.default_rng(3)
    found = [mu_of(rng.normal(1.1, 1, 400), rng.normal(0, 1, 600)) for _ in range(300)]
    values = np.array([mu.value for mu in found])
    assert abs(values.mean() - 1.1) < 5 * values.std() / math.sqrt(values.size)
    assert np.mean([mu.error for mu in found]) == pytest.approx(values.std(), rel=0.25)
    assert found[0].epsilon(1e-5) == gaussian_epsilon(found[0].value, 1e-5)
    assert mu_of(np.zeros(5) - rng.normal(0, 1, 5) - 9, rng.normal(0, 1, 5)).epsilon(1e-5) == 0.0
