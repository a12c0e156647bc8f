"""What every scenario says of itself, and the arithmetic that their truths share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, Literal

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame

    from simulations.array_sources import ArraySet
    from tacit.data.schema import Schema

Floats = NDArray[np.float64]
IDEAL: Final = (
    "secure_aggregation.engine=ideal"  # of a short run: the same encoding and sum, without cryptography
)


@dataclass(frozen=True)
class Story:
    """A scenario: NAME.toml beside this file is its experiment, docs/scenarios/NAME.md its page.

    Attributes:
        name: of the scenario.
        field: who would ask.
        title: the question, in one line.
        data: where the records come from, and what one record is.
        sites: who takes part, and how their data differ.
        measured: the figure that answers the question.
        truth: what the result is compared with.
        metric: name of that figure in a report.
        ci: overrides that make a run a matter of seconds.
        table: generates rows of a table, from a number of rows (0 = as many as the story has) and a seed: a frame and
            its schema. Its column `truth` is the probability that a label was drawn with; no task reads it.
        arrays: generates arrays, likewise.
        group: column of the table by which results are compared for fairness; no feature.
    """

    name: str
    field: Literal["healthcare", "finance"]
    title: str
    data: str
    sites: str
    measured: str
    truth: str
    metric: str
    ci: tuple[str, ...]
    table: Callable[[int, int], tuple[DataFrame, Schema]] | None = None
    arrays: Callable[[int, int], ArraySet] | None = None
    group: str = ""


def sigmoid(x: Floats) -> Floats:
    """1 / (1 + exp(-x)), without overflow."""
    from scipy.special import expit

    result: Floats = expit(x)
    return result


def log_posterior(log_likelihood: Floats, prior: Floats) -> Floats:
    """Logarithm of each class's probability given what was seen (Bayes), shape (rows, classes).

    Args:
        log_likelihood: of what was seen, up to a constant per row, shape (rows, classes).
        prior: shape (rows, classes).
    """
    from scipy.special import log_softmax

    result: Floats = log_softmax(log_likelihood + np.log(prior), axis=1)
    return result


def drawn_sites(rows: int, shares: Mapping[str, float], rng: np.random.Generator) -> NDArray[np.int64]:
    """Which site each record is at, shape (rows,): counts in proportion to `shares`, in random order."""
    weights = np.array(list(shares.values()))
    counts = np.floor(rows * weights / weights.sum()).astype(int)
    counts[0] += rows - counts.sum()
    return rng.permutation(np.repeat(np.arange(len(shares)), counts))


def intercept_for(logits: Floats, share: float) -> float:
    """What must be added to these logits for their mean probability to be `share`."""
    from scipy.optimize import brentq

    return float(brentq(lambda b: sigmoid(logits + b).mean() - share, -40.0, 40.0))
