"""Tomorrow's volatility on four trading desks, from the last 22 days of an asset and of the market.

The logarithm of realised variance follows a heterogeneous autoregression (Corsi 2009) with spill-over from the market:

    r(t+1) = (1 - b_d - b_w - b_m) m + b_d r(t) + b_w mean of 5 days + b_m mean of 22 days + g n(t) + s e(t),

where n is the market's own deviation from its mean, which follows the same equation, and e is standard normal. So the
expected value given the 22 days is known exactly, and s^2 is the smallest possible mean squared error. Each window of
23 days is one record and windows do not overlap, so that one day of one asset is in one record.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from simulations.array_sources import ArraySet
from simulations.scenarios.story import IDEAL, Floats, Story, drawn_sites
from tacit.data.array_schema import ArraySchema

ROWS, DAYS = 6_000, 22
WINDOWS = 20  # of each asset; the last quarter of them for testing
WARM_UP = 200  # days before the first window, which forget where the recursion began
MARKET = (0.36, 0.32, 0.25)


class Desk(NamedTuple):
    """How one desk's assets differ.

    Attributes:
        share: of all assets.
        mean: of the logarithm of daily variance, in squared per cent.
        persistence: weight of the last day, week and month.
        spill: what the market's last day adds.
        noise: standard deviation of what nobody can know.
    """

    share: float
    mean: float
    persistence: tuple[float, float, float]
    spill: float
    noise: float


DESKS = {
    "equities": Desk(0.40, 0.5, (0.38, 0.30, 0.20), 0.15, 0.45),
    "currencies": Desk(0.25, -1.0, (0.30, 0.35, 0.25), 0.08, 0.40),
    "rates": Desk(0.20, -1.8, (0.25, 0.30, 0.30), 0.05, 0.50),
    "commodities": Desk(0.15, 1.0, (0.42, 0.25, 0.15), 0.05, 0.60),
}


def schema() -> ArraySchema:
    """Both channels and the target are logarithms of variances, which lie around 0."""
    return ArraySchema(
        shape=(2, DAYS), outputs=1, center=-0.2, scale=1.5, clip=4.0, target_center=-0.2, target_scale=1.5
    )


def generate(rows: int, seed: int) -> ArraySet:
    """See `Story.arrays`; `rows` is rounded up to whole assets."""
    rng = np.random.default_rng(seed)
    assets = -(-(rows or ROWS) // WINDOWS)
    desks = list(DESKS.values())
    at = drawn_sites(assets, {name: d.share for name, d in DESKS.items()}, rng)
    days = WARM_UP + WINDOWS * (DAYS + 1)
    market = _series(np.zeros(1), np.array([MARKET]), np.zeros((1, days)), 0.35 * rng.normal(size=(1, days)))
    mean, spill, noise = (np.array([d[i] for d in desks])[at] for i in (1, 3, 4))
    weights = np.array([d.persistence for d in desks])[at]
    known = spill[:, None] * np.roll(market, 1, axis=1)
    own = _series(mean, weights, known, noise[:, None] * rng.normal(size=(assets, days)))
    shape = (assets, WINDOWS, DAYS + 1)
    windows = own[:, WARM_UP:].reshape(shape)
    beside = np.broadcast_to(market[:, WARM_UP:], (assets, days - WARM_UP)).reshape(shape)
    x = np.stack([windows[..., :DAYS], beside[..., :DAYS]], axis=2)
    expected = (
        _next(windows[..., :DAYS], mean[:, None], weights[:, None]) + spill[:, None] * beside[..., DAYS - 1]
    )
    split = np.where(np.arange(WINDOWS) < WINDOWS * 3 // 4, "train", "test")
    return ArraySet(
        x.reshape(-1, 2, DAYS).astype(np.float32),
        windows[..., DAYS].reshape(-1, 1),
        schema(),
        np.repeat(np.array(list(DESKS))[at], WINDOWS),
        np.tile(split, assets),
        expected.reshape(-1, 1),
    )


def _next(past: Floats, mean: Floats, weights: Floats) -> Floats:
    """The regression on the last day, week and month of `past`, shape (..., DAYS)."""
    parts = np.stack([past[..., -1], past[..., -5:].mean(-1), past[..., -DAYS:].mean(-1)], axis=-1)
    return np.asarray(mean + (weights * (parts - mean[..., None])).sum(-1))


def _series(mean: Floats, weights: Floats, known: Floats, noise: Floats) -> Floats:
    """The recursion from its mean on, shape of `noise`: (assets, days)."""
    series = np.repeat(mean[:, None], noise.shape[1], axis=1)
    for t in range(DAYS, noise.shape[1]):
        series[:, t] = _next(series[:, t - DAYS : t], mean, weights) + known[:, t] + noise[:, t]
    return series


STORY = Story(
    name="volatility",
    field="finance",
    title="How volatile is an asset tomorrow, learnt across desks that may not show each other their positions?",
    data="generated: one record is 22 days of one asset and of the market, and the day after",
    sites="four desks; level, persistence, spill-over and noise; the last quarter of the days is for testing",
    measured="R2 of the forecast on the days of the last quarter",
    truth="the expected value given the 22 days, exact: its R2 is the best achievable",
    metric="r2",
    ci=("data.rows=1200", "training.rounds=6", "checkpoints.keep=1", IDEAL),
    arrays=generate,
)
