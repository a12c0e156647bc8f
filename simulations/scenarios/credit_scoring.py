"""Credit scoring across five regions that differ in income and unemployment, with a column for fairness.

With the coefficients below, a loan is not repaid with probability sigmoid(b_region + f(x)); b_region is what the
region's economy adds, and makes the region's share of bad loans exact. `group` is no feature and not in f: two groups
of the same merit differ in what their features look like, because one has lower income and a shorter history. So the
best possible score treats equal features equally, and still rejects the groups at different rates.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, intercept_for, sigmoid
from tacit.data.schema import CategoricalColumn, Column, NumericColumn, Schema

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 24_000
WORK = {"permanent": 0.0, "temporary": 0.5, "self-employed": 0.35, "none": 1.1}  # effect on the logit


class Region(NamedTuple):
    """How one regional bank differs.

    Attributes:
        share: of all loans.
        bad: share of its loans that are not repaid.
        income: median yearly income, in thousands.
        minority: share of its customers in group B.
        work: relative frequency of the kinds of work.
    """

    share: float
    bad: float
    income: float
    minority: float
    work: tuple[float, ...]


REGIONS = {
    "capital": Region(0.32, 0.06, 46, 0.35, (6, 1, 2, 0.4)),
    "north": Region(0.24, 0.10, 34, 0.15, (6, 2, 1, 0.7)),
    "coast": Region(0.18, 0.09, 30, 0.20, (3, 4, 2, 0.6)),
    "industry": Region(0.16, 0.15, 28, 0.30, (5, 2, 0.5, 1.5)),
    "mountains": Region(0.10, 0.05, 26, 0.05, (4, 1, 3, 0.3)),
}


def schema() -> Schema:
    """Constants are round figures of retail lending; `group` is not among the columns that a model sees."""
    columns: dict[str, Column] = {
        "income": NumericColumn(kind="numeric", transform="log", range=(5.0, 250.0)),
        "debt_ratio": NumericColumn(kind="numeric", center=0.3, scale=0.2, range=(0.0, 1.5)),
        "utilisation": NumericColumn(kind="numeric", center=0.4, scale=0.3, range=(0.0, 1.2)),
        "late_payments": NumericColumn(kind="numeric", center=0.5, scale=1.0, range=(0.0, 10.0)),
        "history_years": NumericColumn(kind="numeric", center=8.0, scale=6.0, range=(0.0, 40.0)),
        "work": CategoricalColumn(kind="categorical", categories=tuple(WORK)),
    }
    return Schema(label="bad", columns=columns, site="region")


def generate(rows: int, seed: int) -> tuple[DataFrame, Schema]:
    """See `Story.table`."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    regions = list(REGIONS.values())
    at = drawn_sites(rows, {name: r.share for name, r in REGIONS.items()}, rng)
    group = rng.random(rows) < np.array([r.minority for r in regions])[at]
    mixes = np.array([np.array(r.work) / sum(r.work) for r in regions])
    work = (mixes[at].cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=len(WORK) - 1)
    income = np.array([r.income for r in regions])[at] * np.exp(rng.normal(-0.25 * group, 0.45))
    x = {
        "income": income.round(1),
        "debt_ratio": (rng.gamma(2.5, 0.12, rows)).clip(0, 1.5).round(3),
        "utilisation": rng.beta(1.2, 1.8, rows).round(3),
        "late_payments": rng.poisson(0.5 + 0.2 * (work == len(WORK) - 1)).astype(float),
        "history_years": rng.gamma(2.0, np.where(group, 2.8, 4.2)).clip(0, 40).round(1),
    }
    logits = _logits(x) + np.array(list(WORK.values()))[work]
    truth = np.empty(rows)
    for i, region in enumerate(regions):
        there = at == i
        if there.any():
            truth[there] = sigmoid(logits[there] + intercept_for(logits[there], region.bad))
    frame = pd.DataFrame(
        {
            "region": np.array(list(REGIONS))[at],
            "group": np.where(group, "B", "A"),
            **x,
            "work": np.array(list(WORK))[work],
            "bad": (rng.random(rows) < truth).astype(int),
            "truth": truth,
        }
    )
    return frame, schema()


def _logits(x: dict[str, Floats]) -> Floats:
    """What the features add to the logit of a bad loan."""
    used = x["utilisation"]
    return np.asarray(
        -0.7 * np.log(x["income"] / 32)
        + 1.8 * x["debt_ratio"]
        + 0.8 * used
        + 2.0 * np.maximum(used - 0.7, 0) / 0.3  # a limit nearly used up
        + 0.7 * np.minimum(x["late_payments"], 4)
        - 0.06 * x["history_years"]
    )


STORY = Story(
    name="credit_scoring",
    field="finance",
    title="Do regional banks that lend to different people gain from a common score, and is it fair?",
    data="generated: one row is one loan",
    sites="five regions; other incomes, work and unemployment, 5 to 15 % of loans bad, 5 to 35 % of people in group B",
    measured="AUROC on all held-out loans; AUROC and share of rejected loans by group",
    truth="the probability that each label was drawn with, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=3000", "training.rounds=6", "checkpoints.keep=1", IDEAL),
    table=generate,
    group="group",
)
