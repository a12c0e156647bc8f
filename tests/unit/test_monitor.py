"""Drift at a site: chance is not called drift, a moved column is, and what cannot be told is said."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from tacit.cli import app
from tacit.data.drift import cut, drift
from tests.unit.trained_runs import TABLE, arrays_experiment, run_folder


def csv(path: Path, rows: int, seed: int, *, older: float = 0.0, sex: str = "fm", label: bool = True) -> Path:
    draws = np.random.default_rng(seed)
    lines = ["age,amount of money,class,sex" + ",y" * label]
    for _ in range(rows):
        cells = [f"{draws.normal(50 + older, 10):.2f}", f"{draws.normal():.3f}", str(draws.choice([1, 2, 9]))]
        cells += [str(draws.choice(list(sex))), *[str(draws.choice(["yes", "no"]))] * label]
        lines.append(",".join(cells))
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def site(tmp_path: Path) -> Path:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "site.toml").write_text('label = "a"\ndata_set = "a"\n', encoding="utf-8")
    csv(folder / "data.csv", 1000, 1)
    run_folder(tmp_path / "run")
    return folder


def monitored(site: Path, data: Path, *options: str) -> Any:
    arguments = ["client", "monitor", str(site), "--model", str(site.parent / "run"), "--data", str(data)]
    return CliRunner().invoke(app, [*arguments, *options])


@pytest.mark.parametrize(("m", "n"), [(2000, 40), (2000, 80), (1000, 500)])
def test_where_nothing_has_changed_psi_is_what_the_formula_says_and_one_in_a_thousand_exceeds_its_quantile(
    m: int, n: int
) -> None:
    draws = np.random.default_rng(7)
    found = [drift(*cut(draws.normal(size=m), draws.normal(size=n))) for _ in range(3000)]
    mean = np.mean([each.psi for each in found])
    assert 0.85 < mean / found[0].expected < 1.2
    # 3 are expected; a bound of 12 is passed by chance once in 60,000 times.
    assert sum(each.beyond_chance for each in found) <= 12
    # ... and without the quantile nearly half of the small files would be alarms at the convention's 0.25
    if n == 40:
        assert sum(each.psi > 0.25 for each in found) > 1000


def test_chance_in_a_small_file_is_not_called_drift(site: Path) -> None:
    for seed in range(10):
        done = monitored(site, csv(site.parent / "new.csv", 40, 100 + seed))
        assert done.exit_code == 0, done.output
    assert "fewer than 100 new rows" in done.output


def test_a_column_that_has_moved_is_named_and_the_exit_code_is_1(site: Path) -> None:
    done = monitored(site, csv(site.parent / "new.csv", 300, 2, older=15.0), "--json")
    found = json.loads(done.output)
    states = {column["name"]: column["drift"]["state"] for column in found["columns"]}
    assert done.exit_code == 1 and found["drifted"]
    assert states["age"] == "drifted" and states["amount of money"] == states["class"] == "stable"
    assert {"auroc", "accuracy", "ece"} == set(found["metrics"])
    # "9" is no category of the schema, a third of the cells then and now
    unseen = {column["name"]: column["unseen"] for column in found["columns"]}
    assert 60 < unseen["class"] < 140 and unseen["sex"] == 0


@pytest.mark.parametrize("to", [-1.0, 1.0])
def test_what_leaves_the_only_value_of_a_column_is_seen_on_either_side(to: float) -> None:
    found = drift(*cut(np.zeros(500), np.where(np.arange(500) < 250, to, 0.0)))
    assert found.state == "drifted"


def test_cells_that_have_become_empty_are_drift() -> None:
    x = np.random.default_rng(3).normal(size=1000)
    assert drift(*cut(x, np.where(np.arange(1000) < 400, np.nan, x))).state == "drifted"
    assert drift(*cut(np.full(100, np.nan), np.full(50, np.nan))).state == "stable"


def test_without_labels_metrics_are_skipped_with_a_sentence(site: Path) -> None:
    done = monitored(site, csv(site.parent / "new.csv", 300, 3, label=False))
    assert done.exit_code == 0
    assert "has no column 'y': whether predictions are right is skipped" in done.output
    assert "auroc" not in done.output and "prediction" in done.output and "\x1b" not in done.output


def test_a_row_that_the_model_refuses_is_counted_and_not_predicted(site: Path) -> None:
    done = monitored(site, csv(site.parent / "new.csv", 300, 4, sex="fmx"), "--json")
    found = json.loads(done.output)
    (sex,) = (column for column in found["columns"] if column["name"] == "sex")
    assert sex["unseen"] > 50 and sex["drift"]["state"] == "drifted"
    assert f"{sex['unseen']} new rows have a cell that the model does not take" in found["notes"][0]


def test_predictions_then_are_of_the_test_records_where_there_are_any(tmp_path: Path, site: Path) -> None:
    schema = {**TABLE["data"]["schema"], "split": "part"}
    run_folder(tmp_path / "run", {**TABLE, "data": {"schema": schema}})
    lines = (site / "data.csv").read_text(encoding="utf-8").splitlines()
    parts = ["part", *["train"] * 700, *["test"] * 300]
    text = "\n".join(f"{line},{part}" for line, part in zip(lines, parts, strict=True))
    (site / "data.csv").write_text(text, encoding="utf-8")
    done = monitored(site, csv(site.parent / "new.csv", 200, 5))
    assert "700 training rows, 200 new; predictions then are of the site's test records" in done.output


def test_other_models_and_other_files_are_refused_in_one_line(tmp_path: Path, site: Path) -> None:
    (site.parent / "new.csv").write_text("age\n1\n", encoding="utf-8")
    assert "the header lacks 'amount of money'" in str(monitored(site, site.parent / "new.csv").exception)
    data = csv(site.parent / "new.csv", 0, 6)
    assert "has no rows" in str(monitored(site, data).exception)
    run_folder(tmp_path / "run", arrays_experiment("classification", "mlp", shape=[3], classes=["a", "b"]))
    assert "are monitored" in str(monitored(site, data).exception)
