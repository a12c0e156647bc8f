"""Deterioration on an intensive care unit, from a day of vital signs that each hospital samples in its own way.

In units of each sign's own spread, a patient of class y in {0, 1} has z_c(t) = y d_c (t / 23)^2 + e_c(t), where e_c is
a stationary autoregression of order one with correlation 0.8 an hour. A sign is measured in hour t with a
probability that depends on hospital, sign, and y, because nurses look at a sick patient more often: so a missing
value says something too.

The best possible prediction is Bayes' rule on what was measured and when. The autoregression is Markov, so the
likelihood is a product over consecutive measurements, w hours apart, of normal densities with mean 0.8^w times the
last residual and variance 1 - 0.8^(2w); times the probability of the pattern of measurements itself.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from simulations.array_sources import ArraySet
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites, log_posterior
from tacit.data.array_schema import ArraySchema

ROWS, HOURS = 8_000, 24
RHO = 0.8
# heart rate, systolic pressure, breaths a minute, oxygen saturation, temperature, lactate
CENTER = (85.0, 120.0, 18.0, 96.0, 37.0, 1.5)
SCALE = (15.0, 18.0, 4.0, 2.0, 0.6, 0.6)
EFFECT = np.array([0.45, -0.35, 0.5, -0.3, 0.2, 0.55])  # d_c
CLASSES = ("stable", "deteriorates")


class Hospital(NamedTuple):
    """How one hospital differs.

    Attributes:
        share: of all patients.
        sick: share of its patients who deteriorate.
        monitored: probability that a sign is measured in an hour; laboratory values at a fifth of it.
        alert: what that is multiplied by for a patient who deteriorates.
    """

    share: float
    sick: float
    monitored: float
    alert: float


HOSPITALS = {
    "university": Hospital(0.35, 0.20, 0.75, 1.05),
    "city": Hospital(0.25, 0.15, 0.50, 1.10),
    "county": Hospital(0.20, 0.12, 0.30, 1.20),
    "surgical": Hospital(0.12, 0.08, 0.65, 1.02),
    "rural": Hospital(0.08, 0.10, 0.18, 1.30),
}
RELATIVE = np.array([1.0, 1.0, 0.8, 1.0, 0.35, 0.2])  # how often each sign is measured


def schema() -> ArraySchema:
    """Center and scale are the textbook values of adults; an empty hour is told to the model."""
    return ArraySchema(
        shape=(len(EFFECT), HOURS), classes=CLASSES, center=CENTER, scale=SCALE, missing="indicator"
    )


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`."""
    rng = np.random.default_rng(seed)
    rows = rows or ROWS
    hospitals = list(HOSPITALS.values())
    at = drawn_sites(rows, {name: h.share for name, h in HOSPITALS.items()}, rng)
    sick = np.array([h.sick for h in hospitals])[at]
    y = (rng.random(rows) < sick).astype(np.int64)
    e = np.empty((rows, len(EFFECT), HOURS))
    e[..., 0] = rng.normal(size=e.shape[:2])
    for t in range(1, HOURS):
        e[..., t] = RHO * e[..., t - 1] + np.sqrt(1 - RHO**2) * rng.normal(size=e.shape[:2])
    z = y[:, None, None] * _drift() + e
    measured = rng.random(z.shape) < _rates(at)[y, np.arange(rows)][:, :, None]
    likelihood = _log_likelihood(z, measured, _rates(at))
    truth = log_posterior(likelihood, np.column_stack([1 - sick, sick]))
    x = np.array(CENTER)[:, None] + np.array(SCALE)[:, None] * z
    x = np.where(measured, x, np.nan).astype(np.float32)
    return ArraySet(x, y, schema(), np.array(list(HOSPITALS))[at], truth=truth)


def _drift() -> Floats:
    """What deterioration adds to each sign over the hours, shape (signs, HOURS)."""
    return np.outer(EFFECT, (np.arange(HOURS) / (HOURS - 1)) ** 2)


def _rates(at: NDArray[np.int64]) -> Floats:
    """Probability that a sign is measured in an hour, shape (classes, rows, signs)."""
    hospitals = list(HOSPITALS.values())
    base = np.array([h.monitored for h in hospitals])[at]
    alert = np.array([h.alert for h in hospitals])[at]
    return np.stack(
        [np.outer(base * factor, RELATIVE).clip(max=0.98) for factor in (np.ones(len(at)), alert)]
    )


def _log_likelihood(z: Floats, measured: NDArray[np.bool_], rates: Floats) -> Floats:
    """Of each patient's record under both classes, shape (rows, 2)."""
    columns = []
    for y in (0, 1):
        residual = z - y * _drift()
        last, since = np.zeros(z.shape[:2]), np.full(z.shape[:2], np.inf)
        total = np.zeros(z.shape[:2])
        for t in range(HOURS):
            here, since = measured[..., t], since + 1
            decay = RHO**since  # 0 before the first measurement
            variance = 1 - decay**2
            density = -0.5 * (np.log(variance) + (residual[..., t] - decay * last) ** 2 / variance)
            total += np.where(here, density + np.log(rates[y]), np.log1p(-rates[y]))
            last, since = np.where(here, residual[..., t], last), np.where(here, 0.0, since)
        columns.append(total.sum(1))
    return np.column_stack(columns)


STORY = Story(
    name="icu_vitals",
    field="healthcare",
    title="Who will deteriorate, from a day of vital signs that each hospital measures in its own way?",
    data="generated: one record is one patient's day, six signs by 24 hours",
    sites="five hospitals; signs measured in 18 to 75 % of the hours, sick patients more often, 8 to 20 % of them sick",
    measured="AUROC on all held-out patients",
    truth="Bayes' rule on what was measured and when, exact: its AUROC is the best achievable",
    metric="auroc",
    ci=("data.rows=1500", "training.rounds=3", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
