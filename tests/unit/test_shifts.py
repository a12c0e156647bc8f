"""How sites differ beyond which rows they have, and in which rounds they take part."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from simulations.partition.folders import csv_text
from simulations.partition.shifts import attendance, shifted
from simulations.sites import prepare_sites
from strategies.rounds import Rounds
from tacit import config
from tacit.config import Partition
from tacit.data.schema import Schema
from tacit.errors import ConfigError, DataError, TacitError

SCHEMA = Schema.model_validate(
    {
        "label": "sick",
        "columns": {
            "age": {"kind": "numeric", "range": [18, 90]},
            "dose": {"kind": "numeric", "center": 5.0, "scale": 2.0, "clip": 3.0},
            "ward": {"kind": "categorical", "categories": ["a", "b", "c"]},
        },
    }
)
LABELS = ["site-1", "site-2", "site-3"]


def frames(rows: int = 400) -> list[pd.DataFrame]:
    rng = np.random.default_rng(0)
    return [
        pd.DataFrame(
            {
                "age": rng.uniform(18, 90, rows),
                "dose": rng.uniform(0, 10, rows),
                "ward": rng.choice(["a", "b"], rows),
                "sick": (rng.random(rows) < 0.3).astype(int),
                "day": rng.integers(0, 365, rows),
            }
        )
        for _ in LABELS
    ]


def shifts(*tables: dict[str, Any]) -> tuple[Any, ...]:
    return Partition.model_validate({"shifts": list(tables)}).shifts


def apply(*tables: dict[str, Any], seed: int = 7) -> list[pd.DataFrame]:
    return shifted(frames(), LABELS, SCHEMA, shifts(*tables), seed)


EACH: list[tuple[dict[str, Any], set[str]]] = [
    ({"kind": "scanner", "columns": ["dose"], "strength": 0.8}, {"dose"}),
    ({"kind": "scanner", "columns": ["age"], "gain": 1.2, "offset": 3.0}, {"age"}),
    ({"kind": "scanner", "columns": ["age"], "strength": 0.0, "noise": 0.1}, {"age"}),
    ({"kind": "unit", "columns": ["dose"], "factor": 88.4}, {"dose"}),
    ({"kind": "coding", "column": "ward", "codes": {"b": "c"}, "rate": 0.5}, {"ward"}),
    ({"kind": "coding", "column": "sick", "codes": {"0": "1"}, "rate": 0.1}, {"sick"}),
    ({"kind": "drift", "columns": ["age"], "by": "day", "strength": 0.5}, {"age"}),
    ({"kind": "missing", "columns": ["age", "ward"], "rate": 0.3}, {"age", "ward"}),
]


@pytest.mark.parametrize(
    ("table", "columns"), EACH, ids=[f"{t['kind']}-{i}" for i, (t, _) in enumerate(EACH)]
)
def test_a_shift_changes_only_the_sites_rows_and_columns_that_it_names(
    table: dict[str, Any], columns: set[str]
) -> None:
    before, after = frames(), apply({**table, "sites": ["site-2"]})
    assert after[0].equals(before[0]) and after[2].equals(before[2])
    changed = {name for name in before[1] if not after[1][name].equals(before[1][name])}
    assert changed == columns and len(after[1]) == len(before[1])


ELSEWHERE = """
import numpy, random
numpy.random.seed(99)
random.seed(99)
from tests.unit.test_shifts import EACH, apply
print(hash_of(apply(*[table for table, _ in EACH])))
"""


def hash_of(sites: list[pd.DataFrame]) -> str:
    return hashlib.sha256("".join(csv_text(frame) for frame in sites).encode()).hexdigest()


def test_the_same_seed_gives_the_same_shifts_in_any_process() -> None:
    program = ELSEWHERE.replace("import EACH, apply", "import EACH, apply, hash_of")
    root = Path(__file__).parents[2]
    child = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert child.stderr == "" and child.stdout.strip() == hash_of(apply(*[table for table, _ in EACH]))


def test_another_seed_draws_other_sites_gains_and_cells() -> None:
    for table in (EACH[0][0], EACH[7][0], {"kind": "duplicates", "rate": 0.2}):
        assert not apply(table)[0].equals(apply(table, seed=8)[0])
    drawn = {
        tuple(i for i in range(3) if not f[i].equals(frames()[i]))
        for seed in range(9)
        if (f := apply({**EACH[0][0], "share": 0.3}, seed=seed))
    }
    assert len(drawn) == 3 and all(len(sites) == 1 for sites in drawn)


def test_a_scanner_reads_gain_and_offset_within_what_can_be_read() -> None:
    before, after = frames()[0], apply({"kind": "scanner", "columns": ["age"], "gain": 2.0, "offset": 5.0})[0]
    np.testing.assert_allclose(after["age"], (2 * (before["age"] - 54) + 54 + 5).clip(18, 90))
    noisy = (
        apply({"kind": "scanner", "columns": ["age"], "strength": 0, "noise": 0.2})[0]["age"] - before["age"]
    )
    assert abs(noisy[before["age"].between(45, 63)].std() - 0.2 * 36) < 1.5


def test_another_unit_stands_in_the_file_as_it_is() -> None:
    after = apply({"kind": "unit", "columns": ["dose"], "factor": 1.8, "offset": 32.0})[1]
    np.testing.assert_allclose(after["dose"], 1.8 * frames()[1]["dose"] + 32)


def test_another_code_book_renames_the_stated_share_of_cells() -> None:
    before, after = frames()[0]["ward"], apply(EACH[4][0])[0]["ward"]
    assert set(after[before == "a"]) == {"a"} and set(after[before == "b"]) == {"b", "c"}
    assert abs(float((after[before == "b"] == "c").mean()) - 0.5) < 0.12
    sick = apply(EACH[5][0])[0]["sick"]
    assert sick.dtype == np.int64 and sick.sum() > frames()[0]["sick"].sum()


def test_a_drift_grows_from_nothing_to_its_strength_as_time_goes_by() -> None:
    before, after = frames()[0], apply({**EACH[6][0], "strength": 0.1})[0]
    moved, inside = after["age"] - before["age"], before["age"].between(20, 84)
    np.testing.assert_allclose(moved[inside], (0.1 * 36 * before["day"] / 364)[inside], atol=0.02)
    by_row = apply({"kind": "drift", "columns": ["dose"], "strength": 0.1})[0]["dose"] - before["dose"]
    assert abs(float(by_row.iloc[0])) < 1e-9 and abs(float(by_row.iloc[-1]) - 0.6) < 1e-9


@pytest.mark.parametrize(
    ("extra", "likelier"),
    [
        ({"depends": "value"}, lambda f: f["age"] > f["age"].median()),
        ({"depends": "value", "ratio": 0.1}, lambda f: f["age"] < f["age"].median()),
        ({"depends": "label"}, lambda f: f["sick"] == 1),
        ({"depends": "label", "label": "0"}, lambda f: f["sick"] == 0),
    ],
)
def test_cells_go_missing_in_the_stated_number_and_the_likelier_ones_first(
    extra: dict[str, Any], likelier: Any
) -> None:
    before = frames()[0]
    lost = apply({"kind": "missing", "columns": ["age"], "rate": 0.25, **extra})[0]["age"].isna()
    assert lost.sum() == 100
    chosen = likelier(before)
    assert lost[chosen].mean() > 1.7 * lost[~chosen].mean()


def test_missing_without_a_reason_is_at_random() -> None:
    before = frames()[0]
    lost = apply({"kind": "missing", "columns": ["age"], "rate": 0.5, "depends": "nothing"})[0]["age"].isna()
    high = before["age"] > before["age"].median()
    assert lost.sum() == 200 and abs(float(lost[high].mean() - lost[~high].mean())) < 0.15


def test_duplicated_people_are_rows_of_other_sites_and_come_on_top() -> None:
    before, after = frames(), apply({"kind": "duplicates", "rate": 0.1})
    others = pd.concat([before[1], before[2]]).apply(tuple, axis=1)
    assert after[0].iloc[:400].equals(before[0]) and len(after[0]) == 440
    assert set(after[0].iloc[400:].apply(tuple, axis=1)) <= set(others)


def test_shifts_happen_in_their_order() -> None:
    copied = {"kind": "duplicates", "rate": 0.5, "sites": ["site-1"]}
    unit = {"kind": "unit", "columns": ["dose"], "factor": 100.0, "sites": ["site-1"]}
    first, last = apply(copied, unit)[0], apply(unit, copied)[0]
    assert (first["dose"].iloc[400:] > 10).any() and (last["dose"].iloc[400:] <= 10).all()


BAD = [
    (
        {"kind": "scanner", "sites": ["site-9"]},
        r"partition\.shifts\.0\.sites: there is no site 'site-9'; there are",
    ),
    ({"kind": "scanner", "columns": ["weight"]}, "no column 'weight'"),
    ({"kind": "scanner", "columns": ["ward"]}, "'ward' is not numeric"),
    ({"kind": "coding", "column": "age", "codes": {"1": "2"}}, "neither categorical nor the label"),
    ({"kind": "coding", "column": "sick", "codes": {"0": "9"}}, "'9' is none of the names"),
    ({"kind": "coding", "column": "ward", "codes": {"x": "a"}}, "'x' is none of the names"),
    ({"kind": "drift", "by": "year"}, "no column 'year'"),
    ({"kind": "missing", "columns": ["age"], "depends": "label", "label": "3"}, "no class '3'"),
]


@pytest.mark.parametrize(("table", "words"), BAD, ids=[words for _, words in BAD])
def test_a_shift_that_does_not_fit_is_one_line_that_names_the_key(table: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        apply(table)
    assert str(caught.value).startswith("partition.shifts.0")


MALFORMED = [
    ("kind = 'fog'", "partition.shifts.0"),
    ("kind = 'joins'\nround = 3", "needs sites or share"),
    ("kind = 'joins'\nround = 1\nshare = 0.1", r"partition\.shifts\.0\.round: input should be greater"),
    ("kind = 'scanner'\ngain = 1.5\nstrength = 1.0", "gain and offset, or strength"),
    ("kind = 'missing'\ncolumns = ['age']\nlabel = '1'", 'label belongs to depends = "label"'),
    ("kind = 'missing'\ncolumns = ['age']\nrate = 1.5", r"partition\.shifts\.0\.rate"),
    ("kind = 'unit'\nfactor = 2.0", r"partition\.shifts\.0\.columns: required key is missing"),
    ("kind = 'scanner'\nsites = ['a']\nshare = 0.5", "sites or share, not both"),
]


@pytest.mark.parametrize(("table", "words"), MALFORMED, ids=[words for _, words in MALFORMED])
def test_a_malformed_shift_is_one_line(table: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        config.loads(f"name = 'x'\n[[partition.shifts]]\n{table}")
    assert "\n" not in str(caught.value)


def test_words_where_a_shift_needs_numbers_are_a_data_error() -> None:
    own = [frame.astype({"age": object}) for frame in frames()]
    own[0].loc[3, "age"] = "secret"
    with pytest.raises(DataError, match="age") as caught:
        shifted(own, LABELS, SCHEMA, shifts({"kind": "unit", "columns": ["age"]}), 1)
    assert "secret" not in str(caught.value)


def experiment(extra: str = "", **training: int) -> config.Experiment:
    settings = "\n".join(f"{key} = {value}" for key, value in training.items())
    return config.loads(
        f"name = 'x'\n[secure_aggregation]\nenabled = false\n[training]\n{settings}\n"
        f"[partition]\nnum_clients = 4\n{extra}"
    )


TURNS = """
[[partition.shifts]]
kind = "joins"
sites = ["site-2"]
round = 3
[[partition.shifts]]
kind = "leaves"
sites = ["site-4"]
round = 5
"""


def prepared(tmp_path: Path, wanted: config.Experiment) -> config.Experiment:
    table = pd.concat(frames(60), ignore_index=True)
    return prepare_sites(wanted, table, SCHEMA, tmp_path).experiment


def cohorts(ready: config.Experiment) -> list[list[str]]:
    rounds = Rounds.__new__(Rounds)
    rounds.experiment, rounds.nodes = ready, {s.label: i for i, s in enumerate(ready.federation.sites)}
    return [rounds.draw(number) for number in range(1, ready.training.rounds + 1)]


def test_a_site_is_invited_from_the_round_it_joins_to_the_one_it_leaves(tmp_path: Path) -> None:
    drawn = cohorts(prepared(tmp_path, experiment(TURNS, rounds=40, clients_per_round=3)))
    asked = {
        label: {n for n, cohort in enumerate(drawn, 1) if label in cohort} for label in ("site-2", "site-4")
    }
    assert min(asked["site-2"]) >= 3 and max(asked["site-4"]) == 4
    assert {len(cohort) for cohort in drawn} == {3}
    assert len(asked["site-2"]) > 30 and asked["site-4"] >= {1, 2}


def test_the_cohort_is_as_large_as_in_the_round_with_the_fewest_sites(tmp_path: Path) -> None:
    ready = prepared(tmp_path, experiment(TURNS, rounds=8))
    assert ready.cohort_size == 3 and {len(cohort) for cohort in cohorts(ready)} == {3}


def test_a_cohort_that_is_not_there_in_some_round_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="clients_per_round is above the 3 clients"):
        prepared(tmp_path, experiment(TURNS, rounds=8, clients_per_round=4))


def test_turns_that_cannot_be_are_refused(tmp_path: Path) -> None:
    late = shifts({"kind": "joins", "sites": ["site-1"], "round": 9})
    with pytest.raises(ConfigError, match=r"partition\.shifts\.0\.round: round 9 of a run that has 8"):
        attendance(late, LABELS, 7, 8)
    twice = shifts(*[{"kind": "leaves", "sites": ["site-1"], "round": 4}] * 2)
    with pytest.raises(ConfigError, match="'site-1' leaves twice"):
        attendance(twice, LABELS, 7, 8)
    backwards = TURNS.replace("site-2", "site-4").replace("round = 3", "round = 6")
    with pytest.raises(TacitError, match="leaves in round 5, and joins in 6"):
        prepared(tmp_path, experiment(backwards, rounds=8))


def test_the_latest_rows_of_each_site_are_held_out(tmp_path: Path) -> None:
    wanted = config.loads(
        "name = 'x'\n[partition]\nnum_clients = 3\n[data]\nsplit_by = 'day'\ntest_fraction = 0.3"
    )
    prepare_sites(wanted, pd.concat(frames(60), ignore_index=True), SCHEMA, tmp_path)
    for i in range(3):
        rows = pd.read_csv(tmp_path / "sites" / str(i) / "data.csv")
        by_split = {name: group["day"] for name, group in rows.groupby("split")}
        assert by_split["test"].min() >= by_split["train"].max() and len(by_split["test"]) == 18


def test_people_at_two_sites_are_said_to_have_twice_the_epsilon(tmp_path: Path) -> None:
    wanted = experiment('[[partition.shifts]]\nkind = "duplicates"', rounds=2)
    table = pd.concat(frames(60), ignore_index=True)
    assert "twice its epsilon" in prepare_sites(wanted, table, SCHEMA, tmp_path).warnings[0]
