"""How much of a defaulted loan is lost: eight banks, each with too few defaults to say.

Banks pool such losses in data consortia because defaults are rare. A loan with features x is recovered in full with
probability q(x); otherwise the share lost is Beta-distributed with mean m(x) and a + b = 4. So E[loss | x] =
(1 - q(x)) m(x) is known exactly, and so is the smallest possible error.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulations.array_sources import ArraySet
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, sigmoid
from tacit.data.array_schema import ArraySchema

ROWS = 3_200
# loan to value, seniority (0 or 1), guarantee (0 or 1), log of exposure, growth of the economy in %, months overdue
CENTER = (0.9, 0.5, 0.5, 12.0, 1.0, 6.0)
SCALE = (0.4, 0.5, 0.5, 1.5, 2.5, 5.0)
CONCENTRATION = 4.0


class Bank(NamedTuple):
    """How one bank differs.

    Attributes:
        share: of all defaults.
        value: mean loan to value.
        senior: share of its loans that are senior.
        guaranteed: share of its loans with a guarantee.
        exposure: mean of the logarithm of the exposure.
        growth: mean growth of its economy, in per cent.
    """

    share: float
    value: float
    senior: float
    guaranteed: float
    exposure: float
    growth: float


BANKS = {
    "global": Bank(0.34, 0.8, 0.7, 0.4, 13.5, 1.5),
    "mortgage": Bank(0.20, 0.7, 0.9, 0.2, 12.0, 1.0),
    "trade": Bank(0.13, 1.1, 0.5, 0.6, 13.0, 2.5),
    "leasing": Bank(0.10, 1.0, 0.8, 0.1, 11.0, 1.0),
    "ships": Bank(0.08, 1.2, 0.9, 0.3, 15.0, 0.5),
    "cooperative": Bank(0.07, 0.8, 0.5, 0.7, 11.0, 0.5),
    "development": Bank(0.05, 1.3, 0.4, 0.9, 13.0, 4.0),
    "regional": Bank(0.03, 0.9, 0.6, 0.5, 11.5, -1.0),
}


def schema() -> ArraySchema:
    """Constants are round figures of corporate lending; a share lost lies between 0 and 1."""
    return ArraySchema(
        shape=(len(CENTER),),
        outputs=1,
        center=CENTER,
        scale=SCALE,
        clip=3.0,
        target_center=0.35,
        target_scale=0.35,
    )


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`."""
    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    banks = list(BANKS.values())
    at = drawn_sites(rows, {name: b.share for name, b in BANKS.items()}, rng)
    value, senior, guaranteed, exposure, growth = (
        np.array([b[i] for b in banks])[at] for i in range(1, len(Bank._fields))
    )
    x = np.column_stack(
        [
            value * np.exp(rng.normal(0, 0.35, rows)),
            rng.random(rows) < senior,
            rng.random(rows) < guaranteed,
            rng.normal(exposure, 1.0),
            rng.normal(growth, 2.0),
            rng.gamma(2.0, 3.0, rows),
        ]
    )
    recovered, mean = _recovered(x), _mean(x)
    lost = rng.beta(CONCENTRATION * mean, CONCENTRATION * (1 - mean))
    y = np.where(rng.random(rows) < recovered, 0.0, lost)
    truth = ((1 - recovered) * mean)[:, None]
    return ArraySet(x.astype(np.float32), y[:, None], schema(), np.array(list(BANKS))[at], truth=truth)


def _recovered(x: Floats) -> Floats:
    """Probability that nothing is lost, shape (rows,)."""
    value, senior, guaranteed, _, growth, overdue = x.T
    return sigmoid(0.2 - 2.5 * (value - 0.9) + 0.8 * senior + 1.2 * guaranteed + 0.2 * growth - 0.1 * overdue)


def _mean(x: Floats) -> Floats:
    """Expected share lost where something is, shape (rows,)."""
    value, senior, _, exposure, growth, overdue = x.T
    steep = 2.5 * np.maximum(value - 0.8, 0.0) - 1.2 * senior + 0.06 * (overdue - 6)
    return sigmoid(-0.2 + steep - 0.12 * growth - 0.2 * (exposure - 12))


STORY = Story(
    name="loss_given_default",
    field="finance",
    title="How much of a defaulted loan is lost, when each bank has too few defaults to know?",
    data="generated: one record is one defaulted loan, six numbers",
    sites="eight banks with 100 to 1100 defaults; other collateral, seniority, sizes and economies",
    measured="R2 of the share lost on all held-out loans",
    truth="the expected share given the six numbers, exact: its R2 is the best achievable",
    metric="r2",
    ci=("data.rows=1200", "training.rounds=8", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
