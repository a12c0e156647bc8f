"""Records of sweeps as the harness would make them, for the tests of their table and page."""

from __future__ import annotations

import math
from datetime import UTC, datetime
from typing import Any

import numpy as np

from tacit.report.sweep_record import SweepCell, SweepRecord, Target


def cell(values: dict[str, Any], seed: int, sites: int = 8, **changes: Any) -> SweepCell:
    """A cell whose utility grows with epsilon, from a fixed generator."""
    rng = np.random.default_rng(seed)
    epsilon = values.get("privacy.record.epsilon", "none")
    number = math.inf if epsilon == "none" else float(epsilon)
    alpha, cohort = (
        float(values.get("partition.alpha", 1.0)),
        int(values.get("training.clients_per_round", 10)),
    )
    utility = 0.93 - 0.16 / (1 + number) - 0.02 / (1 + alpha) + 0.008 * rng.normal()
    gains = 0.05 - 0.12 / (1 + number) + 0.05 * rng.normal(size=sites)
    fields: dict[str, Any] = {
        "name": "_".join(f"{key}-{value}" for key, value in values.items()),
        "values": values,
        "outcome": "finished",
        "epsilon": number,
        "delta": 1e-5 if math.isfinite(number) else 0.0,
        "metrics": {"auroc": utility, "accuracy": utility - 0.05},
        "pooled": {"auroc": 0.935 + 0.002 * rng.normal()},
        "local": {"auroc": 0.86 + 0.01 * rng.normal()},
        "site_mean": {"auroc": utility - 0.01},
        "rounds": 40,
        "target_round": int(6 + 30 / (1 + number) + 4 * rng.random()) if utility > 0.87 else None,
        "cohort": cohort,
        "seconds": 40 * (0.2 + 0.03 * cohort + 0.02 * rng.random()),
        "bytes_up": 3600.0 + 60 * cohort,
        "gains": {f"site-{i:02}": float(gain) for i, gain in enumerate(gains, start=1)},
    }
    return SweepCell(**{**fields, **changes})


def sweep_record(axes: dict[str, list[Any]], *, is_natural: bool = False, **changes: Any) -> SweepRecord:
    """All cells of a grid."""
    from itertools import product

    cells = [
        cell(values := dict(zip(axes, chosen, strict=True)), seed=100 * i + int(values.get("seed", 0)))
        for i, chosen in enumerate(product(*axes.values()))
    ]
    fields: dict[str, Any] = {
        "name": "banks",
        "started": datetime(2026, 3, 4, 5, 6, tzinfo=UTC),
        "axes": axes,
        "main": "auroc",
        "target": Target(metric="auroc", value=0.888, stated=False),
        "cells": tuple(cells),
        "is_natural": is_natural,
    }
    return SweepRecord(**{**fields, **changes})
