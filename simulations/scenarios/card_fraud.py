"""Card fraud at six banks: 0.2 to 2 % of payments, other merchants, a pattern that drifts, and a bank that joins late.

A payment in month m = 1 ... 12 is fraud with probability sigmoid(b_bank + f_m(x)), where f_m moves in a straight
line from January's pattern (foreign, far away, with the card present) to December's (online, at night, in quick
succession). b_bank makes the bank's share exact. Months 1 to 9 are for training, 10 to 12 for testing, so a model is
always tested on a pattern that it has not quite seen. The newest bank opened in July and has no earlier payments.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, intercept_for, sigmoid
from tacit.data.schema import CategoricalColumn, Column, NumericColumn, Schema

if TYPE_CHECKING:
    from pandas import DataFrame

ROWS = 60_000
MONTHS, LAST_TRAINING_MONTH = 12, 9
MERCHANTS = {"groceries": -0.6, "fuel": -0.3, "clothes": 0.0, "travel": 0.5, "games": 0.9, "gift-cards": 1.4}
JANUARY = {"abroad": 1.9, "far": 0.5, "online": 0.3, "night": 0.3, "quick": 0.2, "amount": 0.5}
DECEMBER = {"abroad": 0.6, "far": 0.1, "online": 1.8, "night": 1.1, "quick": 0.7, "amount": 0.5}


class Bank(NamedTuple):
    """How one bank differs.

    Attributes:
        share: of all payments.
        fraud: share of its payments that are fraud.
        opens: its first month.
        online: share of its payments that are online.
        mix: relative frequency of the merchants.
    """

    share: float
    fraud: float
    opens: int
    online: float
    mix: tuple[float, ...]


BANKS = {
    "national": Bank(0.32, 0.006, 1, 0.35, (5, 3, 3, 1, 1, 0.3)),
    "savings": Bank(0.22, 0.002, 1, 0.20, (8, 4, 2, 0.5, 0.3, 0.1)),
    "travel-card": Bank(0.14, 0.020, 1, 0.45, (1, 1, 2, 6, 1, 0.5)),
    "students": Bank(0.12, 0.010, 1, 0.60, (3, 1, 3, 1, 4, 1)),
    "private": Bank(0.10, 0.004, 1, 0.40, (2, 2, 5, 4, 0.3, 0.3)),
    "neobank": Bank(0.10, 0.015, 7, 0.70, (2, 1, 3, 2, 3, 2)),
}


def schema() -> Schema:
    """Constants are round figures of card payments."""

    def flag() -> NumericColumn:
        return NumericColumn(kind="numeric", center=0.5, scale=0.5, range=(0.0, 1.0))

    columns: dict[str, Column] = {
        "amount": NumericColumn(kind="numeric", transform="log", range=(0.0, 5000.0)),
        "distance_km": NumericColumn(kind="numeric", transform="log", range=(0.0, 10_000.0)),
        "minutes_since_last": NumericColumn(kind="numeric", transform="log", range=(0.0, 20_000.0)),
        "abroad": flag(),
        "online": flag(),
        "night": flag(),
        "merchant": CategoricalColumn(kind="categorical", categories=tuple(MERCHANTS)),
    }
    return Schema(label="fraud", columns=columns, site="bank", split="split")


def generate(rows: int, seed: int) -> tuple[DataFrame, Schema]:
    """See `Story.table`."""
    import pandas as pd

    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    banks = list(BANKS.values())
    at = drawn_sites(rows, {name: b.share for name, b in BANKS.items()}, rng)
    opens = np.array([b.opens for b in banks])[at]
    month = rng.integers(opens, MONTHS + 1)
    mixes = np.array([np.array(b.mix) / sum(b.mix) for b in banks])
    merchant = (mixes[at].cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=len(MERCHANTS) - 1)
    online = rng.random(rows) < np.array([b.online for b in banks])[at]
    abroad = rng.random(rows) < 0.06
    x = {
        "amount": np.exp(rng.normal(3.3, 1.1, rows)).round(2),
        "distance_km": np.exp(rng.normal(np.where(abroad, 6.0, 2.0), 1.0)).round(1),
        "minutes_since_last": np.exp(rng.normal(6.0, 1.8, rows)).round(1),
        "abroad": abroad.astype(float),
        "online": online.astype(float),
        "night": (rng.random(rows) < 0.12).astype(float),
    }
    logits = _logits(x, month) + np.array(list(MERCHANTS.values()))[merchant]
    truth = np.empty(rows)
    for i, bank in enumerate(banks):
        there = at == i
        if there.any():
            truth[there] = sigmoid(logits[there] + intercept_for(logits[there], bank.fraud))
    frame = pd.DataFrame(
        {
            "bank": np.array(list(BANKS))[at],
            "month": month,
            **x,
            "merchant": np.array(list(MERCHANTS))[merchant],
            "fraud": (rng.random(rows) < truth).astype(int),
            "truth": truth,
            "split": np.where(month <= LAST_TRAINING_MONTH, "train", "test"),
        }
    )
    return frame, schema()


def _logits(x: dict[str, Floats], month: NDArray[np.int64]) -> Floats:
    """What a payment's features add to the logit of fraud in its month."""
    late = (month - 1) / (MONTHS - 1)
    signs = {
        "abroad": x["abroad"],
        "far": np.log1p(x["distance_km"]) / 2,
        "online": x["online"],
        "night": x["night"],
        "quick": np.maximum(5.0 - np.log1p(x["minutes_since_last"]), 0.0),
        "amount": np.log1p(x["amount"]) - 3.3,
    }
    return np.asarray(sum(s * (JANUARY[n] + late * (DECEMBER[n] - JANUARY[n])) for n, s in signs.items()))


STORY = Story(
    name="card_fraud",
    field="finance",
    title="Do banks see a fraud pattern earlier together, when each has few cases and the pattern drifts?",
    data="generated: one row is one card payment; months 1-9 for training, 10-12 for testing",
    sites="six banks; 0.2 to 2 % fraud, other merchants, more or less online; one that opened in month 7",
    measured="AUROC on the payments of the last three months",
    truth="the probability that each label was drawn with, drift included, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=8000", "training.rounds=20", "training.local_steps=1", "checkpoints.keep=1", IDEAL),
    table=generate,
)
