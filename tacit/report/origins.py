"""Where each figure of a run's record comes from: noised and paid for, public, or exact and for this machine alone.

A figure that is in no row of this table cannot be added to the record: a test walks its fields (catalogue I17).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final, Literal

from tacit.report.record import Baselines, RunRecord

Origin = Literal["noised", "public", "local"]

WORDS: Final[dict[Origin, str]] = {
    "noised": "differentially private where the run is: noised, and paid for from the budget",
    "public": "public: settings, times, declared sizes, who took part; not protected",
    "local": "not private, local only: exact, and known to nobody but the machine of a simulation",
}

# Key of report.json, or the first part of one -> origin of all that is under it.
ORIGINS: Final[dict[str, Origin]] = {
    "run_id": "public",
    "started": "public",
    "outcome": "public",
    "engine": "public",
    "executor": "public",
    "seed": "public",
    "experiment": "public",
    "rounds.round": "public",
    "rounds.seconds": "public",
    "rounds.cohort": "public",
    "rounds.survivors": "public",
    "rounds.metrics": "local",
    "rounds.epsilon": "public",
    "rounds.private_metrics": "noised",
    "rounds.refusals": "public",
    "rounds.attempts": "public",
    "rounds.blamed": "public",
    "final.metrics": "local",  # in a deployment what the server learned last, which is noised
    "final.sites": "local",
    "final.outcomes": "local",
    "final.importance": "local",
    "final.concepts": "local",
    "learned": "noised",
    "importance": "noised",
    "concepts": "noised",
    "baselines": "local",
    "privacy": "public",
    "secure_aggregation.enabled": "public",
    "secure_aggregation.engine": "public",
    "secure_aggregation.protocol": "public",
    "secure_aggregation.bits": "public",
    "secure_aggregation.threshold": "public",
    "secure_aggregation.bytes_up_per_client": "public",
    "secure_aggregation.clipped_fraction": "local",
    "partition": "local",
    "distances": "local",
    "faults": "local",
    "federation": "public",
    "timings": "public",
    "versions": "public",
    "warnings": "public",
    "ledger": "public",  # debits follow from the plan
}


def origins(record: RunRecord) -> Iterator[tuple[str, Origin]]:
    """Key and origin of everything that a record holds."""
    for key, origin in ORIGINS.items():
        if _holds(record, key):
            noised = key == "final.metrics" and not record.is_simulation
            yield key, "noised" if noised else origin


def _holds(record: RunRecord, key: str) -> bool:
    first, _, rest = key.partition(".")
    value = getattr(record, first)
    if not rest:
        return value != Baselines() if isinstance(value, Baselines) else value not in (None, (), {})
    parts = value if isinstance(value, tuple) else (value,)
    return any(getattr(part, rest) not in (None, (), {}) for part in parts)
