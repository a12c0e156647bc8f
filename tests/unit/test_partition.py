"""How a table becomes sites: the kinds of partition, one by one, and the split of each site's rows."""

from __future__ import annotations

import json
import random
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.model_selection import train_test_split

from simulations.partition import SiteRows, partition
from simulations.partition.split import held_out
from tacit.config import Partition
from tacit.data.schema import Schema
from tacit.errors import ConfigError, DataError, MissingExtra, TacitError

SCHEMA = Schema.model_validate(
    {
        "label": "sick",
        "columns": {
            "age": {"kind": "numeric", "range": [18, 90]},
            "dose": {"kind": "numeric", "center": 5.0, "scale": 2.0, "clip": 3.0},
            "ward": {"kind": "categorical", "categories": ["a", "b"]},
        },
    }
)
ROOT = Path(__file__).parents[2]
KINDS = [
    Partition(kind="iid", num_clients=7),
    Partition(kind="dirichlet", num_clients=7, alpha=0.1, min_rows=25),
    Partition(kind="quantity", num_clients=7, alpha=0.1, min_rows=25),
    Partition(kind="feature_shift", num_clients=7),
    Partition(kind="natural", column="hospital"),
    Partition(kind="label_quantity", num_clients=7, alpha=0.5, size_alpha=0.5, min_rows=25),
    Partition(kind="pathological", num_clients=7, classes_per_client=1),
    Partition(kind="shard", num_clients=6, shards_per_client=3),
    Partition(kind="sizes", num_clients=3, sizes=(300, 80, 20)),
    Partition(kind="linear", num_clients=7),
    Partition(kind="square", num_clients=7),
    Partition(kind="exponential", num_clients=4),
    Partition(kind="distribution", num_clients=6, classes_per_client=1, min_rows=8),
    Partition(kind="continuous", num_clients=7, column="age"),
    Partition(kind="grouped", column="hospital", group_size=2),
]


def patients(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    rng = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "age": rng.integers(18, 91, rows),
            "dose": np.where(rng.random(rows) < 0.1, np.nan, rng.uniform(0, 10, rows)),
            "ward": rng.choice(["a", "b"], rows),
            "sick": np.sort(rng.random(rows) < 0.3).astype(int),  # in file order, as real files often are
            "hospital": rng.choice([10, 9, 2], rows),
        }
    )


def shares(table: pd.DataFrame, sites: list[SiteRows]) -> np.ndarray:
    return np.array([s.take(table)["sick"].mean() for s in sites])


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
def test_every_row_is_at_exactly_one_site_and_no_site_has_fewer_than_min_rows(settings: Partition) -> None:
    table = patients()
    sites = partition(table, SCHEMA, settings, seed=3)
    assert sorted(np.concatenate([s.rows for s in sites])) == list(range(len(table)))
    assert all(len(s.rows) >= settings.min_rows for s in sites)
    assert len({s.label for s in sites}) == len(sites)
    assert len(sites) == {"natural": 3, "grouped": 2}.get(settings.kind, settings.num_clients)
    assert all((np.diff(s.rows) > 0).all() for s in sites)


def test_label_skew_grows_as_alpha_shrinks_and_the_other_kinds_have_none() -> None:
    table = patients(4000)
    spread = {
        alpha: shares(table, partition(table, SCHEMA, Partition(kind="dirichlet", alpha=alpha), seed=1)).std()
        for alpha in (0.1, 1.0, 100.0)
    }
    assert spread[0.1] > 2 * spread[100.0]
    assert spread[0.1] > spread[1.0] > spread[100.0]
    for kind in ("iid", "feature_shift"):
        assert shares(table, partition(table, SCHEMA, Partition(kind=kind), seed=1)).std() < 0.05


def test_quantity_skew_is_in_the_sizes() -> None:
    table = patients(4000)
    sites = partition(table, SCHEMA, Partition(kind="quantity", alpha=0.3, min_rows=50), seed=1)
    sizes = [len(s.rows) for s in sites]
    assert min(sizes) >= 50 and max(sizes) > 5 * min(sizes)
    assert shares(table, sites).std() < 0.15


