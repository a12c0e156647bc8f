"""Whole simulations on text, forecasts and images, as a user's own files."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.metrics import roc_auc_score

from simulations.run import simulate
from simulations.scenarios.triage_notes import generate
from tacit import config

NOTES = """
name = "notes"
seed = 3
[data]
source = "generated"
generator = "triage_notes"
rows = 6000
[partition]
kind = "natural"
column = "desk"
[task]
kind = "text_classification"
model = {name = "embedding", hidden = [16]}
[training]
rounds = 20
local_steps = 4
sampling_rate = 0.1
learning_rate = 10.0
momentum = 0.5
schedule = "cosine"
[strategy]
weights = "declared"
[secure_aggregation]
engine = "ideal"
update_clip = 50.0
[checkpoints]
keep = 1
[simulation]
baselines = false
executor = "serial"
"""
PRIVATE = "privacy.record={epsilon=8.0, delta=1e-5}"


@pytest.mark.parametrize(("promise", "least"), [("privacy=none", 0.8), (PRIVATE, 0.7)])
def test_notes_are_learnt_from_without_a_vocabulary(promise: str, least: float, tmp_path: Path) -> None:
    record = simulate(config.loads(NOTES, overrides=[promise]), tmp_path / "run")
    frame, _ = generate(6000, 3)
    best, reached = float(roc_auc_score(frame["urgent"], frame["truth"])), record.final.metrics["auroc"]
    print(promise, best, reached)
    assert reached is not None and least < reached < best


WAVES: dict[str, Any] = {
    "name": "waves",
    "task": {"kind": "array_regression", "model": {"name": "mlp", "hidden": [8]}},
    "data": {
        "source": "csv",
        "arrays": {
            "shape": [1, 12],
            "outputs": 2,
            "scale": 2.0,
            "target_scale": 2.0,
            "series": {
                "form": "long",
                "channels": ["height"],
                "id": "buoy",
                "time": "hour",
                "site": "sea",
                "horizon": 2,
                "target": "height",
                "stride": 3,
                "test_from": 90.0,
            },
        },
    },
    "partition": {"kind": "natural", "column": "site", "min_rows": 4},
    "training": {
        "rounds": 8,
        "local_steps": 4,
        "sampling_rate": 0.2,
        "optimizer": "adam",
        "learning_rate": 0.02,
    },
    "evaluation": {"metrics": True},
    "secure_aggregation": {"engine": "ideal"},
    "simulation": {"baselines": False, "executor": "serial"},
}


def test_a_forecast_beats_the_mean_and_its_errors_are_summed_over_the_sites(tmp_path: Path) -> None:
    rng, lines = np.random.default_rng(2), ["buoy,hour,height,sea"]
    for buoy in range(12):
        phase = rng.uniform(0, 6)
        for hour in range(120):
            if rng.random() < 0.95:  # some are missing
                height = 3 * np.sin(hour / 3 + phase) + 0.3 * rng.normal()
                lines.append(f"b{buoy},{hour},{height:.3f},{buoy % 3}")
    (tmp_path / "waves.csv").write_text("\n".join(lines))
    tables = {**WAVES, "data": {**WAVES["data"], "path": str(tmp_path / "waves.csv")}}
    record = simulate(config.parse(tables, source=""), tmp_path / "run")
    final = record.final.metrics
    assert final["r2"] is not None and final["r2"] > 0.6
    summed = record.rounds[-1].private_metrics
    for name in ("error", "absolute_error"):
        assert summed[name] == pytest.approx(final[name], abs=0.02)
    assert (final["mae"] or 0) == pytest.approx(2 * 2.0 * (final["absolute_error"] or 0), rel=0.05)


def test_folders_of_images_are_learnt_from(tmp_path: Path) -> None:
    rng = np.random.default_rng(4)
    for c, name in enumerate(("dark", "bright")):
        (tmp_path / "all" / name).mkdir(parents=True)
        for i in range(60):
            pixels = rng.integers(0, 200, (9, 12), dtype=np.uint8) + 55 * c
            Image.fromarray(pixels.astype(np.uint8)).save(tmp_path / "all" / name / f"{i}.png")
    tables = {
        "name": "images",
        "task": {"kind": "array_classification", "model": {"name": "cnn", "channels": [4]}},
        "data": {
            "source": "images",
            "path": str(tmp_path / "all"),
            "arrays": {
                "shape": [1, 8, 8],
                "classes": ["dark", "bright"],
                "center": 0.5,
                "scale": 0.25,
                "images": {},
            },
        },
        "partition": {"num_clients": 3},
        "training": {
            "rounds": 6,
            "local_steps": 4,
            "sampling_rate": 0.3,
            "optimizer": "adam",
            "learning_rate": 0.02,
        },
        "secure_aggregation": {"engine": "ideal"},
        "simulation": {"baselines": False, "executor": "serial"},
    }
    record = simulate(config.parse(tables, source=""), tmp_path / "run")
    assert (record.final.metrics["auroc"] or 0) > 0.9
