"""Worker processes, through the whole of a simulation, against what people use instead, on a CNN of 60 k parameters.

As `tests.bench.engines`, whose loops by hand and whose way of measuring it takes: 100 clients a round, five batches of
about 32 each. `bare` has one torch thread. Run it with nothing else on the machine: two processes get more of a busy
one than one process does.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch

from tests.bench import engines
from tests.bench.networks import CLASSES, cnn

CLIENTS = int(os.environ.get("TACIT_BENCH_CLIENTS", "100"))
ROUNDS = 5
WORKERS = ("simulation.executor=workers", engines.IDEAL)
RECORD = "privacy.record={epsilon=3.0, delta=1e-5}"


def run() -> list[dict]:
    """One row per comparison: seconds of a round of theirs over seconds of a round of ours."""
    saved = engines.data_of, engines.mlp
    engines.data_of, engines.mlp = data_of, cnn  # type: ignore[assignment]
    try:
        with tempfile.TemporaryDirectory() as folder:
            return _rows(Path(folder))
    finally:
        engines.data_of, engines.mlp = saved


def _rows(folder: Path) -> list[dict]:
    experiment, name = _experiment(folder), f"CNN 60 k, {CLIENTS} clients"
    bare = _against(engines.bare_round(CLIENTS), experiment, folder / "bare", ())
    rows = [engines._row(f"bare loop over workers, {name}", bare[0] / bare[1], 1.6)]
    private = _against(engines.opacus_round(CLIENTS), experiment, folder / "opacus", (RECORD,))
    rows.append(
        engines._row(f"Opacus for each client over workers, {name}, DP", private[0] / private[1], 1.6)
    )
    os.environ["PYTHONPATH"] = str(Path.cwd())  # where Flower's engine finds the task
    ray = engines._seconds(experiment, folder / "ray", "ray", ROUNDS, (engines.IDEAL,))
    rows.append(engines._row(f"Flower's engine (Ray) over workers, {name}", ray / bare[1], 1.5))
    rows.append(_against_pfl(bare[1], f"pfl over workers, {name}"))
    return rows


def _against(
    loop: Callable[[], None], experiment: str, out: Path, settings: tuple[str, ...]
) -> tuple[float, float]:
    """Median seconds of a round of theirs and of ours, in turn."""
    theirs: list[float] = []

    def other() -> None:
        started = time.perf_counter()
        loop()
        theirs.append(time.perf_counter() - started)

    ours = engines._seconds(experiment, out, "local", ROUNDS, (*WORKERS, *settings), other)
    print(
        f"  {out.name}: {CLIENTS / ours:.1f} updates/s, theirs {CLIENTS / median(theirs[1:]):.1f}", flush=True
    )
    return median(theirs[1:]), ours


def _against_pfl(ours: float, name: str) -> dict:
    """See `tests.bench.pfl_round`."""
    if not engines.PFL.exists():
        return {"name": f"{name} (pip install --no-deps --target {engines.PFL} pfl)", "ratio": None, "bar": 1.4,
                "better": "higher", "ok": True}  # fmt: skip
    paths = os.pathsep.join((str(engines.PFL), str(Path.cwd())))
    code = (
        "from tests.bench import convolutions as c, pfl_round as p;"
        "p.CLIENTS, p.ROUNDS, p.WARM_UP, p.data_of, p.mlp = c.CLIENTS, c.ROUNDS, 1, c.data_of, c.cnn; p.main()"
    )
    variables = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(
        [sys.executable, "-c", code], env=variables, check=True, capture_output=True, text=True
    )
    return engines._row(name, float(done.stdout.split()[-1]) / ours, 1.4)


def data_of(clients: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Images and labels of each client."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(clients, engines.ROWS, 1, 28, 28, generator=generator)
    return images, torch.randint(0, CLASSES, (clients, engines.ROWS), generator=generator)


def _experiment(folder: Path) -> str:
    """A table with the seed and the label of each image (`tests.bench.networks.Images`)."""
    rows = CLIENTS * engines.ROWS
    labels = np.random.default_rng(0).integers(0, CLASSES, rows)
    lines = ["seed,y", *(f"{seed},{label}" for seed, label in enumerate(labels))]
    (folder / "images.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return f"""
name = "bench"
[data]
source = "csv"
path = "{folder / "images.csv"}"
test_fraction = 0.0
[data.schema]
label = "y"
classes = [{", ".join(f'"{label}"' for label in range(CLASSES))}]
[data.schema.columns]
seed = {{kind = "numeric", range = [0.0, {rows}.0]}}
[task]
kind = "tests.bench.networks:Images"
[partition]
num_clients = {CLIENTS}
[training]
sampling_rate = 0.2
local_steps = 5
[simulation]
baselines = false
"""
