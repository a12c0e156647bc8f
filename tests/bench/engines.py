"""The local engine, through the whole of a simulation, against what people use instead, on an MLP 20-64-2.

Every client makes five steps on about 32 of its 160 records. `bare` is the shortest loop that one writes by hand, on
one torch thread, without privacy and without a federation around it; `opacus` is the same with
`PrivacyEngine.make_private` for each client. A round of theirs is measured after each round of ours, so that both
meet the same machine; a round of ours is all that `tacit simulate` does for it, with ledgers and checkpoints. Flower's
engine (Ray) and pfl, which have processes of their own, come right after. Figures are medians of seconds a round.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import NamedTuple

import numpy as np
import torch
from torch import nn

from simulations import run as simulation
from strategies.rounds import Rounds
from tacit import config

CLIENTS, ROWS, STEPS, BATCH, RATE = 100, 160, 5, 32, 0.1
ROUNDS, WARM_UP = 14, 3
IDEAL = "secure_aggregation.engine=ideal"
RECORD = "privacy.record={epsilon=3.0, delta=1e-5}"
PFL = Path("build") / "pfl"


class Case(NamedTuple):
    """A setting of ours, and the loop that it is compared with."""

    name: str
    settings: tuple[str, ...]
    clients: int
    other: str
    bar: float


CASES = (
    Case("no privacy", (), CLIENTS, "bare", 8.0),
    Case("no privacy", ("training.clients_per_round=10",), 10, "bare", 1.4),
    Case("records protected", (RECORD,), CLIENTS, "bare", 1.3),
    Case("records protected", (RECORD,), CLIENTS, "opacus", 10.0),
)


def run() -> list[dict]:
    """One row per comparison: seconds of a round of theirs over seconds of a round of ours."""
    with tempfile.TemporaryDirectory() as folder:
        experiment = _experiment(Path(folder))
        rows = [_interleaved(case, experiment, Path(folder) / f"case-{i}") for i, case in enumerate(CASES)]
        rows += _against_ray(experiment, Path(folder))
        rows.append(_against_pfl(experiment, Path(folder)))
        rows.append(_start(experiment, Path(folder)))
    return rows


def _interleaved(case: Case, experiment: str, out: Path) -> dict:
    """Rounds of ours and of the other loop in turn."""
    loop = {"bare": bare_round, "opacus": opacus_round}[case.other](case.clients)
    theirs: list[float] = []

    def other() -> None:
        started = time.perf_counter()
        loop()
        theirs.append(time.perf_counter() - started)

    rounds = ROUNDS if case.other == "bare" else 6
    ours = _seconds(experiment, out, "local", rounds, (IDEAL, *case.settings), other)
    ratio = median(theirs[WARM_UP:]) / ours
    print(f"  {case.name}, {case.clients} clients: {case.clients / ours:.0f} updates/s, {case.other} "
          f"{case.clients / median(theirs[WARM_UP:]):.0f}")  # fmt: skip
    return _row(f"{case.other} loop over local, MLP, {case.clients} clients, {case.name}", ratio, case.bar)


def _against_ray(experiment: str, folder: Path) -> list[dict]:
    rows = []
    for name, bar, settings in (("no privacy", 60.0, ()), ("records protected", None, (RECORD,))):
        ours, rays = (
            _seconds(experiment, folder / f"{engine}-{name}", engine, rounds, (IDEAL, *settings))
            for engine, rounds in (("local", ROUNDS), ("ray", 6))
        )
        rows.append(
            _row(f"Flower's engine (Ray) over local, MLP, {CLIENTS} clients, {name}", rays / ours, bar)
        )
    return rows


def _against_pfl(experiment: str, folder: Path) -> dict:
    """Where `pip install --target` has put it; see tests/bench/pfl_round.py."""
    name, bar = f"pfl over local, MLP, {CLIENTS} clients, no privacy", 12.0
    if not PFL.exists():
        return {"name": f"{name} (pip install --no-deps --target {PFL} pfl prv-accountant)", "ratio": None, "bar": bar,
                "better": "higher", "ok": True}  # fmt: skip
    ours = _seconds(experiment, folder / "local-pfl", "local", ROUNDS, (IDEAL,))
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join((str(PFL), str(Path.cwd())))}
    command = [sys.executable, "-m", "tests.bench.pfl_round"]
    done = subprocess.run(command, env=variables, check=True, capture_output=True, text=True)
    return _row(name, float(done.stdout.split()[-1]) / ours, bar)


def _start(experiment: str, folder: Path) -> dict:
    """From the start of the command to the end of its first round, over the same on Flower's engine."""
    path = folder / "experiment.toml"
    path.write_text(experiment, encoding="utf-8")
    seconds = {}
    for engine in ("local", "ray"):
        out = folder / f"start-{engine}"
        command = [sys.executable, "-m", "tacit.cli", "simulate", str(path), "--out", str(out), "--quiet"]
        command += ["--engine", engine, "--set", IDEAL, "--set", "training.rounds=1"]
        started, lines = time.perf_counter(), out / "server" / "rounds.jsonl"
        with subprocess.Popen(command) as process:
            while not (lines.exists() and lines.stat().st_size) and process.poll() is None:
                time.sleep(0.01)
            seconds[engine] = time.perf_counter() - started
            process.wait()
    name = "start to the end of the first MLP round, local over Flower's engine (Ray)"
    ratio = seconds["local"] / seconds["ray"]
    return {"name": name, "ratio": ratio, "bar": 1 / 3, "better": "lower", "ok": ratio <= 1 / 3}


