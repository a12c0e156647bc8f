"""The way back from features to the rows of a table, by the declared schema alone.

Guarantees:
    Whatever the features are, NaN included, each cell is one that the schema allows.
    Rows that are made of the features of a table have these features again, up to rounding.
"""

from __future__ import annotations

import math
from typing import Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from tacit.data.preprocessing import transformed
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Numbers

DIGITS: Final = 6  # significant ones of a number whose decimals nobody has declared: features are float32
_LARGEST: Final = float(np.finfo(np.float64).max)

Cells = list[str]


class Number(NamedTuple):
    """The features of a numeric column: the number, and where it has an indicator that one.

    Attributes:
        low, high: between which the scaled number lies.
        empty: the scaled number of an empty cell.
        indicator: whether a second feature says that the cell is empty.
        may_be_empty: whether any cell is; without an indicator nobody could tell.
    """

    low: float
    high: float
    empty: float
    indicator: bool
    may_be_empty: bool

    @property
    def width(self) -> int:
        """How many features."""
        return 1 + self.indicator


class Names(NamedTuple):
    """The features of a categorical column: one for each name; all zeros stand for an empty cell.

    Attributes:
        size: how many names there are.
        may_be_empty: whether any cell is.
    """

    size: int
    may_be_empty: bool

    @property
    def width(self) -> int:
        """How many features."""
        return self.size


def layout(schema: Schema) -> tuple[Number | Names, ...]:
    """What the features of each column can be, in order."""
    empty = schema.missing_rows != "drop"
    return tuple(
        _number(column, empty)
        if isinstance(column, NumericColumn)
        else Names(len(column.categories), may_be_empty=empty)
        for column in schema.columns.values()
    )


def _number(column: NumericColumn, empty: bool) -> Number:
    center, scale = column.affine()

    def scaled(x: float) -> float:
        t = transformed(np.array(x), column)
        return float(np.clip((t - center) / scale, -column.clip, column.clip))

    low, high = bounds(column)
    missing = 0.0 if column.missing is None else scaled(column.missing)
    return Number(scaled(low), scaled(high), missing, column.indicator, empty and column.indicator)


def bounds(column: NumericColumn) -> tuple[float, float]:
    """Lowest and highest number that is made: what the schema says, and no more than is not cut."""
    center, scale = column.affine()
    uncut = np.array([-1.0, 1.0]) * column.clip * scale + center
    low, high = (float(x) for x in _undone(uncut, column))
    if column.range is None or column.range[0] > high or column.range[1] < low:
        return low, high
    return max(low, column.range[0]), min(high, column.range[1])


def rows_of(
    features: NDArray[np.float32], classes: NDArray[np.int64], schema: Schema
) -> dict[str, Numbers | Cells]:
    """Columns by name, those of the features first and the label last.

    Args:
        features: shape (rows, len(schema.feature_names)), as `tacit.data.preprocessing.transform` makes them.
        classes: class indices, shape (rows,).
        schema: with `scaling = "declared"`.

    Returns:
        Numbers as float64, NaN where the cell is empty; names as text, "" where it is.
    """
    columns: dict[str, Numbers | Cells] = {}
    parts = layout(schema)
    blocks = np.split(features, np.cumsum([part.width for part in parts])[:-1], axis=1)
    for (name, column), part, own in zip(schema.columns.items(), parts, blocks, strict=True):
        if isinstance(column, NumericColumn):
            numbers = _numbers(own[:, 0].astype(np.float64), column)
            if part.may_be_empty:
                numbers[own[:, -1] > 0.5] = np.nan
            columns[name] = numbers
        else:
            columns[name] = _names(own, column.categories, part.may_be_empty)
    columns[schema.label] = [schema.classes[i] for i in classes]
    return columns


def _numbers(scaled: Numbers, column: NumericColumn) -> Numbers:
    center, scale = column.affine()
    low, high = bounds(column)
    x = _undone(np.nan_to_num(scaled, nan=0.0).clip(-column.clip, column.clip) * scale + center, column)
    if column.decimals is None:
        return np.array([float(f"{v:.{DIGITS}g}") for v in x.clip(low, high)]).clip(low, high)
    # Inward, so that what is rounded is within the bounds still; of bounds closer than that they stay.
    unit = 10.0**-column.decimals
    first, last = math.ceil(low / unit) * unit, math.floor(high / unit) * unit
    return np.round(x.clip(first, last), column.decimals) if first <= last else x.clip(low, high)


def _names(features: NDArray[np.float32], names: tuple[str, ...], may_be_empty: bool) -> Cells:
    known = np.nan_to_num(features)
    best = known.argmax(axis=1)
    empty = (known.max(axis=1) < 0.5) & may_be_empty
    return ["" if is_empty else names[i] for i, is_empty in zip(best, empty, strict=True)]


def _undone(t: Numbers, column: NumericColumn) -> Numbers:
    """x of t(x), elementwise."""
    if column.transform == "none":
        return t
    with np.errstate(over="ignore"):
        x: Numbers = np.copysign(np.expm1(np.abs(t)), t).clip(-_LARGEST, _LARGEST)
        return x