def test_natural_sites_are_the_values_of_the_column_in_their_order_and_keep_the_order_of_the_file() -> None:
    table = patients()
    sites = partition(table, SCHEMA, Partition(kind="natural", column="hospital"), seed=1)
    assert [s.label for s in sites] == ["2", "9", "10"]
    for site in sites:
        assert site.take(table).equals(table[table["hospital"] == int(site.label)].reset_index(drop=True))


def test_shifted_readings_are_affine_stay_in_the_declared_range_and_differ_by_site() -> None:
    table = patients()
    sites = partition(table, SCHEMA, Partition(kind="feature_shift", num_clients=5, shift=0.5), seed=1)
    for site in sites:
        before, after = table.iloc[site.rows].reset_index(drop=True), site.take(table)
        for name, low, high in (("age", 18.0, 90.0), ("dose", -1.0, 11.0)):
            reading = site.readings[name]
            expected = (reading.gain * before[name] + reading.offset).clip(low, high)
            np.testing.assert_array_equal(after[name], expected)
            middle = reading.gain * (low + high) / 2 + reading.offset - (low + high) / 2
            assert abs(middle) <= 0.5 * (high - low) / 2 and 2**-0.5 <= reading.gain <= 2**0.5
        assert after[["ward", "sick", "hospital"]].equals(before[["ward", "sick", "hospital"]])
        assert (after["dose"].isna() == before["dose"].isna()).all()
    assert len({s.readings["age"].gain for s in sites}) == 5


def test_without_strength_a_shift_changes_nothing() -> None:
    table = patients()
    for site in partition(table, SCHEMA, Partition(kind="feature_shift", shift=0.0), seed=1):
        np.testing.assert_array_equal(site.take(table)["dose"], table["dose"].iloc[site.rows])


def test_a_shifted_column_on_a_log_scale_is_cut_in_its_own_unit() -> None:
    schema = Schema.model_validate(
        {
            "label": "sick",
            "columns": {
                "age": {"kind": "numeric", "transform": "log", "center": 3.0, "scale": 1.0, "clip": 1.0}
            },
        }
    )
    site = partition(patients(), schema, Partition(kind="feature_shift", num_clients=2), seed=1)[0]
    low, high = site.readings["age"].low, site.readings["age"].high
    assert np.log1p([low, high]) == pytest.approx([2.0, 4.0])


BAD = [
    (Partition(kind="iid", num_clients=41), "41 clients of at least 10 rows need 410 rows"),
    (Partition(kind="dirichlet", min_rows=41), "partition.min_rows"),
    (Partition(kind="quantity", min_rows=41), "partition.min_rows"),
    (Partition(kind="natural", column="clinic"), "no column 'clinic'"),
    (Partition(kind="natural", column="dose"), "have no value"),
    (Partition(kind="natural", column="age"), "fewer than min_rows"),
]


