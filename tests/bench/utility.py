"""What the built-in scenarios reach, as a user runs them: the figures of docs/scenarios.md.

Heart disease and credit default need the published files under TACIT_TEST_DATA (heart-disease/, credit-default/);
without them their rows say that they were skipped. Noise follows no seed, so figures differ from run to run; the
spread is printed. `python -m tests.bench.utility SCENARIO` measures one of them.
"""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import fmean, median, stdev
from typing import Any

from simulations.evaluate import Harness
from simulations.run import one_thread, simulate
from tacit import config
from tacit.report.record import Baseline, Final, RunRecord

SCENARIOS = Path(__file__).parents[2] / "simulations" / "scenarios"
SPLITS = (42, 43, 44, 45, 46)
SEEDS = (1, 2, 3, 4, 5)
NOISE = 5  # runs that differ in their noise only

# Mean accuracy over the hospitals that FLamby (du Terrail et al. 2022) publishes. It standardises each hospital by
# its own statistics, which a privacy statement would have to cover, so the comparison is of utility alone.
FLAMBY = "FLamby: pooled 0.735, FedAvg 0.685, FedAdam 0.726, FedAvg with DP at epsilon 1 0.685"

Row = dict[str, Any]


def run(*scenarios: str) -> list[Row]:
    """The rows of some scenarios, or of all; prints the comparisons that stand beside them."""
    return [row for name, part in PARTS.items() if not scenarios or name in scenarios for row in part()]


def _heart_disease() -> Iterator[Row]:
    """Mean accuracy over the four hospitals, on one split and on five, without privacy and at epsilon 1."""
    bars = {"split 43": 0.80, "splits 42-46": 0.79}
    folder = _data("heart-disease")
    for mode, settings in {"without privacy": ("privacy=none",), "epsilon 1": ()}.items():
        names = {part: f"heart disease, accuracy by hospital, {part}, {mode}" for part in bars}
        if folder is None:
            yield from (_skipped(names[part], bar) for part, bar in bars.items())
            continue
        runs = NOISE if mode == "epsilon 1" else 1
        figures = {
            split: [
                _by_site(
                    _run("heart_disease", folder, f"data.split_seed={split}", *settings).final, "accuracy"
                )
                for _ in range(runs)
            ]
            for split in SPLITS
        }
        for split, values in figures.items():
            print(f"  heart disease, {mode}, split {split}: {_spread(values)}")
        yield _row(names["split 43"], fmean(figures[43]), bars["split 43"])
        means = [fmean(values[i] for values in figures.values()) for i in range(runs)]
        print(f"  heart disease, {mode}, mean of splits: {_spread(means)}")
        yield _row(names["splits 42-46"], fmean(means), bars["splits 42-46"])
    if folder is not None:
        baselines = _run("heart_disease", folder, "simulation.baselines=true", "privacy=none").baselines
        for name in ("pooled", "local", "majority"):
            print(f"  heart disease, split 43, {name}: {_by_site(getattr(baselines, name), 'accuracy'):.3f}")
        print(f"  {FLAMBY}")


def _breast_cancer() -> Iterator[Row]:
    """AUROC on all test rows at epsilon 3, median over five seeds of partition, weights and rounding."""
    records = [_run("breast_cancer", "", f"seed={seed}", "simulation.baselines=true") for seed in SEEDS]
    figures = [_auroc(record.final) for record in records]
    beside = {
        "pooled": [_auroc(record.baselines.pooled) for record in records],
        "this, mean of clinics": [_by_site(record.final, "auroc") for record in records],
        "local only, mean of clinics": [_by_site(record.baselines.local, "auroc") for record in records],
    }
    for name, values in beside.items():
        print(f"  breast cancer, {name}: median {median(values):.4f}")
    print(f"  breast cancer, epsilon 3: {_spread(figures)}")
    yield _row("breast cancer, AUROC, epsilon 3, median of 5 seeds", median(figures), 0.98)


