"""Federated scaling: what a site sends, and what the sum turns into."""

from pathlib import Path

import numpy as np
import pytest

from tacit.data.preprocessing import transform
from tacit.data.readers import read_table
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema
from tacit.data.statistics import (
    MIN_SPREAD,
    constants_from,
    record_statistics,
    sensitivity,
    statistics_size,
    sum_statistics,
)
from tacit.errors import ProtocolError

SCHEMA = Schema(
    label="y",
    columns={
        "a": NumericColumn(kind="numeric", range=(0, 100)),
        "c": CategoricalColumn(kind="categorical", categories=("u", "v")),
        "b": NumericColumn(kind="numeric", range=(0, 10_000), transform="log"),
    },
    split="s",
    scaling="federated",
)


def site(path: Path, rows: list[str]) -> Path:
    path.write_text("a,c,b,y,s\n" + "\n".join(rows) + "\n")
    return path


def test_a_record_counts_once_and_only_its_training_rows(tmp_path: Path) -> None:
    rows = ["100,u,0,0,train", ",v,10000,1,train", "1e9,u,,0,train", "50,u,1,0,test"]
    vectors = record_statistics(read_table(site(tmp_path / "s.csv", rows), SCHEMA), SCHEMA)
    assert vectors == pytest.approx(np.array([[1, 1, 1, 1, -1, 1], [0, 0, 0, 1, 1, 1], [1, 1, 1, 0, 0, 0]]))
    assert statistics_size(SCHEMA) == 6
    assert sensitivity(SCHEMA) == pytest.approx(6**0.5)


def test_sums_over_sites_give_the_pooled_mean_and_deviation(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    values = rng.normal(60, 8, 300)
    amounts = rng.lognormal(5, 1, 300).clip(0, 10_000)
    rows = [f"{a},u,{b},{i % 2},train" for i, (a, b) in enumerate(zip(values, amounts, strict=True))]
    parts = [rows[:20], rows[20:150], rows[150:]]
    tables = [read_table(site(tmp_path / f"{i}.csv", part), SCHEMA) for i, part in enumerate(parts)]
    total = np.sum([sum_statistics(table, SCHEMA) for table in tables], axis=0)
    constants = constants_from(total, SCHEMA)
    logs = np.log1p(amounts)
    assert constants["a"] == pytest.approx((values.mean(), values.std()))
    assert constants["b"] == pytest.approx((logs.mean(), logs.std()))
    pooled = np.concatenate(
        [transform(t, SCHEMA, split="train", constants=constants)[0][:, [0, 3]] for t in tables]
    )
    assert np.abs(pooled.mean(0)).max() < 0.05  # a clip of 3 cuts a little
    assert np.abs(pooled.std(0) - 1).max() < 0.05


@pytest.mark.parametrize(
    ("triple", "center", "scale"),
    [
        ((0, 0, 0), 50, 50),  # nobody has a value
        ((-40, 3, 3), 50, 50),  # noise made the count negative
        ((9.9, 0, 9.9), 50, 50),  # too few
        ((100, 0, -30), 50, 50 * MIN_SPREAD),  # negative variance
        ((100, 0, 0), 50, 50 * MIN_SPREAD),  # constant
        ((100, 900, 100), 100, 50 * MIN_SPREAD),  # mean outside the range
        ((100, 0, 900), 50, 50),  # deviation above what the range allows
        ((100, -50, 50), 25, 25),
    ],
)
def test_noisy_sums_still_give_usable_constants(
    triple: tuple[float, ...], center: float, scale: float
) -> None:
    constants = constants_from(np.array([*triple, 0.0, 0.0, 0.0]), SCHEMA)
    assert constants["a"] == pytest.approx((center, scale))
    assert constants["b"] == pytest.approx((np.log1p(10_000) / 2, np.log1p(10_000) / 2))


@pytest.mark.parametrize("sums", [np.zeros(5), np.zeros((6, 1)), np.full(6, np.nan), np.full(6, np.inf)])
def test_a_sum_of_another_shape_or_not_finite_is_refused(sums: np.ndarray) -> None:
    with pytest.raises(ProtocolError, match="statistics"):
        constants_from(sums, SCHEMA)
