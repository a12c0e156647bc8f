"""From what a server keeps of a run, the lines of `rounds.jsonl`, to the parts of its record."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Mapping, Sequence
from typing import Any, Final

from tacit.config import Experiment, SecureAggregation
from tacit.report.record import Metrics, Round, SecureSum

PACKAGES: Final = ("tacit", "flwr", "torch", "opacus", "dp-accounting", "cryptography", "numpy")
Rows = Sequence[Mapping[str, Any]]


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}}


def round_of(row: Mapping[str, Any], experiment: Experiment, metrics: Metrics | None = None) -> Round:
    """One round.

    Args:
        row: its line.
        experiment: of the run.
        metrics: exact ones of the model after it; what only a simulation can know.
    """
    epsilon = row["epsilon"]
    if epsilon is not None and experiment.insecure_seeded_noise:
        epsilon = math.inf
    return Round(
        round=row["round"],
        seconds=row["seconds"],
        cohort=tuple(row["cohort"]),
        survivors=tuple(row["survivors"]),
        metrics=metrics or {},
        epsilon=epsilon,
        private_metrics=row["metrics"],
        refusals=row["refusals"],
        attempts=row["attempts"],
        blamed=row["blamed"],
    )


def secure_sum_of(
    settings: SecureAggregation, rows: Rows, clipped_fraction: float | None = None
) -> SecureSum:
    """How updates were added up, by a run's lines; `clipped_fraction` is what only a simulation can know."""
    bytes_up = max((row["bytes_up"] for row in rows), default=0)
    if not settings.enabled:
        return SecureSum(enabled=False, bytes_up_per_client=bytes_up)
    return SecureSum(
        enabled=True,
        engine=settings.engine,
        protocol=settings.protocol,
        bits=max((row["bits"] for row in rows if row["bits"]), default=None),
        threshold=max((row["threshold"] for row in rows if row["threshold"]), default=None),
        bytes_up_per_client=bytes_up,
        clipped_fraction=clipped_fraction,
    )