def _credit_default() -> Iterator[Row]:
    """AUROC on all test rows at epsilon 3, against the pooled model without privacy of the same run: five seeds.

    A seed changes the banks, the weights and the pooled model's batches; the noise follows none.
    """
    names = [
        "credit default, AUROC behind pooled, epsilon 3, mean of 5 seeds",
        "credit default, AUROC behind pooled, epsilon 3, worst of 5 seeds",
    ]
    folder = _data("credit-default")
    if folder is None:
        yield from (_skipped(name, 0.02) for name in names)
        return
    behind = []
    for seed in SEEDS:
        final, pooled = _against_pooled("credit_default", folder, f"seed={seed}")
        behind.append(pooled - final)
        print(f"  credit default, seed {seed}: epsilon 3 {final:.4f}, pooled {pooled:.4f}", flush=True)
    print(f"  credit default, behind pooled: {_spread(behind)}")
    for name, figure in zip(names, (fmean(behind), max(behind)), strict=True):
        yield {"name": name, "ratio": figure, "bar": 0.02, "better": "lower", "ok": figure <= 0.02}


def _run(scenario: str, folder: str, *settings: str) -> RunRecord:
    """One simulation of a built-in scenario, its files in a folder that is thrown away."""
    overrides = ("simulation.baselines=false", f"data.dir={folder}", "checkpoints.keep=1", *settings)
    with tempfile.TemporaryDirectory() as out:
        return simulate(config.load(SCENARIOS / f"{scenario}.toml", overrides), Path(out))


def _against_pooled(scenario: str, folder: str, *settings: str) -> tuple[float, float]:
    """AUROC on all test rows of the federated model, and of the pooled one, whose learning rate is chosen for it.

    The sum is the ideal one: the same encoding and the same integers, without cryptography.
    """
    overrides = ("simulation.baselines=false", "secure_aggregation.engine=ideal", f"data.dir={folder}")
    with tempfile.TemporaryDirectory() as out:
        loaded = config.load(SCENARIOS / f"{scenario}.toml", (*overrides, "checkpoints.keep=1", *settings))
        record = simulate(loaded, Path(out))
        harness = Harness(config.load(Path(out) / "experiment.toml"), Path(out) / "sites")
        with one_thread():
            pooled = harness.overall(harness.pooled())["auroc"]
    assert pooled is not None
    return _auroc(record.final), pooled


def _data(name: str) -> str | None:
    """The folder of a published data set, or None."""
    root = os.environ.get("TACIT_TEST_DATA")
    return f"{root}/{name}" if root else None


def _by_site(result: Final | Baseline | None, metric: str) -> float:
    """The plain mean over sites, each on its own test rows. AUROC is undefined at a site with a single class."""
    assert result is not None
    values = (site.metrics.get(metric) for site in result.sites)
    return fmean(value for value in values if value is not None)


def _auroc(result: Final | Baseline | None) -> float:
    """Over the test rows of all sites together."""
    value = result.metrics["auroc"] if result else None
    assert value is not None
    return value


def _spread(values: Sequence[float]) -> str:
    if len(values) == 1:
        return f"{values[0]:.4f}"
    return f"mean {fmean(values):.4f}, standard deviation {stdev(values):.4f}, {min(values):.4f} to {max(values):.4f}"


def _row(name: str, figure: float, bar: float) -> Row:
    return {"name": name, "ratio": figure, "bar": bar, "better": "higher", "ok": figure >= bar}


def _skipped(name: str, bar: float | None) -> Row:
    """Not measured, so neither kept nor missed."""
    return {
        "name": f"{name} (skipped: TACIT_TEST_DATA)",
        "ratio": None,
        "bar": bar,
        "better": "higher",
        "ok": True,
    }


PARTS = {"heart_disease": _heart_disease, "breast_cancer": _breast_cancer, "credit_default": _credit_default}

if __name__ == "__main__":
    for row in run(*sys.argv[1:]):
        print(row)