@pytest.mark.parametrize(("settings", "words"), BAD, ids=[words for _, words in BAD])
def test_an_impossible_partition_is_a_config_error(settings: Partition, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        partition(patients(), SCHEMA, settings, seed=1)


def test_labels_outside_the_schema_and_words_among_numbers_are_data_errors_without_a_cell() -> None:
    cases: list[tuple[str, str, object]] = [("dirichlet", "sick", 2), ("feature_shift", "age", "secret")]
    for kind, name, cell in cases:
        table = patients().astype({name: object})
        table.loc[5, name] = cell
        with pytest.raises(DataError, match=name) as caught:
            partition(table, SCHEMA, Partition(kind=kind), seed=1)  # type: ignore[arg-type]
        assert "secret" not in str(caught.value)


def test_label_skew_without_the_simulation_extra_says_which_one_to_install(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setitem(sys.modules, "flwr_datasets.partitioner", None)
    with pytest.raises(MissingExtra, match="simulation"):
        partition(patients(), SCHEMA, Partition(kind="dirichlet"), seed=1)
    assert partition(patients(), SCHEMA, Partition(kind="iid"), seed=1)


IN_A_PROCESS_WITHOUT_A_NETWORK = """
import json, random, socket, sys
def refuse(*_): raise OSError("no network here")
socket.socket.connect = socket.getaddrinfo = refuse
random.seed(99)
import numpy
numpy.random.seed(99)
from simulations.partition import partition
from tacit.config import Partition
from tests.unit.test_partition import KINDS, SCHEMA, patients
print(json.dumps([[s.rows.tolist() for s in partition(patients(), SCHEMA, k, seed=5)] for k in KINDS]))
"""


def test_the_same_seed_gives_the_same_partition_in_another_process_and_says_nothing() -> None:
    def rows(seed: int) -> list[list[list[int]]]:
        return [[s.rows.tolist() for s in partition(patients(), SCHEMA, k, seed)] for k in KINDS]

    child = subprocess.run(
        [sys.executable, "-W", "error", "-c", IN_A_PROCESS_WITHOUT_A_NETWORK],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert child.stderr == ""
    assert json.loads(child.stdout) == rows(5)
    assert all(a != b for a, b, k in zip(rows(5), rows(6), KINDS, strict=True) if k.is_counted)


@pytest.mark.parametrize("settings", KINDS, ids=lambda s: s.kind)
def test_a_partition_changes_no_global_random_state(settings: Partition) -> None:
    before = (random.getstate(), json.dumps(np.random.get_state()[1].tolist()))
    partition(patients(), SCHEMA, settings, seed=5)
    assert (random.getstate(), json.dumps(np.random.get_state()[1].tolist())) == before


# Hospitals of FLamby's Fed-Heart-Disease, and two small ones at its rule for stratifying.
@pytest.mark.parametrize(("rows", "sick"), [(303, 139), (261, 98), (46, 41), (130, 101), (30, 2), (30, 30)])
@pytest.mark.parametrize("seed", [42, 43])
def test_a_split_equals_flambys_for_the_same_labels(rows: int, sick: int, seed: int) -> None:
    classes = np.random.default_rng(0).permutation(np.arange(rows) < sick).astype(np.int64)
    counts = np.bincount(classes)
    _, expected = train_test_split(
        np.arange(rows),
        test_size=1.0 - 0.66,
        train_size=0.66,
        random_state=seed,
        stratify=classes if len(set(classes)) > 1 and counts.min() > 2 else None,
    )
    test, _ = held_out(classes, 0.34, seed)
    assert sorted(expected) == np.flatnonzero(test).tolist()


SMALL = [
    ([0] * 20 + [1], True),  # a class of one row
    ([0] * 20 + [1] * 2, True),  # a class of two
    ([0, 0, 0, 1, 1, 1, 2, 2, 2], False),
    (list(range(3)) * 3 + [3] * 3 + [4] * 3, True),  # 4 held out cannot show 5 classes
    ([1] * 20, False),  # one class: nothing to stratify
]


@pytest.mark.parametrize(("classes", "warned"), SMALL)
def test_a_site_that_cannot_be_stratified_is_split_without_regard_to_class_and_says_so(
    classes: list[int], warned: bool
) -> None:
    test, warning = held_out(np.array(classes), 0.25, 1, site="Riverside")
    assert test.sum() == -(-len(classes) // 4)
    assert ("Riverside" in warning) == warned


def test_a_split_without_test_rows_holds_nothing_out() -> None:
    assert not held_out(np.array([0, 1]), 0.0, 1)[0].any()


@pytest.mark.parametrize(
    ("rows", "fraction", "seed", "key"), [(1, 0.25, 1, "test_fraction"), (9, 0.2, -1, "seed")]
)
def test_an_impossible_split_is_a_config_error(rows: int, fraction: float, seed: int, key: str) -> None:
    with pytest.raises(TacitError, match=key):
        held_out(np.zeros(rows, dtype=np.int64), fraction, seed, site="Riverside")


@pytest.mark.slow
def test_a_thousand_clients_of_a_hundred_thousand_rows() -> None:
    sites = partition(patients(100_000), SCHEMA, Partition(kind="dirichlet", num_clients=1000), seed=1)
    assert min(len(s.rows) for s in sites) == 10 and sum(len(s.rows) for s in sites) == 100_000
