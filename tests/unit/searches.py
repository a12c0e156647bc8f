"""Searches with trials that nobody has run, for the tests of what they ask, keep and count."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from simulations.tuning.folder import SearchFolder
from simulations.tuning.search import Search
from simulations.tuning.space import Dimension, Trials, Tuning, tuning_of
from tacit.cli import main
from tacit.report.record import Final
from tacit.report.storage import write_json
from tests.unit.report_records import run_record

BASE = """
name = "small"
[partition]
num_clients = 3
[task.model]
name = "mlp"
[training]
rounds = 2
local_steps = 1
sampling_rate = 1.0
[evaluation]
metrics = true
[privacy.record]
epsilon = 3.0
delta = 1e-5
metrics_share = 0.1
[secure_aggregation]
engine = "ideal"
"""
SPACE = """
[tuning.space]
training.learning_rate = {low = 0.1, high = 10.0, log = true}
task.model.hidden = [[8], [16, 8]]
privacy.record.max_grad_norm = {low = 0.5, high = 2.0}
"""
PRIVATE = 'method = "random"\naccounting = "private"\n'


def searched(folder: Path, settings: str, space: str = SPACE) -> tuple[Tuning, tuple[Dimension, ...], Path]:
    path = folder / "search.toml"
    path.write_text(f"[tuning]\n{settings}\n{space}")
    return *tuning_of(path), path


def search(base: Path, out: Path, settings: str, space: str = SPACE, *sets: str) -> Search:
    tuning, dimensions, path = searched(base.parent, settings, space)
    out.mkdir(exist_ok=True)
    folder = SearchFolder(out, counted=tuning.accounting == "private")
    return Search(tuning, dimensions, Trials(base, sets, path), folder)


def finish(found: Search, out: Path, number: int, auroc: Callable[[Any], float]) -> None:
    """A trial's report, as if it had been run."""
    cell = found.cell(number)
    record = run_record(final=Final(metrics={"auroc": auroc(cell.values), "loss": 0.5}), rounds=())
    write_json(record, out / "trials" / cell.name / "report.json")
    found.done(number)


def goodness(values: Any) -> float:
    rate = float(values["training.learning_rate"])
    return 0.9 - 0.1 * abs(rate - 3.0) / 10 - (0.05 if values["task.model.hidden"] == [8] else 0.0)


def lines(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(path.read_text(), newline="")))


def tune(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["tune", *(str(argument) for argument in arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code
