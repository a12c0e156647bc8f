"""Money laundering, from the last 30 transactions of an account, at five banks with other customers and currencies.

An account's transactions are a Markov chain over seven kinds; that of a laundering account prefers to pass money on
(in, then out or abroad) and to pay in cash in small amounts. Logarithms of amounts are normal around a mean of the
kind and the bank; but a laundering account's payment out after a payment in repeats, in 60 % of cases, what came in,
less a fee. Days between transactions are exponential, shorter in laundering. All of it has a density in closed form, so
the best possible prediction is Bayes' rule at the bank's own customers and currency.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulations.array_sources import ArraySet
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, log_posterior
from tacit.data.array_schema import ArraySchema

ROWS, STEPS = 8_000, 30
KINDS = ("salary", "transfer-in", "card", "transfer-out", "cash-in", "cash-out", "abroad")
CLASSES = ("ordinary", "laundering")
MEAN = np.array([7.8, 6.0, 3.5, 6.0, 5.5, 4.8, 6.3])  # of the logarithm of an amount
SPREAD = np.array([0.3, 1.0, 1.0, 1.0, 0.9, 0.6, 1.0])
USUAL = np.array([1.0, 1.5, 8.0, 2.0, 0.3, 1.5, 0.3])  # relative frequency of the kinds
IN, OUT = (1, 4), (3, 6)
PASSED_ON, FEE, PRECISION = 0.6, 0.05, 0.08
DAYS = (1.6, 1.2)  # mean time between transactions: ordinary, laundering


class Bank(NamedTuple):
    """How one bank differs.

    Attributes:
        share: of all accounts.
        laundering: share of its accounts.
        currency: added to the logarithm of every amount.
        customers: factor on the frequency of each kind.
    """

    share: float
    laundering: float
    currency: float
    customers: tuple[float, ...]


BANKS = {
    "national": Bank(0.36, 0.03, 0.0, (1, 1, 1, 1, 1, 1, 1)),
    "savings": Bank(0.26, 0.02, 0.0, (1.3, 0.8, 1.2, 0.8, 0.8, 1.5, 0.3)),
    "trade": Bank(0.16, 0.06, 0.5, (0.2, 2.5, 0.4, 2.5, 1.5, 0.5, 4)),
    "kroner": Bank(0.14, 0.03, 2.0, (1, 1, 1.2, 1, 0.3, 0.3, 1)),
    "private": Bank(0.08, 0.05, 1.0, (0.5, 1.5, 0.5, 1.5, 0.5, 0.3, 5)),
}


def schema() -> ArraySchema:
    """Each kind as a channel of 0 and 1, then the logarithm of the amount and that of 1 + days since the last one."""
    kinds = len(KINDS)
    return ArraySchema(
        shape=(kinds + 2, STEPS),
        classes=CLASSES,
        center=(*[0.0] * kinds, 5.0, 0.8),
        scale=(*[1.0] * kinds, 2.0, 0.5),
    )


def transitions(bank: Bank, laundering: int) -> Floats:
    """Probability of each kind after each kind, shape (kinds, kinds)."""
    p = np.tile(USUAL * np.array(bank.customers), (len(KINDS), 1))
    if laundering:
        p[np.ix_(IN, OUT)] *= 2.2
        p[:, IN[1]] *= 2.0
    return np.asarray(p / p.sum(1, keepdims=True))


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`."""
    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    banks = list(BANKS.values())
    at = drawn_sites(rows, {name: b.share for name, b in BANKS.items()}, rng)
    share = np.array([b.laundering for b in banks])[at]
    y = (rng.random(rows) < share).astype(np.int64)
    chains = np.array([[transitions(bank, c) for c in (0, 1)] for bank in banks])
    currency = np.array([b.currency for b in banks])[at]
    kind, amount = np.empty((rows, STEPS), int), np.empty((rows, STEPS))
    for t in range(STEPS):
        p = chains[at, y, kind[:, t - 1] if t else 2]  # as if a card payment came before
        kind[:, t] = (p.cumsum(1) < rng.random((rows, 1))).sum(1).clip(max=len(KINDS) - 1)
        amount[:, t] = rng.normal(MEAN[kind[:, t]] + currency, SPREAD[kind[:, t]])
        if t:
            repeats = _passes_on(kind, t) & (y == 1) & (rng.random(rows) < PASSED_ON)
            amount[repeats, t] = rng.normal(amount[repeats, t - 1] - FEE, PRECISION)
    days = rng.exponential(np.array(DAYS)[y][:, None], (rows, STEPS))
    likelihood = np.column_stack(
        [_log_likelihood(kind, amount, days, at, currency, c, chains) for c in (0, 1)]
    )
    truth = log_posterior(likelihood, np.column_stack([1 - share, share]))
    x = np.concatenate(
        [np.eye(len(KINDS))[kind].transpose(0, 2, 1), amount[:, None], np.log1p(days)[:, None]], 1
    )
    return ArraySet(x.astype(np.float32), y, schema(), np.array(list(BANKS))[at], truth=truth)


def _passes_on(kind: NDArray[np.int64], t: int) -> NDArray[np.bool_]:
    """Whether transaction t pays out what t - 1 paid in."""
    return np.asarray(np.isin(kind[:, t - 1], IN) & np.isin(kind[:, t], OUT))


def _log_likelihood(
    kind: NDArray[np.int64],
    amount: Floats,
    days: Floats,
    at: NDArray[np.int64],
    currency: Floats,
    laundering: int,
    chains: Floats,
) -> Floats:
    """Of each account's history under one class, shape (rows,)."""
    total = np.asarray(-days.sum(1) / DAYS[laundering] - STEPS * np.log(DAYS[laundering]))
    for t in range(STEPS):
        before = kind[:, t - 1] if t else np.full(len(kind), 2)
        total = total + np.log(chains[at, laundering, before, kind[:, t]])
        density = _normal(amount[:, t], MEAN[kind[:, t]] + currency, SPREAD[kind[:, t]])
        if t and laundering:
            same = _normal(amount[:, t], amount[:, t - 1] - FEE, np.full(len(kind), PRECISION))
            density = np.where(_passes_on(kind, t), PASSED_ON * same + (1 - PASSED_ON) * density, density)
        total = total + np.log(density)
    return total


def _normal(x: Floats, mean: Floats, spread: Floats) -> Floats:
    """Density, bounded away from 0 so that its logarithm is finite."""
    return np.asarray(np.exp(-0.5 * ((x - mean) / spread) ** 2) / spread + 1e-300)


STORY = Story(
    name="money_laundering",
    field="finance",
    title="Which accounts pass money on, when no bank sees more than its own few cases?",
    data="generated: one record is one account, its last 30 transactions",
    sites="five banks; other customers and currencies, 2 to 6 % of accounts launder",
    measured="AUROC on all held-out accounts",
    truth="Bayes' rule on the whole history, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=1500", "training.rounds=3", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
