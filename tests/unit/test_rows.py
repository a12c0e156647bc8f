"""From features back to rows: what the schema allows, and nothing else."""

import math
from pathlib import Path
from typing import Any

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given, settings

from tacit.data.preprocessing import transform
from tacit.data.rows import Names, Number, bounds, layout, rows_of
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table

COLUMNS: dict[str, Any] = {
    "age": {"kind": "numeric", "range": [0, 120], "missing": 40.0, "indicator": True, "decimals": 0},
    "amount": {"kind": "numeric", "transform": "log", "center": 3.0, "scale": 2.0},
    "bounded": {"kind": "numeric", "center": 130.0, "scale": 20.0, "range": [70, 220]},
    "class": {"kind": "categorical", "categories": ["1", "2", "three"]},
    "sex": {"kind": "categorical", "categories": ["f", "m"], "unseen": "error"},
}


def schema(**more: Any) -> Schema:
    return Schema.model_validate({"label": "y", "classes": ["no", "yes"], "columns": COLUMNS, **more})


def as_table(columns: Any) -> Table:
    """As a reader gives it."""
    kept = {
        name: tuple(cell or None for cell in values) if isinstance(values, list) else values
        for name, values in columns.items()
    }
    rows = len(kept["y"])
    return Table(Path("made.csv"), np.arange(rows) + 2, kept)


@pytest.mark.parametrize("missing_rows", ["impute", "drop"])
def test_whatever_the_features_are_each_cell_is_one_that_the_schema_allows(missing_rows: str) -> None:
    """NaN included."""
    declared = schema(missing_rows=missing_rows)
    width = len(declared.feature_names)
    numbers = st.floats(width=32, allow_nan=True, allow_infinity=True)

    @settings(max_examples=100)
    @given(st.lists(numbers, min_size=width, max_size=width))
    def check(features: list[float]) -> None:
        row = np.array([features], dtype=np.float32)
        columns = rows_of(row, np.array([1]), declared)
        assert list(columns) == [*COLUMNS, "y"]
        assert columns["y"] == ["yes"]
        empty = missing_rows == "impute"
        for name, column in declared.columns.items():
            (cell,) = columns[name]
            if isinstance(column, NumericColumn):
                low, high = bounds(column)
                may_be_empty = empty and column.indicator
                assert low <= float(cell) <= high or (may_be_empty and math.isnan(float(cell)))
            else:
                assert cell in column.categories or (empty and cell == "")
        age = float(columns["age"][0])
        assert math.isnan(age) or age == round(age)
        again, _ = transform(as_table(columns), declared, split="train")
        assert len(again) == 1  # with "drop": the row is complete

    check()


def test_rows_that_are_made_of_the_features_of_a_table_have_these_features_again() -> None:
    """Up to rounding."""
    declared, rng = schema(), np.random.default_rng(4)
    table = as_table(
        {
            "age": np.array([0.0, np.nan, 61.0, 120.0] * 50),
            "amount": np.sinh(rng.normal(size=200) * 3),
            "bounded": rng.uniform(70, 190, 200),
            "class": ["1", "", "three", "2"] * 50,
            "sex": ["f", "m", "", "f"] * 50,
            "y": ["no", "yes"] * 100,
        }
    )
    features, classes = transform(table, declared, split="train")
    back = as_table(rows_of(features, classes, declared))
    again, same = transform(back, declared, split="train")
    np.testing.assert_allclose(again, features, atol=1e-4)
    assert (same == classes).all()
    assert back.texts("class") == table.texts("class")
    np.testing.assert_array_equal(back.numbers("age"), table.numbers("age"))


def test_bounds_are_the_declared_range_as_far_as_features_are_not_cut() -> None:
    columns = schema().columns
    found = {name: bounds(column) for name, column in columns.items() if isinstance(column, NumericColumn)}
    assert found["age"] == (0, 120)
    assert found["bounded"] == (70, 190)
    assert found["amount"] == pytest.approx((-math.expm1(3), math.expm1(9)))
    elsewhere = NumericColumn(kind="numeric", center=0.0, scale=1.0, range=(50.0, 60.0))
    assert bounds(elsewhere) == (-3, 3)  # a range that is always cut says nothing
    narrow = NumericColumn(kind="numeric", range=(0.2, 0.7), decimals=0)
    made = rows_of(np.zeros((1, 1), np.float32), np.array([0]), schema(columns={"a": narrow.model_dump()}))
    assert made["a"][0] == pytest.approx(0.45)  # no whole number lies there


def test_the_layout_says_what_each_column_can_be() -> None:
    assert layout(schema()) == (
        Number(-1.0, 1.0, pytest.approx(-1 / 3), indicator=True, may_be_empty=True),
        Number(pytest.approx(-3), pytest.approx(3), 0.0, indicator=False, may_be_empty=False),
        Number(-3.0, 3.0, 0.0, indicator=False, may_be_empty=False),
        Names(3, may_be_empty=True),
        Names(2, may_be_empty=True),
    )
    assert not any(part.may_be_empty for part in layout(schema(missing_rows="drop")))
    assert sum(part.width for part in layout(schema())) == len(schema().feature_names)
