"""The local engine against Ray: client updates a second of an MLP 20-64-2, 100 clients a round, start excluded.

Both engines run the whole round through the same apps in the same session of `make bench`; the figure is the median
of `seconds` over the rounds after the first two.
"""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from statistics import median

import numpy as np

from simulations import run as simulation
from tacit import config

CLIENTS, ROWS = 100, 160
ROUNDS = {"local": 12, "ray": 6}
SETTINGS = {
    "plain SGD, no masks": (3.0, ("secure_aggregation.enabled=false",)),
    "DP and the ideal sum": (
        1.5,
        ("secure_aggregation.engine=ideal", "privacy.record={epsilon=3.0, delta=1e-5}"),
    ),
}


def run() -> list[dict]:
    """One row per setting: updates a second of the local engine over those of Ray."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(Path(folder))
        for name, (bar, settings) in SETTINGS.items():
            seconds = {
                engine: _seconds(experiment, Path(folder) / f"{engine}-{bar}", engine, rounds, settings)
                for engine, rounds in ROUNDS.items()
            }
            ratio = seconds["ray"] / seconds["local"]
            rates = ", ".join(f"{engine} {CLIENTS / s:.0f} updates/s" for engine, s in seconds.items())
            print(f"  {name}: {rates}")
            title = f"local over Ray, MLP 20-64-2, {CLIENTS} clients, {name}"
            rows.append({"name": title, "ratio": ratio, "bar": bar, "better": "higher", "ok": ratio >= bar})
    return rows


def _seconds(experiment: str, out: Path, engine: str, rounds: int, settings: tuple[str, ...]) -> float:
    """Median seconds of a round, without evaluation and report."""
    loaded = config.loads(experiment, overrides=(*settings, f"training.rounds={rounds}"))
    with simulation.claimed(out, resume=False), simulation.one_thread():
        prepared = simulation.prepare(loaded, out)
        started = simulation.datetime.now(simulation.UTC)
        ready = simulation.Simulation(prepared, out, engine, started, simulation.Clock())
        simulation.run_engine(ready)
    lines = (out / "server" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
    return median(json.loads(line)["seconds"] for line in lines[2:])


def _experiment(folder: Path) -> str:
    """20 numbers and a label that they decide, in a CSV of 100 sites' rows."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(CLIENTS * ROWS, 20))
    y = (x @ rng.normal(size=20) > 0).astype(int)
    names = [f"x{i}" for i in range(20)]
    lines = [",".join([*names, "y"])]
    lines += [",".join([*(f"{v:.4f}" for v in row), str(label)]) for row, label in zip(x, y, strict=True)]
    (folder / "data.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    columns = "\n".join(f'{name} = {{kind = "numeric", range = [-3.0, 3.0]}}' for name in names)
    return f"""
name = "bench"
[data]
source = "csv"
path = "{folder / "data.csv"}"
test_fraction = 0.0
[data.schema]
label = "y"
[data.schema.columns]
{columns}
[task.model]
hidden = [64]
[partition]
num_clients = {CLIENTS}
[training]
sampling_rate = 0.2
local_steps = 5
[simulation]
baselines = false
"""
