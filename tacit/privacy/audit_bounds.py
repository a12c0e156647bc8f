"""Lower bounds on epsilon from attacks: what the outcome of a test proves, at a stated confidence.

Somebody who guesses right too often to be an accident shows that a mechanism is *not* (epsilon, delta)-DP for any
epsilon below some figure. That figure is the bound. It depends on counts alone and knows no mechanism.

- `threshold_bound`: many runs with and without one canary, a threshold that was fixed before they were looked at
  (Jagielski, Ullman, Oprea, "Auditing differentially private machine learning", NeurIPS 2020; with delta as in Nasr et
  al., "Adversary instantiation", S&P 2021). Rates get bounds of Clopper and Pearson (Biometrika, 1934).
- `one_run_bound`: one run with many canaries, each of which a coin put in or left out (Steinke, Nasr, Jagielski,
  "Privacy auditing with one (1) training run", NeurIPS 2023: the main theorem, computed as in Appendix D).

Guarantees:
    Of a mechanism that is (epsilon, delta)-DP a bound exceeds epsilon with a probability of at most 1 - confidence.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np

CONFIDENCE: Final = 0.95

_MOST: Final = 60.0  # no count of guesses proves more


class Counts(NamedTuple):
    """Outcome of a fixed-threshold test.

    Attributes:
        hits: runs with the canary whose score was above the threshold, of `with_canary`.
        false_alarms: the same of the runs without, of `without_canary`.
    """

    hits: int
    with_canary: int
    false_alarms: int
    without_canary: int


def threshold_bound(counts: Counts, delta: float, confidence: float = CONFIDENCE) -> float:
    """Epsilon's lower bound from a test whose threshold was fixed beforehand; 0 where it shows nothing.

    (epsilon, delta)-DP forbids TPR > e^epsilon FPR + delta, and TNR > e^epsilon FNR + delta. The true rates are
    replaced by one-sided bounds, each at half of the allowed error, so that both hold together.

    Args:
        counts: of independent runs.
        delta: of the claim.
        confidence: of the bound.
    """
    error = (1 - confidence) / 2
    hits = _at_least(counts.hits, counts.with_canary, error)
    alarms = 1 - _at_least(counts.without_canary - counts.false_alarms, counts.without_canary, error)
    ratios = [(hits - delta) / alarms, (1 - alarms - delta) / (1 - hits)]
    return max([0.0, *(math.log(ratio) for ratio in ratios if ratio > 0)])


def _at_least(successes: int, trials: int, error: float) -> float:
    """Clopper and Pearson's one-sided lower bound of a rate."""
    from scipy import stats

    if not 0 <= successes <= trials or trials < 1:
        raise ValueError(f"{successes} of {trials} is no outcome of a test")
    return float(stats.beta.ppf(error, successes, trials - successes + 1)) if successes else 0.0


def one_run_bound(
    correct: int, guesses: int, canaries: int, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Epsilon's lower bound from guesses in a single run; 0 where they show nothing.

    Args:
        correct: how many of the guesses were right.
        guesses: how many were made; the auditor abstains from the others. Fixed before the coins are looked at.
        canaries: how many coins there were.
        delta: of the claim.
        confidence: of the bound.
    """
    from scipy.optimize import brentq

    error = 1 - confidence

    def excess(epsilon: float) -> float:
        return one_run_p_value(correct, guesses, canaries, epsilon, delta) - error

    if excess(0.0) >= 0:
        return 0.0
    return float(brentq(excess, 0.0, _MOST, xtol=1e-6))


def one_run_p_value(correct: int, guesses: int, canaries: int, epsilon: float, delta: float) -> float:
    """Most probable that `correct` or more guesses are right under (epsilon, delta)-DP can be.

    With delta = 0 the number of right guesses is dominated by a binomial one with the success rate of randomised
    response, q = 1 / (1 + e^-epsilon). Delta shifts that many outcomes, at a cost of 2 m delta in all: the worst
    shift moves the outcomes v - i .. v - 1 to v, and pays 2 m delta / i for each.
    """
    from scipy import stats

    if not 0 <= correct <= guesses <= canaries:
        raise ValueError(f"{correct} right of {guesses} guesses about {canaries} canaries is no outcome")
    q = 1 / (1 + math.exp(-epsilon))
    p = float(stats.binom.sf(correct - 1, guesses, q))
    if delta > 0 and correct:
        shifts = np.arange(1, correct + 1)
        below = np.cumsum(stats.binom.pmf(correct - shifts, guesses, q))
        p += 2 * canaries * delta * float((below / shifts).max())
    return min(p, 1.0)