def _row(name: str, ratio: float, bar: float | None) -> dict:
    return {"name": name, "ratio": ratio, "bar": bar, "better": "higher", "ok": bar is None or ratio >= bar}


def _seconds(
    experiment: str,
    out: Path,
    engine: str,
    rounds: int,
    settings: tuple[str, ...],
    after_each: Callable[[], None] = lambda: None,
) -> float:
    """Median seconds of a round, evaluation and report aside; of the local engine with all that a round writes."""
    loaded = config.loads(experiment, overrides=(*settings, f"training.rounds={rounds}"))
    whole: list[float] = []
    real = Rounds.next_round

    def timed(self: Rounds, before):  # type: ignore[no-untyped-def]
        started = time.perf_counter()
        after = real(self, before)
        whole.append(time.perf_counter() - started)
        after_each()
        return after

    Rounds.next_round = timed  # type: ignore[method-assign]
    try:
        with simulation.claimed(out, resume=False), simulation.one_thread():
            prepared = simulation.prepare(loaded, out, durable=False)
            started = simulation.datetime.now(simulation.UTC)
            simulation.run_engine(simulation.Simulation(prepared, out, engine, started, simulation.Clock()))
    finally:
        Rounds.next_round = real  # type: ignore[method-assign]
    if not whole:  # in another process
        lines = (out / "server" / "rounds.jsonl").read_text(encoding="utf-8").splitlines()
        whole = [json.loads(line)["seconds"] for line in lines]
    return median(whole[min(WARM_UP, len(whole) - 1) :])


def data_of(clients: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Features and labels of each client."""
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(clients, ROWS, 20, generator=generator)
    return features, (features.sum(2) > 0).long()


def mlp() -> nn.Sequential:
    """The model of all engines."""
    return nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 2))


def bare_round(clients: int) -> Callable[[], None]:
    """A round by hand: load the weights, five batches of 32, add up."""
    model, (features, targets) = mlp(), data_of(clients)
    optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
    weights = {name: value.clone() for name, value in model.state_dict().items()}

    def one_round() -> None:
        total = {name: torch.zeros_like(value) for name, value in weights.items()}
        for x, y in zip(features, targets, strict=True):
            model.load_state_dict(weights)
            for rows in torch.randperm(ROWS).split(BATCH)[:STEPS]:
                optimizer.zero_grad()
                nn.functional.cross_entropy(model(x[rows]), y[rows]).backward()
                optimizer.step()
            for name, value in model.state_dict().items():
                total[name] += value
        for name, value in total.items():
            weights[name].copy_(value / clients)

    return one_round


def opacus_round(clients: int) -> Callable[[], None]:
    """The documented way to privacy, for each client: a model, a loader and an engine of its own."""
    import warnings

    from opacus import PrivacyEngine
    from torch.utils.data import DataLoader, TensorDataset

    start, (features, targets) = mlp().state_dict(), data_of(clients)

    def one_round() -> None:
        for x, y in zip(features, targets, strict=True):
            model = mlp()
            model.load_state_dict(start)
            optimizer = torch.optim.SGD(model.parameters(), lr=RATE)
            loader = DataLoader(TensorDataset(x, y), batch_size=BATCH)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                private, optimizer, loader = PrivacyEngine().make_private(
                    module=model,
                    optimizer=optimizer,
                    data_loader=loader,
                    noise_multiplier=1.0,
                    max_grad_norm=1.0,
                )
                for rows, labels in loader:
                    optimizer.zero_grad()
                    nn.functional.cross_entropy(private(rows), labels).backward()
                    optimizer.step()

    return one_round


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
