"""A thousand sites on the ring through all of `tacit simulate`, a tenth of them gone in the middle of the round."""

import csv
import json
import random
from pathlib import Path

import pytest

from tacit.cli import main

N, GONE = 1000, 100
EXPERIMENT = """
name = "ring"
[data]
source = "csv"
path = "FOLDER/people.csv"
test_fraction = 0.1
[partition]
num_clients = 1000
min_rows = 2
[task.model]
hidden = [300, 300]
[training]
rounds = 1
local_steps = 1
[privacy]
[secure_aggregation]
max_corrupt = 100
max_dropouts = 100
[simulation]
baselines = false

"""
FAULTS = """
[[fault]]
round = 1
share = 0.1
phase = "vector"
kind = "drop"
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_1000_sites_with_276_neighbours_finish_a_round_that_100_of_them_leave(tmp_path: Path) -> None:
    draw = random.Random(0)
    with (tmp_path / "people.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*(f"x{i}" for i in range(20)), "label"])
        table.writerows(
            [*(f"{draw.random():.4f}" for _ in range(20)), draw.randrange(2)] for _ in range(12 * N)
        )
    (tmp_path / "ring.toml").write_text(EXPERIMENT.replace("FOLDER", str(tmp_path)))
    (tmp_path / "faults.toml").write_text(FAULTS)
    with pytest.raises(SystemExit) as end:
        main(
            [
                "simulate",
                str(tmp_path / "ring.toml"),
                "--faults",
                str(tmp_path / "faults.toml"),
                "--out",
                str(tmp_path / "out"),
                "--quiet",
            ]
        )
    assert end.value.code == 0
    [row] = map(json.loads, (tmp_path / "out" / "server" / "rounds.jsonl").read_text().splitlines())
    assert (len(row["cohort"]), len(row["survivors"])) == (N, N - GONE)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["secure_aggregation"]["threshold"] == 551
    assert len([fault for fault in report["faults"] if fault["kind"] == "drop"]) == GONE
