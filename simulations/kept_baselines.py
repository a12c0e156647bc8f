"""Pooled and local-only results that several runs of a sweep share.

They are trained without privacy, and so are the same for runs that differ in epsilon only.

Guarantees:
    A kept baseline is used only where it would be trained from the same settings, seed and data.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tacit.config import Experiment
from tacit.report.record import Baselines
from tacit.report.storage import write_text

# What the baselines of a run do not depend on.
NOT_OF_BASELINES = ("name", "privacy", "secure_aggregation", "checkpoints", "insecure_seeded_noise")
NOT_OF_TRAINING = ("clients_per_round",)
NOT_OF_SIMULATION = ("faults", "executor", "durable_ledgers")


def kept(folder: Path | None, experiment: Experiment, train: Callable[[], Baselines]) -> Baselines:
    """The baselines of an experiment: read from `folder` where they are there, else trained and kept.

    Args:
        folder: of a sweep; None = nothing is kept.
        experiment: with its sites declared.
        train: makes them.
    """
    if folder is None or not is_shared(experiment):
        return train()
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{digest(experiment)}.json"
    with path.with_suffix(".lock").open("wb") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # another cell may be training the same ones right now
        if path.exists():
            return Baselines.model_validate_json(path.read_text(encoding="utf-8"))
        baselines = train()
        write_text(json.dumps(baselines.model_dump(mode="json")), path)
    return baselines


def is_shared(experiment: Experiment) -> bool:
    """Whether they may be another run's: a noised scaling, or a model that privacy changes, is no part of them."""
    columns = experiment.data.columns
    return experiment.task.is_tabular and (columns is None or columns.scaling == "declared")


def digest(experiment: Experiment) -> str:
    """SHA-256 over all that the baselines depend on, in hexadecimal."""
    tables: dict[str, Any] = experiment.model_dump(mode="json", by_alias=True, exclude_none=True)
    for name in NOT_OF_BASELINES:
        tables.pop(name, None)
    for table, names in (("training", NOT_OF_TRAINING), ("simulation", NOT_OF_SIMULATION)):
        tables[table] = {name: value for name, value in tables[table].items() if name not in names}
    return hashlib.sha256(json.dumps(tables, sort_keys=True).encode()).hexdigest()
