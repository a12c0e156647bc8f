"""What the name of a metric says of it: which way is better, and within which limits it lies."""

from __future__ import annotations

import math
from typing import Final

# A metric counts as "lower is better" when one of these is a word of its name.
LOWER_IS_BETTER: Final = frozenset({"loss", "error", "brier", "mae", "mse", "rmse", "ece"})
SHARES: Final = frozenset(
    {"auroc", "accuracy", "precision", "recall", "f1", "ndcg", "map"}
)  # likewise; from 0 to 1


def lower_is_better(metric: str) -> bool:
    """Whether a smaller value of this metric is the better one."""
    return not LOWER_IS_BETTER.isdisjoint(_words(metric))


def limits(metric: str) -> tuple[float, float]:
    """The least and the largest value that this metric can have."""
    if not SHARES.isdisjoint(_words(metric)):
        return 0.0, 1.0
    return -math.inf, 1.0 if metric == "r2" else math.inf


def _words(metric: str) -> list[str]:
    return metric.lower().replace("-", "_").split("_")
