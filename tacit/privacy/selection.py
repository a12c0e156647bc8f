"""What it costs to publish the best of several private runs: the number of runs is drawn, and nobody is told it.

Papernot and Steinke, "Hyperparameter Tuning with Renyi Differential Privacy" (ICLR 2022, arXiv 2110.03620). A run Q
draws hyperparameters, trains, and gives what it releases; outputs are ordered by a score that Q releases too. K
runs are made, K from the truncated negative binomial distribution of Definition 1, and the best output is published.
Theorem 2: where Q is (a, e)-RDP and (b, f)-RDP, this is (a, e')-RDP with

    e' = e + (1 + eta) (1 - 1/b) f + (1 + eta) log(1/gamma) / b + log(E[K]) / (a - 1)

dp-accounting computes that bound at all orders a with the best b. K = 1, 2, ..., so there always is a best one; the
paper's Poisson distribution (Theorem 6) may give K = 0, and nothing to publish.

Guarantees:
    The number of trials follows the distribution that its cost is computed for, drawn by the operating system.
    The epsilon of the best trial is an upper bound for everything that this trial's plan releases.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import cached_property
from typing import Final

from tacit.privacy.accountant import Event, rdp_orders

UNIFORM: Final = secrets.SystemRandom().random
LEAST_LOG_GAMMA: Final = -700.0  # exp of it is still a number


@dataclass(frozen=True)
class NumTrials:
    """The distribution of K, the number of runs: truncated negative binomial, K = 1, 2, ...

    Attributes:
        mean: E[K], above 1.
        eta: shape, 0 or more; 1 = geometric, 0 = logarithmic. A smaller one costs less and has a heavier tail.
    """

    mean: float
    eta: float = 1.0

    def __post_init__(self) -> None:
        if not (1 < self.mean < 1e9 and 0 <= self.eta <= 100):
            raise ValueError(f"no number of trials has a mean of {self.mean} and a shape of {self.eta}")

    @cached_property
    def log_gamma(self) -> float:
        """Logarithm of gamma, the chance to stop: the one with this mean."""
        from scipy.optimize import brentq

        return float(brentq(lambda t: math.log(self._mean_at(t) / self.mean), LEAST_LOG_GAMMA, -1e-12))

    def _mean_at(self, t: float) -> float:
        """E[K] = eta (1/gamma - 1) / (1 - gamma**eta), of eta = 0 (1/gamma - 1) / log(1/gamma); t = log(gamma)."""
        return math.expm1(-t) * (self.eta / -math.expm1(self.eta * t) if self.eta else -1 / t)

    def draw(self, uniform: Callable[[], float] = UNIFORM) -> int:
        """One K, by inversion.

        Args:
            uniform: gives a number in [0, 1).
        """
        t, eta = self.log_gamma, self.eta
        u, k, goes_on = uniform(), 1, -math.expm1(t)  # 1 - gamma
        chance = goes_on * (eta / math.expm1(-eta * t) if eta else -1 / t)
        below = chance
        while u >= below and chance > 0:
            chance *= goes_on * (k + eta) / (k + 1)
            below, k = below + chance, k + 1
        return k


def epsilon_of_best(event: Event | Iterable[Event], delta: float, trials: NumTrials) -> float:
    """Epsilon at `delta` of publishing all that the best of `trials` runs has released.

    Args:
        event: what one run releases, all of it: also what the runs are compared by.
        delta: in (0, 1).
        trials: distribution of their number. The runs are independent of each other, and alike.

    Returns:
        Upper bound by Renyi DP (Theorem 2 of the paper, conversion as in `tacit.privacy.accountant`).
    """
    import dp_accounting
    from dp_accounting.rdp import RdpAccountant

    events = [event] if isinstance(event, Event) else list(event)
    if not 0 < delta < 1:
        raise ValueError(f"delta is within (0, 1), not {delta}")
    run = dp_accounting.ComposedDpEvent([one.to_dp_event() for one in events])
    accountant = RdpAccountant(rdp_orders(events))
    accountant.compose(dp_accounting.dp_event.RepeatAndSelectDpEvent(run, trials.mean, trials.eta))
    return float(accountant.get_epsilon(delta))
