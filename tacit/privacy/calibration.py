"""How much noise a budget needs: the search behind a plan."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Final

from tacit.errors import ConfigError
from tacit.privacy.accountant import Event, epsilon_claimed, grid

_MAX_NOISE: Final = 1e6
_TOLERANCE: Final = 0.005  # of the target: how much of a budget may stay unused


def calibrate(releases: Callable[[float], tuple[Event, ...]], epsilon: float, delta: float) -> float:
    """The least noise multiplier, to a fraction of a per cent, with which `releases` cost at most `epsilon`.

    The search is on a coarse grid, whose figures are above the true ones. The fine grid has the last word:
    where it shows that budget is left over, some secant steps, in logarithms, use it up.
    """
    fine = grid(epsilon)

    def log_cost(log_noise: float, interval: float) -> float:
        return _log(epsilon_claimed(releases(math.exp(log_noise)), delta, interval))

    wanted = _log((1 - _TOLERANCE / 2) * epsilon)
    x = _root(lambda x: log_cost(x, 10 * fine) - _log(epsilon), start=4.0 * max(1.0, 1 / epsilon))
    y = log_cost(x, fine)
    slope = -1.0
    for _ in range(5):
        if abs(y - wanted) < _TOLERANCE / 2:
            break
        x_next = x + min(max((wanted - y) / slope, -0.2), 0.2)
        y_next = log_cost(x_next, fine)
        slope = min((y_next - y) / (x_next - x), -0.1)
        x, y = x_next, y_next
    step = _TOLERANCE / 5
    while epsilon_claimed(releases(math.exp(x)), delta, fine) > epsilon:
        x, step = x + step, 2 * step
    return math.exp(x)


def _root(excess: Callable[[float], float], start: float) -> float:
    """Where a falling function of the logarithm of the noise multiplier is zero.

    Raises:
        ConfigError: not even the largest noise is enough, because the other releases cost too much.
    """
    from scipy.optimize import brentq

    # From above: little noise has losses over a wide range, and they take long to compute.
    high = math.log(start)
    while excess(high) > 0:
        high += math.log(2.0)
        if high > math.log(_MAX_NOISE):
            raise ConfigError("no amount of noise keeps the privacy budget for these releases")
    low = high - math.log(1.5)
    while excess(low) <= 0:
        low, high = low - math.log(1.5), low
    return float(brentq(excess, low, high, xtol=1e-4))


def _log(epsilon: float) -> float:
    """The logarithm, also of a cost of zero or infinity."""
    return math.log(min(max(epsilon, 1e-12), 1e12))
