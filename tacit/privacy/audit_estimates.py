"""Estimates of epsilon from attacks: sharper than a bound, and true only as far as their model of the scores is.

- `mu_of`: scores with and without the canary are two Gaussians of one variance, mu standard deviations apart, which is
  what Gaussian DP is (Dong, Roth, Su, "Gaussian differential privacy", JRSS B 2022; used for audits by Nasr et al.,
  "Tight auditing of differentially private machine learning", USENIX Security 2023). It sees 10 % of missing noise,
  which counts of guesses cannot.
- `two_gaussians_epsilon`: the same with two variances, as Andrew et al. ("One-shot empirical privacy estimation for
  federated learning", ICLR 2024) read the cosines of canary clients with what was released.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from typing import Final

import numpy as np
from numpy.typing import NDArray

Scores = NDArray[np.float64]

_MOST: Final = 1e4  # an epsilon; beyond it a figure says no more than "no privacy"


@dataclass(frozen=True)
class Mu:
    """How many standard deviations a canary moves the scores.

    Attributes:
        value: the estimate.
        error: its standard error.
    """

    value: float
    error: float

    def epsilon(self, delta: float) -> float:
        """Epsilon of Gaussian DP with this mu."""
        return gaussian_epsilon(max(self.value, 0.0), delta)


def mu_of(with_canary: Scores, without: Scores) -> Mu:
    """Distance of the means over the pooled standard deviation, and its standard error (delta method).

    Args:
        with_canary: scores of independent runs with the canary, shape (n,).
        without: scores of independent runs without it, shape (k,).
    """
    n, k = with_canary.size, without.size
    variance = ((n - 1) * with_canary.var(ddof=1) + (k - 1) * without.var(ddof=1)) / (n + k - 2)
    mu = float((with_canary.mean() - without.mean()) / math.sqrt(variance))
    return Mu(mu, math.sqrt(1 / n + 1 / k + mu**2 / (2 * (n + k - 2))))


def gaussian_epsilon(mu: float, delta: float) -> float:
    """Least epsilon with which N(0, 1) and N(mu, 1) are (epsilon, delta)-close.

    delta(epsilon) = Phi(mu/2 - epsilon/mu) - e^epsilon Phi(-mu/2 - epsilon/mu): Balle and Wang, "Improving the
    Gaussian mechanism", ICML 2018, Theorem 8.
    """
    from scipy.special import log_ndtr, ndtr

    def excess(epsilon: float) -> float:
        far = math.exp(min(epsilon + float(log_ndtr(-mu / 2 - epsilon / mu)), 0.0))
        return float(ndtr(mu / 2 - epsilon / mu)) - far

    return _least(excess, delta) if mu > 0 else 0.0


def two_gaussians_epsilon(null: tuple[float, float], other: tuple[float, float], delta: float) -> float:
    """Least epsilon with which two Gaussians are (epsilon, delta)-close, in both directions.

    Args:
        null: mean and standard deviation of the scores without the canary.
        other: the same with it.
        delta: of the claim.
    """
    return max(
        _least(lambda e: _hockey_stick(null, other, e), delta),
        _least(lambda e: _hockey_stick(other, null, e), delta),
    )


def _hockey_stick(p: tuple[float, float], q: tuple[float, float], epsilon: float) -> float:
    """P(S) - e^epsilon Q(S) over the set S where the density of P is more than e^epsilon times that of Q.

    The logarithm of the ratio of two normal densities is a quadratic, so that S is what lies between or beyond its
    roots, and both probabilities are differences of normal distribution functions.
    """
    (m, s), (n, t) = p, q
    a, b = (1 / t**2 - 1 / s**2) / 2, m / s**2 - n / t**2
    c = math.log(t / s) + n**2 / (2 * t**2) - m**2 / (2 * s**2) - epsilon
    if abs(a) < 1e-12 * (1 / s**2 + 1 / t**2):
        edges = [] if b == 0 else [-c / b]
    else:
        square = b * b - 4 * a * c
        edges = sorted((-b + sign * math.sqrt(square)) / (2 * a) for sign in (-1, 1)) if square > 0 else []
    bounds = [-math.inf, *edges, math.inf]
    total = 0.0
    for low, high in pairwise(bounds):
        inside = _between(low, high)
        if (a * inside + b) * inside + c > 0:
            log_q = _log_probability(q, low, high)
            total += math.exp(_log_probability(p, low, high)) - math.exp(min(epsilon + log_q, 0.0))
    return max(total, 0.0)


def _between(low: float, high: float) -> float:
    """Some number between two others, of which one or both may be infinite."""
    if math.isinf(low) and math.isinf(high):
        return 0.0
    if math.isinf(low):
        return high - max(1.0, abs(high))
    return low + max(1.0, abs(low)) if math.isinf(high) else (low + high) / 2


def _log_probability(normal: tuple[float, float], low: float, high: float) -> float:
    from scipy.special import log_ndtr

    a, b = (low - normal[0]) / normal[1], (high - normal[0]) / normal[1]
    if a > 0:
        a, b = -b, -a  # the left tail has the precision
    upper, lower = float(log_ndtr(b)), float(log_ndtr(a))
    if upper == -math.inf:
        return -math.inf
    return upper + math.log(max(-math.expm1(lower - upper), 1e-300))


def _least(delta_of: Callable[[float], float], delta: float) -> float:
    """Where a falling delta(epsilon) reaches delta; 0 where it begins below, infinity where it stays above."""
    from scipy.optimize import brentq

    if delta_of(0.0) <= delta:
        return 0.0
    high = 1.0
    while delta_of(high) > delta:
        high *= 2
        if high > _MOST:
            return math.inf
    return float(brentq(lambda epsilon: delta_of(epsilon) - delta, 0.0, high, xtol=1e-9))
