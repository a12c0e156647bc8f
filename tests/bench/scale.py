"""A million virtual clients under client-level privacy: memory, and seconds a round as the cohort and the model grow.

Slow, and run by name only (`python -m tests.bench --only scale`). Each run is a process of its own, so that its peak of
memory is its own. The rows of the table without a bar are what docs/performance.md shows.
"""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import tempfile
from pathlib import Path
from statistics import median

POPULATION = 1_000_000
LIMIT_MB = 2000.0
COHORTS, WIDTHS = (100, 1000, 10_000), (64, 256)
ROUNDS = int(os.environ.get("SCALE_ROUNDS", "20"))


def run() -> list[dict]:
    """Peak memory of 20 rounds with a cohort of 10,000; seconds a round for each cohort and each width of model."""
    rows = []
    for width in WIDTHS:
        for cohort in COHORTS:
            if width == WIDTHS[0] or cohort < COHORTS[-1]:
                rounds = ROUNDS if cohort == COHORTS[-1] else 5
                rows += _rows(cohort, width, rounds, _measure(cohort, width, rounds))
    return rows


def _rows(cohort: int, width: int, rounds: int, found: dict[str, float]) -> list[dict]:
    what = f"{POPULATION} clients, cohort {cohort}, MLP 20-{width}-2"
    print(f"  {what}: {found['seconds']:.2f} s a round, {found['megabytes']:.0f} MB after {rounds} rounds")
    seconds = {"name": f"{what}: seconds a round", "ratio": found["seconds"], "bar": None, "better": "lower"}
    limit = LIMIT_MB if cohort == COHORTS[-1] else None
    memory = {"name": f"{what}: MB", "ratio": found["megabytes"], "bar": limit, "better": "lower"}
    return [{**seconds, "ok": True}, {**memory, "ok": limit is None or found["megabytes"] <= limit}]


def _measure(cohort: int, width: int, rounds: int) -> dict[str, float]:
    arguments = (str(cohort), str(width), str(rounds))
    command = [sys.executable, "-m", "tests.bench.scale", *arguments]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def _one(cohort: int, width: int, rounds: int) -> None:
    """In its own process: a whole simulation, report and all."""
    from simulations.run import simulate
    from tacit import config
    from tests.bench import engines

    engines.CLIENTS = 100
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        settings = (
            "partition.kind=virtual",
            f"partition.num_clients={POPULATION}",
            "partition.rows=160",
            f"task.model.hidden=[{width}]",
            f"training.clients_per_round={cohort}",
            f"training.rounds={rounds}",
            engines.IDEAL,
            "privacy.client={epsilon=8.0, delta=1e-7}",
        )
        record = simulate(config.loads(engines._experiment(folder), overrides=settings), folder / "run")
    seconds = median(r.seconds for r in record.rounds[1:])
    megabytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"seconds": seconds, "megabytes": megabytes}))


if __name__ == "__main__":
    _one(*map(int, sys.argv[1:4]))
