"""The folders of a simulation's sites: what is in them, and that they are complete or absent."""

from __future__ import annotations

import csv
import io
import os
import tomllib
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from rich.console import Console

import simulations.partition.folders
from simulations.sites import PreparedSites, partition_table, prepare_sites, terminal_table
from tacit import config
from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import Schema
from tacit.errors import ConfigError, DataError, StorageError

SCENARIOS = Path(simulations.partition.folders.__file__).parents[1] / "scenarios"
SCHEMA = Schema.model_validate(
    {
        "label": "sick",
        "site": "hospital",
        "columns": {
            "age": {"kind": "numeric", "range": [18, 90]},
            "ward": {"kind": "categorical", "categories": ["a", "b"]},
        },
    }
)
EXPERIMENT = """
name = "wards"
[partition]
kind = "natural"
column = "hospital"
[data]
split_seed = 43
test_fraction = 0.34
[privacy.record]
epsilon = 1.0
delta = 1e-4
"""


def experiment(*overrides: str) -> config.Experiment:
    return config.loads(EXPERIMENT, overrides=overrides)


def patients(rows: int = 200, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.uniform(18, 90, rows),
            "ward": rng.choice(["a", "b", "?"], rows, p=[0.5, 0.45, 0.05]),
            "sick": rng.integers(0, 2, rows),
            "hospital": rng.choice(["north", "south, old", 'west "wing"'], rows),
            "note": rng.choice(["plain", "two\r\nlines", 'a "quote", and a comma'], rows),
        }
    )


