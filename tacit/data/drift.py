"""Whether a column still looks as it did: the population stability index, and how much of it is chance.

With p and q the shares of the reference and of today in each bin, PSI = sum (q - p) ln(q / p), the two Kullback-Leibler
divergences together (Siddiqi 2006, Credit Risk Scorecards). 0.1 and 0.25 are conventions for large samples.

Where nothing has changed, write p = t + a and q = t + b around the common share t: (q - p) ln(q / p) is (b - a)^2 / t
in second order. For counts of m and n records that sum over B bins is (1/m + 1/n) times a chi-square variable of B - 1
degrees of freedom, so chance alone gives (B - 1)(1/m + 1/n) on average (Yurdakul 2018, Statistical Properties of
Population Stability Index). A few records reach 0.25 by that alone.

The logarithm makes PSI exceed that variable's quantile too often where bins have a few records; Pearson's statistic of
the same counts does where they have less than one. What exceeds both is called more than chance.
"""

from __future__ import annotations

from typing import Final, Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

WATCH, DRIFTED = 0.1, 0.25  # convention, not law
CONFIDENCE: Final = 0.999  # of the chi-square quantile that chance stays below
BINS: Final = 10

State = Literal["stable", "watch", "drifted", "chance"]
Bins = NDArray[np.int64]


class Drift(NamedTuple):
    """How far one column has moved.

    Attributes:
        psi: population stability index, 0 or more.
        expected: what it is on average where nothing has changed.
        by_chance: the chi-square quantile that it stays below in about 999 of 1000 cases where nothing has changed.
        beyond_chance: whether it is above, and Pearson's statistic too.
    """

    psi: float
    expected: float
    by_chance: float
    beyond_chance: bool

    @property
    def state(self) -> State:
        """By the thresholds; "chance" is above one of them, and no more than chance gives."""
        if self.psi <= WATCH:
            return "stable"
        if not self.beyond_chance:
            return "chance"
        return "watch" if self.psi <= DRIFTED else "drifted"


def drift(reference: Bins, current: Bins) -> Drift:
    """PSI of two columns that are cut into the same bins.

    A bin that is empty on one side counts there as half a record; one that is empty on both is none.

    Args:
        reference: bin of each record then, shape (m,), m > 0; any whole numbers.
        current: of each record now, shape (n,), n > 0.
    """
    from scipy.stats import chi2

    _, bins = np.unique(np.concatenate([reference, current]), return_inverse=True)
    num_bins, m, n = int(bins.max()) + 1, len(reference), len(current)
    then, now = np.bincount(bins[:m], minlength=num_bins), np.bincount(bins[m:], minlength=num_bins)
    p, q = np.maximum(then, 0.5) / m, np.maximum(now, 0.5) / n
    psi, unit = float(((q - p) * np.log(q / p)).sum()), 1 / m + 1 / n
    quantile = float(chi2.ppf(CONFIDENCE, num_bins - 1)) if num_bins > 1 else 0.0
    pearson = float(((then / m - now / n) ** 2 / (then + now)).sum()) * m * n
    beyond = psi > unit * quantile and pearson > quantile
    return Drift(psi, (num_bins - 1) * unit, unit * quantile, beyond)


def cut(reference: NDArray[np.float64], current: NDArray[np.float64]) -> tuple[Bins, Bins]:
    """Bins of two columns of numbers: the reference's deciles, and one more, -1, for an empty cell (NaN).

    A value that makes up a decile or more, as zero often does, is a bin of its own: what leaves it is seen
    on either side.
    """
    present = reference[~np.isnan(reference)]
    if not present.size:
        edges = np.empty(0)
    else:
        ends = np.quantile(present, np.arange(1, BINS) / BINS, method="lower")
        values, times = np.unique(ends, return_counts=True)
        edges = np.unique(np.concatenate([values, np.nextafter(values[times > 1], -np.inf)]))

    def bins(x: NDArray[np.float64]) -> Bins:
        return np.where(np.isnan(x), -1, np.searchsorted(edges, x, side="left"))

    return bins(reference), bins(current)
