"""`tacit synthesize`: the file it writes, what it prints beside it, and what it says of the rows."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.stats import ks_2samp
from typer.testing import CliRunner

from tacit.cli import app, main
from tacit.data.readers import read_table
from tacit.data.schema import Schema
from tacit.errors import RunFailed
from tacit.inference.closeness import Closeness, closeness, most_advantage, nearest
from tacit.inference.fidelity import column_distance, correlation_difference, features_of, fidelity
from tacit.inference.synthetic import made_up
from tacit.inference.trained import Trained
from tests.unit.trained_runs import COLUMNS, TABLE, run_folder

NAMES = {"age": {**COLUMNS["age"], "decimals": 0}, **{k: v for k, v in COLUMNS.items() if k != "age"}}
SYNTHESIS: dict[str, Any] = {
    "name": "made up",
    "task": {
        "kind": "tabular_synthesis",
        "class_shares": [3.0, 1.0],
        "model": {"name": "gan", "hidden": [8], "latent": 4},
    },
    "data": {"schema": {"label": "y", "classes": ["no", "yes"], "columns": NAMES}},
}
SITES = {"sites": [{"label": f"s{i}", "rows": 400} for i in range(5)]}
PRIVATE = {**SYNTHESIS, "privacy": {"record": {"epsilon": 3.0, "delta": 1e-4}}, "federation": SITES}


def tacit(*arguments: object) -> Any:
    return CliRunner().invoke(app, [*map(str, arguments)], catch_exceptions=False)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return run_folder(tmp_path_factory.mktemp("run"), SYNTHESIS)


def schema(**more: Any) -> Schema:
    return Schema.model_validate({**SYNTHESIS["data"]["schema"], **more})


def real_file(path: Path, rows: int, seed: int, parts: bool = False) -> Path:
    rng = np.random.default_rng(seed)
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["age", "amount of money", "class", "sex", "y", *["part"] * parts])
        for i in range(rows):
            y = rng.integers(2)
            age = "" if rng.random() < 0.1 else int(rng.normal(40 + 20 * y, 8))
            line = [
                age,
                round(rng.normal() * 50, 2),
                rng.choice(["1", "2"]),
                rng.choice(["f", "m"]),
                ["no", "yes"][y],
            ]
            writer.writerow([*line, *[["train", "test"][i % 2]] * parts])
    return path


def test_the_same_seed_gives_the_same_file_and_another_one_another(run: Path, tmp_path: Path) -> None:
    files = [tmp_path / name for name in ("a.csv", "b.csv", "c.csv")]
    for number, (path, seed) in enumerate(zip(files, (1, 1, 2), strict=True)):
        torch.manual_seed(number)
        done = tacit("synthesize", run, "--rows", 50, "--seed", seed, "--out", path)
        assert done.exit_code == 0, done.output
    one, same, other = (path.read_bytes() for path in files)
    assert one == same != other
    assert files[0].stat().st_mode & 0o077 == 0


def test_rows_are_made_of_the_model_the_schema_and_the_seed_alone(run: Path, tmp_path: Path) -> None:
    """Nothing else is read, --data included: the rows are those that come without."""
    real = real_file(tmp_path / "real.csv", 60, 1)
    for name, more in (("plain.csv", ()), ("beside.csv", ("--data", real))):
        assert tacit("synthesize", run, "--rows", 40, "--out", tmp_path / name, *more).exit_code == 0
    assert (tmp_path / "plain.csv").read_bytes() == (tmp_path / "beside.csv").read_bytes()
    bare = run_folder(tmp_path / "bare", SYNTHESIS)
    assert sorted(path.name for path in bare.iterdir()) == ["experiment.toml", "model.safetensors"]
    tacit("synthesize", bare, "--rows", 40)
    assert (bare / "synthetic.csv").read_bytes() == (tmp_path / "plain.csv").read_bytes()


@pytest.mark.parametrize("suffix", [".csv", ".tsv", ".parquet"])
def test_a_table_that_is_written_is_read_by_the_schema_and_has_what_it_declares(
    run: Path, tmp_path: Path, suffix: str
) -> None:
    pytest.importorskip("pyarrow") if suffix == ".parquet" else None
    path = tmp_path / f"made{suffix}"
    assert tacit("synthesize", run, "--rows", 5000, "--out", path).exit_code == 0
    table = read_table(path, schema())
    assert table.num_rows == 5000 and list(table.columns) == [*NAMES, "y"]
    age, amount = table.numbers("age"), table.numbers("amount of money")
    assert 0 < np.isnan(age).mean() < 1 and not np.isnan(amount).any()
    known = age[~np.isnan(age)]
    assert known.min() >= 0 and known.max() <= 120 and (known == known.round()).all()
    assert set(table.texts("class")) == {"1", "2", "three", None}
    assert set(table.texts("sex")) == {"f", "m", None}
    assert np.mean([y == "yes" for y in table.texts("y")]) == pytest.approx(0.25, abs=0.03)  # class_shares


def test_it_says_what_the_run_promised_and_that_rows_cost_nothing_more(run: Path, tmp_path: Path) -> None:
    without = tacit("synthesize", run, "--rows", 1, "--out", tmp_path / "a.csv").output
    assert "NOT PRIVATE: epsilon is infinite. These rows may reveal records" in without
    private = run_folder(tmp_path / "private", PRIVATE)
    out = tacit("synthesize", private, "--rows", 1).output
    assert f"1 rows: {private / 'synthetic.csv'}" in out
    assert "epsilon 3, delta 0.0001 per record: those of the run" in out.replace("2.999", "3")
    assert "add nothing to them (post-processing)" in out and "NOT PRIVATE" not in out
    seeded = run_folder(tmp_path / "seeded", {**PRIVATE, "insecure_seeded_noise": True})
    assert "NOT PRIVATE" in tacit("synthesize", seeded, "--rows", 1).output


def test_figures_are_never_written_over_the_rows(run: Path, tmp_path: Path, capsys: Any) -> None:
    real, out = real_file(tmp_path / "real.csv", 50, 1), tmp_path / "rows.json"
    with pytest.raises(SystemExit, match="2"):
        main(["synthesize", str(run), "--data", str(real), "--out", str(out)])
    assert "--out: rows are .csv, .tsv or .parquet" in capsys.readouterr().err and not out.exists()


def test_figures_stand_on_the_terminal_and_in_a_file_of_the_same_name(tmp_path: Path) -> None:
    private = run_folder(
        tmp_path / "run", {**PRIVATE, "data": {"schema": {**PRIVATE["data"]["schema"], "split": "part"}}}
    )
    real = real_file(tmp_path / "real.csv", 400, 1, parts=True)
    out = tacit("synthesize", private, "--rows", 100, "--data", real).output
    for words in (
        "column           distance  of real rows", "columns differ by", "AUROC on real rows",
        "copies of records trained on: 0.00 %", "median distance to the closest record trained on",
        "guessing by closeness who was trained on: advantage", "epsilon allows no test an advantage above 0.90",
        "These figures are of raw records, and nothing has paid for them",
    ):  # fmt: skip
        assert words in out, words
    found = json.loads((private / "synthetic.json").read_text())
    assert (found["rows"], found["seed"], found["privacy"][0]["unit"]) == (100, 0, "record")
    assert set(found["fidelity"]["columns"]) == {*NAMES, "y"} == set(found["reference"])
    assert found["closeness"]["rows"] == [100, 200, 200]
    assert (private / "synthetic.json").stat().st_mode & 0o077 == 0
    two = tacit("synthesize", private, "--rows", 100, "--data", real, "--train", real).output
    assert "copies of records trained on: 0.00 % of the made-up rows, 100.00 % of held-out ones" in two


def test_without_rows_that_were_trained_on_closeness_is_not_known(run: Path, tmp_path: Path) -> None:
    real = real_file(tmp_path / "real.csv", 80, 1)
    out = tacit("synthesize", run, "--rows", 30, "--data", real, "--out", tmp_path / "a.csv").output
    assert "is not known: name those with --train FILE" in out
    assert json.loads((tmp_path / "a.json").read_text())["closeness"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--train", "{real}"), "--train: belongs to --data FILE"),
        (("--data", "{real}", "--out", "{real}"), "--out: is the file of real rows"),
        (("--data", "{folder}/none.csv"), "none.csv: cannot be read"),
        (("--out", "{folder}/none/a.csv"), "none/"),
        (("--data", "{empty}"), "has no complete row"),
    ],
)
def test_what_cannot_be_done_is_one_line(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...], message: str
) -> None:
    real = real_file(tmp_path / "real.csv", 10, 1)
    before, empty = real.read_bytes(), tmp_path / "empty.csv"
    drop = run_folder(
        tmp_path / "run",
        {**SYNTHESIS, "data": {"schema": schema(missing_rows="drop").model_dump(exclude_none=True)}},
    )
    empty.write_text("age,amount of money,class,sex,y\n,1,1,f,no\n")
    places = {"real": real, "folder": tmp_path, "empty": empty}
    with pytest.raises(SystemExit) as end:
        main(["synthesize", str(drop), "--rows", "5", *(a.format(**places) for a in arguments)])
    err = capsys.readouterr().err
    assert end.value.code in (1, 2) and err.count("\n") == 1 and message in err
    assert real.read_bytes() == before


def test_a_run_of_another_kind_or_that_has_diverged_makes_nothing_up(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        main(["synthesize", str(run_folder(tmp_path / "other", TABLE))])
    assert end.value.code == 2
    assert capsys.readouterr().err == (
        'tacit: task.kind: its model makes no rows up: only those of kind = "tabular_synthesis" do, and this is '
        '"tabular"\n'
    )
    trained = Trained.open(run_folder(tmp_path / "run", SYNTHESIS))
    with torch.no_grad():
        next(trained.model.parameters()).fill_(math.nan)
    with pytest.raises(RunFailed, match="generator has diverged"):
        made_up(trained, 3, 0)


def test_distances_of_columns_are_those_of_scipy_and_of_counts(tmp_path: Path) -> None:
    one, other = (read_table(real_file(tmp_path / f"{n}.csv", n, n), schema()) for n in (150, 90))
    numbers = [table.numbers("amount of money") for table in (one, other)]
    assert column_distance(one, other, "amount of money", schema()) == pytest.approx(
        ks_2samp(*numbers).statistic
    )
    shares = [np.mean([cell == "1" for cell in table.texts("class")]) for table in (one, other)]
    assert column_distance(one, other, "class", schema()) == pytest.approx(abs(shares[0] - shares[1]))
    ages = [np.nan_to_num(table.numbers("age"), nan=-1e9) for table in (one, other)]
    assert column_distance(one, other, "age", schema()) == pytest.approx(ks_2samp(*ages).statistic)
    same = fidelity(one, one, one, schema())
    assert (set(same.columns.values()), same.correlation) == ({0.0}, 0.0)
    assert same.auroc_real == same.auroc_synthetic and same.auroc_real is not None and same.auroc_real > 0.8
    x, y = features_of(one, schema())
    assert correlation_difference((x, y), (x * [1, 1, -1, 1, 1, 1, 1, 1], y)) > 0.005


def test_rows_of_a_single_class_have_no_auroc_and_it_is_said(tmp_path: Path) -> None:
    table = read_table(real_file(tmp_path / "a.csv", 40, 1), schema())
    ones = table.where(np.array([cell == "yes" for cell in table.texts("y")]))
    found = fidelity(ones, table, None, schema())
    assert found.auroc_synthetic is None and found.auroc_real is not None
    assert found.notes == ("AUROC is left out where rows are all of one class",)


def of_rows(tmp_path: Path, made: Path) -> Closeness:
    train, held_out = (real_file(tmp_path / f"{seed}.csv", 300, seed) for seed in (1, 2))
    return closeness(*(read_table(path, schema()) for path in (made, train, held_out)), schema())


def test_copies_of_the_training_table_are_found_and_rows_of_their_own_are_not(tmp_path: Path) -> None:
    copied = of_rows(tmp_path, real_file(tmp_path / "made.csv", 300, 1))
    assert copied.copies == 1.0 and copied.distance == 0.0 and copied.advantage > 0.9
    fresh = of_rows(tmp_path, real_file(tmp_path / "made.csv", 300, 3))
    assert fresh.copies < 0.02 and fresh.advantage < fresh.advantage_by_chance == pytest.approx(
        0.152, abs=1e-3
    )
    assert fresh.distance == pytest.approx(fresh.distance_held_out, rel=0.3)


def test_the_closest_is_the_closest_and_the_most_is_what_epsilon_allows() -> None:
    rng = np.random.default_rng(0)
    points, others = (rng.normal(size=(n, 3)).astype(np.float32) for n in (700, 40))
    wanted = np.linalg.norm(points[:, None] - others[None], axis=2).min(1)
    np.testing.assert_allclose(nearest(points, others), wanted, atol=1e-5)
    # Randomised response: right with probability e^epsilon / (1 + e^epsilon).
    assert most_advantage(1.0, 0.0) == pytest.approx((math.e - 1) / (math.e + 1))
    assert most_advantage(0.0, 0.1) == pytest.approx(0.1)
    assert most_advantage(800.0, 1e-5) == pytest.approx(1.0)