def read(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as handle:
        return list(csv.DictReader(handle))


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


@pytest.fixture
def prepared(tmp_path: Path) -> PreparedSites:
    return prepare_sites(experiment(), patients(), SCHEMA, tmp_path / "run")


def test_every_row_of_the_table_is_in_exactly_one_sites_file_unchanged(prepared: PreparedSites) -> None:
    table = patients()
    seen = [(float(r["age"]), r["ward"], r["sick"], r["hospital"], r["note"]) for r in everything(prepared)]
    expected = zip(
        table["age"], table["ward"], table["sick"].astype(str), table["hospital"], table["note"], strict=True
    )
    assert sorted(seen) == sorted(expected)


def everything(prepared: PreparedSites) -> list[dict[str, str]]:
    return [row for i in range(len(prepared.sites)) for row in read(prepared.data_path(i))]


def test_counts_are_those_of_the_files_and_rows_held_out_are_never_declared_as_rows_to_train_on(
    prepared: PreparedSites,
) -> None:
    declared = prepared.experiment.federation.sites
    assert [s.label for s in declared] == ["north", "south, old", 'west "wing"']
    for i, (site, public) in enumerate(zip(prepared.sites, declared, strict=True)):
        rows = read(prepared.data_path(i))
        assert {r["hospital"] for r in rows} == {site.label} == {public.label}
        for split, count in (("train", site.train_rows), ("test", site.test_rows)):
            of_split = [r["sick"] for r in rows if r["split"] == split]
            assert len(of_split) == count == sum(site.label_counts[split].values())
            assert {c: of_split.count(c) for c in ("0", "1")} == site.label_counts[split]
        assert public.rows == site.train_rows == len(rows) - -(-34 * len(rows) // 100)


def test_a_site_reads_with_the_resolved_schema_what_it_was_counted_with(prepared: PreparedSites) -> None:
    schema = prepared.experiment.data.columns
    assert schema is not None and schema.split == "split"
    for i, site in enumerate(prepared.sites):
        table = read_table(prepared.data_path(i), schema)
        for split, counts in site.label_counts.items():
            _, classes = transform(table, schema, split=split)
            assert np.bincount(classes, minlength=2).tolist() == list(counts.values())


def test_the_resolved_experiment_needs_nothing_but_itself(prepared: PreparedSites) -> None:
    again = config.loads((prepared.folder / "experiment.toml").read_text())
    assert again == prepared.experiment and again.cohort_size == 3


def test_each_site_has_its_label_and_the_name_of_its_data_set(prepared: PreparedSites) -> None:
    tables = [tomllib.loads((prepared.folder / str(i) / "site.toml").read_text()) for i in range(3)]
    assert tables[1] == {"label": "south, old", "data_set": "wards/south, old"}
    assert len({t["data_set"] for t in tables}) == 3


def test_folders_and_files_are_the_owners_alone(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        folder = prepare_sites(experiment(), patients(), SCHEMA, tmp_path).folder
    finally:
        os.umask(before)
    for path in [folder, *folder.rglob("*")]:
        assert path.stat().st_mode & 0o777 == (0o700 if path.is_dir() else 0o600)


def test_rows_with_an_empty_cell_are_dropped_before_the_split_where_the_schema_says_so(
    tmp_path: Path,
) -> None:
    table = patients()
    table.loc[table.index[:20], "age"] = np.nan
    complete = table[table["age"].notna() & (table["ward"] != "?")]
    schema = SCHEMA.model_copy(update={"missing_rows": "drop"})
    a = prepare_sites(experiment(), table, schema, tmp_path / "a")
    b = prepare_sites(experiment(), complete, schema, tmp_path / "b")
    assert a.sites == b.sites and sum(s.rows for s in a.sites) == len(complete) < len(table)


def test_a_split_that_the_data_bring_is_kept(tmp_path: Path) -> None:
    table = patients().assign(fold=lambda t: np.where(t.index % 5 == 0, "test", "train"))
    schema = SCHEMA.model_copy(update={"split": "fold"})
    prepared = prepare_sites(experiment(), table, schema, tmp_path)
    assert sum(s.test_rows for s in prepared.sites) == 40
    assert prepared.experiment.data.columns == schema
    assert "split" not in everything(prepared)[0]


def test_another_split_seed_moves_test_rows_and_nothing_else(tmp_path: Path) -> None:
    a, b = (
        prepare_sites(experiment(f"data.split_seed={seed}"), patients(), SCHEMA, tmp_path / str(seed))
        for seed in (42, 43)
    )
    rows_a, rows_b = everything(a), everything(b)
    assert [r["split"] for r in rows_a] != [r["split"] for r in rows_b]
    assert [r | {"split": ""} for r in rows_a] == [r | {"split": ""} for r in rows_b]


def test_the_same_experiment_and_data_give_the_same_files_and_find_them_again(tmp_path: Path) -> None:
    first = prepare_sites(experiment(), patients(), SCHEMA, tmp_path / "a")
    other = prepare_sites(experiment(), patients(), SCHEMA, tmp_path / "b")
    assert files(first.folder) == files(other.folder) and first.fingerprint == other.fingerprint
    stamps = {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")}
    assert prepare_sites(experiment(), patients(), SCHEMA, tmp_path / "a") == first
    assert {p: p.stat().st_mtime_ns for p in first.folder.rglob("*")} == stamps
    assert os.listdir(tmp_path / "a") == ["sites"]


def test_other_files_in_their_place_are_refused_never_overwritten(tmp_path: Path) -> None:
    folder = prepare_sites(experiment(), patients(), SCHEMA, tmp_path).folder
    for again, table, words in (
        (experiment("seed=8"), patients(), "another experiment"),
        (experiment(), patients(seed=1), "other data"),
    ):
        before = files(folder)
        with pytest.raises(ConfigError, match=words):
            prepare_sites(again, table, SCHEMA, tmp_path)
        assert files(folder) == before
    cell = (folder / "1" / "data.csv").read_bytes().replace(b"plain", b"plane", 1)
    (folder / "1" / "data.csv").write_bytes(cell)
    with pytest.raises(ConfigError, match="changed"):
        prepare_sites(experiment(), patients(), SCHEMA, tmp_path)
    (folder / "1" / "data.csv").unlink()
    with pytest.raises(ConfigError, match="changed"):
        prepare_sites(experiment(), patients(), SCHEMA, tmp_path)


def test_the_folder_is_complete_or_absent(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls, real = [], simulations.partition.folders.csv_text

    def full_disk(frame: pd.DataFrame) -> str:
        calls.append(frame)
        if len(calls) == 3:
            raise OSError(28, "No space left on device")
        return real(frame)

    (tmp_path / ".sites.unfinished" / "0").mkdir(parents=True)  # what a killed process leaves
    with monkeypatch.context() as patch:
        patch.setattr(simulations.partition.folders, "csv_text", full_disk)
        with pytest.raises(StorageError, match="No space left"):
            prepare_sites(experiment(), patients(), SCHEMA, tmp_path)
    assert os.listdir(tmp_path) == []
    assert len(prepare_sites(experiment(), patients(), SCHEMA, tmp_path).sites) == 3


def test_an_output_folder_that_is_a_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "run").touch()
    with pytest.raises(StorageError, match="run"):
        prepare_sites(experiment(), patients(), SCHEMA, tmp_path / "run")


ONE_SITE = {"hospital": "north"}
BAD = [
    ({}, {}, ["privacy.record.delta=0.5"], ConfigError, "delta must be below"),
    (ONE_SITE, {}, [], ConfigError, "max_corrupt"),
    ({"split": "train"}, {}, [], ConfigError, 'a column "split"'),
    ({"fold": "validation"}, {"split": "fold"}, [], DataError, "fold"),
    ({"fold": "test"}, {"split": "fold"}, [], DataError, "no row to train on"),
    ({"sick": 2}, {}, [], DataError, "none of the declared classes"),
    ({}, {"label": "dead"}, [], DataError, "dead"),
    ({"age": np.nan}, {"missing_rows": "drop"}, [], DataError, "no rows"),
]


@pytest.mark.parametrize(("columns", "schema", "overrides", "error", "words"), BAD, ids=[b[-1] for b in BAD])
def test_sites_that_cannot_be_are_refused_before_anything_is_written(
    columns: dict[str, object],
    schema: dict[str, str],
    overrides: list[str],
    error: type[Exception],
    words: str,
    tmp_path: Path,
) -> None:
    table = patients().assign(**columns)
    with pytest.raises(error, match=words):
        prepare_sites(experiment(*overrides), table, SCHEMA.model_copy(update=schema), tmp_path)
    assert os.listdir(tmp_path) == []


def test_a_site_that_could_not_be_stratified_is_warned_about(tmp_path: Path) -> None:
    table = patients()
    north = table.index[table["hospital"] == "north"]
    table.loc[north, "sick"] = 0
    table.loc[north[:1], "sick"] = 1
    (warning,) = prepare_sites(experiment(), table, SCHEMA, tmp_path).warnings
    assert "north" in warning and "stratified" in warning


def test_who_got_what_as_a_record_and_on_the_terminal(tmp_path: Path) -> None:
    many = experiment("partition.kind=iid", "partition.num_clients=40", "partition.min_rows=3")
    prepared = prepare_sites(many, patients(), SCHEMA, tmp_path)
    entries = partition_table(prepared)
    assert sum(e["rows"] for e in entries) == 200
    for entry in entries:
        assert list(entry) == ["label", "rows", "train_rows", "test_rows", "label_counts", "shares"]
        assert entry["rows"] == entry["train_rows"] + entry["test_rows"]
        assert sum(entry["shares"].values()) == pytest.approx(1)
    console = Console(record=True, width=100, file=io.StringIO())
    console.print(terminal_table(prepared))
    text = console.export_text()
    assert "site-01" in text and "and 10 more" in text and "40 sites, 200 rows" in text


@pytest.mark.parametrize(
    ("name", "kind", "clients", "epsilon", "delta"),
    [
        ("breast_cancer", "dirichlet", 10, 3.0, 1e-5),
        ("heart_disease", "natural", None, 1.0, 1e-4),
        ("credit_default", "dirichlet", 20, 3.0, 1e-5),
    ],
)
def test_a_scenario_is_a_valid_private_experiment(
    name: str, kind: str, clients: int | None, epsilon: float, delta: float
) -> None:
    scenario = config.load(SCENARIOS / f"{name}.toml")
    record = scenario.privacy.record
    assert scenario.data.source == name and scenario.data.columns is None
    assert scenario.partition.kind == kind and scenario.secure_aggregation.enabled
    assert clients is None or (scenario.partition.num_clients, scenario.partition.alpha) == (clients, 0.5)
    assert record is not None and (record.epsilon, record.delta) == (epsilon, delta)
    assert config.load(SCENARIOS / f"{name}.toml", ["privacy=none"]).privacy == config.Privacy()
