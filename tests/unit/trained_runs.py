"""Folders as a finished run leaves them, without the training: what is in them is what export and serving read."""

import json
from pathlib import Path
from typing import Any

from safetensors.numpy import save_file

from tacit import config
from tacit.tasks import load_task
from tacit.tasks.weights import initial_arrays

COLUMNS: dict[str, Any] = {
    "age": {"kind": "numeric", "range": [0, 120], "missing": 40.0, "indicator": True},
    "amount of money": {"kind": "numeric", "transform": "log", "center": 3.0, "scale": 2.0},
    "class": {"kind": "categorical", "categories": ["1", "2", "three"]},
    "sex": {"kind": "categorical", "categories": ["f", "m"], "unseen": "error"},
}
TABLE: dict[str, Any] = {
    "name": "a run",
    "task": {"model": {"name": "mlp", "hidden": [8]}},
    "data": {"schema": {"label": "y", "classes": ["no", "yes"], "columns": COLUMNS}},
}
ROWS = """age,amount of money,class,sex,y
61,-1200.5,1.0,f,yes
,0,2,m,no
?,15,three,NA,yes
200,1e9,four,m,no
"""


def arrays_experiment(kind: str, model: str, **schema: Any) -> dict[str, Any]:
    return {
        "name": "arrays",
        "task": {"kind": f"array_{kind}", "model": {"name": model}},
        "data": {"arrays": schema},
    }


def text_experiment(model: str) -> dict[str, Any]:
    text = {"column": "note", "vocabulary": 50, "length": 6}
    return {
        "name": "notes",
        "task": {"kind": "text_classification", "model": {"name": model, "hidden": [8], "heads": 2}},
        "data": {"schema": {"label": "y", "classes": ["no", "yes"], "text": text}},
    }


def run_folder(
    folder: Path, tables: dict[str, Any] = TABLE, scaling: dict[str, Any] | None = None, seed: int = 1
) -> Path:
    experiment = config.parse(tables, source="")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "experiment.toml").write_text(experiment.to_toml(), encoding="utf-8")
    if scaling is not None:
        (folder / "scaling.json").write_text(json.dumps(scaling), encoding="utf-8")
    private = experiment.privacy.record is not None
    save_file(initial_arrays(load_task(experiment), private=private, seed=seed), folder / "model.safetensors")
    return folder


def site_file(folder: Path, text: str = ROWS) -> Path:
    path = folder / "rows.csv"
    path.write_text(text, encoding="utf-8")
    return path
