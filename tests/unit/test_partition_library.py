"""The kinds of partition that come from flwr-datasets: what each promises, and what it cannot do in one line."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from simulations.partition import SiteRows, partition
from tacit.config import Partition
from tacit.data.schema import Schema
from tacit.errors import DataError, TacitError
from tests.unit.test_partition import SCHEMA, patients

THREE = Schema.model_validate(
    {"label": "y", "classes": ["0", "1", "2"], "columns": {"x": {"kind": "numeric", "range": [-4, 4]}}}
)


def three_classes(rows: int = 600) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    return pd.DataFrame(
        {
            "x": np.sort(rng.normal(size=rows)),
            "y": np.sort(rng.integers(0, 3, rows)),
            "day": pd.date_range("2024-01-01", periods=rows, freq="D").strftime("%Y-%m-%d"),
            "ward": rng.choice(["e", "d", "c", "b", "a"], rows),
        }
    )


def divided(settings: Partition, table: pd.DataFrame | None = None, seed: int = 3) -> list[SiteRows]:
    return partition(three_classes() if table is None else table, THREE, settings, seed)


def classes_of(sites: list[SiteRows], table: pd.DataFrame) -> list[int]:
    return [table["y"].iloc[s.rows].nunique() for s in sites]


@pytest.mark.parametrize("per_client", [1, 2])
def test_pathological_sites_have_so_many_classes_and_no_class_is_left_out(per_client: int) -> None:
    table = three_classes()
    sites = divided(Partition(kind="pathological", num_clients=6, classes_per_client=per_client))
    assert classes_of(sites, table) == [per_client] * 6


def test_shards_give_few_classes_and_equal_sizes() -> None:
    sites = divided(Partition(kind="shard", num_clients=6, shards_per_client=2))
    assert {len(s.rows) for s in sites} == {100}
    assert np.mean(classes_of(sites, three_classes())) < 2.5


def test_a_distribution_gives_so_many_classes_in_very_unequal_sizes() -> None:
    settings = Partition(kind="distribution", num_clients=9, classes_per_client=2, sigma=2.0, min_rows=6)
    sites = divided(settings)
    sizes = [len(s.rows) for s in sites]
    assert classes_of(sites, three_classes()) == [2] * 9 and max(sizes) > 5 * min(sizes)


def test_label_and_quantity_are_skewed_together_and_stated_sizes_are_kept() -> None:
    table = three_classes(3000)
    drawn = divided(
        Partition(kind="label_quantity", num_clients=8, alpha=0.3, size_alpha=0.5, min_rows=30), table
    )
    sizes = [len(s.rows) for s in drawn]
    assert min(sizes) >= 30 and max(sizes) > 4 * min(sizes)
    ones = [float((table["y"].iloc[s.rows] == 1).mean()) for s in drawn]
    assert np.std(ones) > 0.1
    stated = divided(Partition(kind="label_quantity", num_clients=3, sizes=(2000, 700, 300)), table)
    assert [len(s.rows) for s in stated] == [2000, 700, 300]


@pytest.mark.parametrize(
    ("kind", "weights"),
    [("linear", [1, 2, 3, 4]), ("square", [1, 4, 9, 16]), ("exponential", np.exp([1, 2, 3, 4]))],
)
def test_graded_sizes_are_in_proportion_to_the_number_of_the_site(kind: str, weights: list[float]) -> None:
    sites = divided(Partition(kind=kind, num_clients=4))  # type: ignore[arg-type]
    expected = 600 * np.array(weights) / np.sum(weights)
    np.testing.assert_allclose([len(s.rows) for s in sites], expected, atol=4)


def test_stated_sizes_are_kept() -> None:
    assert [len(s.rows) for s in divided(Partition(kind="sizes", num_clients=2, sizes=(570, 30)))] == [
        570,
        30,
    ]


@pytest.mark.parametrize("column", ["x", "day"])
def test_a_continuous_partition_goes_by_numbers_or_dates_as_strictly_as_it_is_told(column: str) -> None:
    def spread(strictness: float) -> float:
        settings = Partition(kind="continuous", num_clients=6, column=column, strictness=strictness)
        return float(np.std([s.rows.mean() for s in divided(settings)]))  # the table is in the column's order

    assert spread(0.0) < 40 < spread(0.5) < spread(1.0)
    strict = divided(Partition(kind="continuous", num_clients=6, column=column, strictness=1.0))
    assert [s.rows.tolist() for s in strict] == [list(range(i, i + 100)) for i in range(0, 600, 100)]


def test_groups_of_values_become_sites_in_their_order() -> None:
    table = three_classes()
    sites = divided(Partition(kind="grouped", column="ward", group_size=2))
    assert [s.label for s in sites] == ["a to b", "c to d", "e"]
    assert set(table["ward"].iloc[sites[0].rows]) == {"a", "b"}


LIBRARY = [
    Partition(kind="pathological", num_clients=6, classes_per_client=1),
    Partition(kind="sizes", num_clients=2, sizes=(300, 300)),
    Partition(kind="linear", num_clients=3),
    Partition(kind="shard", num_clients=6),
]


@pytest.mark.parametrize("settings", LIBRARY, ids=lambda s: s.kind)
def test_a_sorted_file_gives_no_other_mix_than_a_shuffled_one(settings: Partition) -> None:
    table = three_classes().assign(x=np.arange(600))  # in file order
    for site in divided(settings, table):
        own = table["y"].iloc[site.rows]
        for label in own.value_counts().loc[lambda n: n >= 20].index:  # rows from all over the file
            rows = table.index[table["y"] == label]
            middle = float(np.mean(own.index[own == label]) - rows.min()) / (rows.max() - rows.min())
            assert 0.2 < middle < 0.8


BAD = [
    (Partition(kind="pathological", classes_per_client=4), "partition.kind.*not possible"),
    (Partition(kind="pathological", num_clients=2, classes_per_client=1), "at no site"),
    (
        Partition(kind="sizes", num_clients=2, sizes=(5, 5)),
        "partition.sizes: are 10 rows together, the table has 600",
    ),
    (Partition(kind="label_quantity", num_clients=1, sizes=(5,)), "partition.sizes"),
    (Partition(kind="sizes", num_clients=2, sizes=(595, 5)), "fewer than min_rows"),
    (Partition(kind="distribution", num_clients=10), "partition.num_clients.*multiple of the 3 classes"),
    (Partition(kind="distribution", num_clients=9, classes_per_client=4), "classes_per_client"),
    (Partition(kind="continuous", column="height"), "no column 'height'"),
    (Partition(kind="grouped", column="height"), "no column 'height'"),
    (Partition(kind="grouped", column="day", group_size=2), "fewer than min_rows"),
    (Partition(kind="shard", num_clients=61), "partition.min_rows"),
]


@pytest.mark.parametrize(("settings", "words"), BAD, ids=[words for _, words in BAD])
def test_an_impossible_partition_is_one_line_that_names_the_key(settings: Partition, words: str) -> None:
    with pytest.raises(TacitError, match=words) as caught:
        divided(settings)
    assert "\n" not in str(caught.value)


def test_words_cannot_be_put_in_order() -> None:
    with pytest.raises(DataError, match=r"ward.*neither a number nor a date"):
        partition(patients(), SCHEMA, Partition(kind="continuous", column="ward"), seed=1)


def test_keys_that_a_kind_needs_are_asked_for() -> None:
    for settings in ({"kind": "grouped"}, {"kind": "continuous"}, {"kind": "sizes"}):
        with pytest.raises(ValueError, match="needs"):
            Partition.model_validate(settings)
    with pytest.raises(ValueError, match="names 2 sites, num_clients is 10"):
        Partition.model_validate({"kind": "sizes", "sizes": [1, 2]})
