"""Center and scale of numeric columns that the sites compute together, for `scaling = "federated"`.

Each record contributes, for each numeric column, (1, z, z^2), where z is the value mapped from the declared
range onto [-1, 1] and cut there; an empty cell contributes zeros. Only the sum over records travels, and
whoever sends it adds the noise: this module draws none.

Guarantees:
    One record moves `sum_statistics` by at most `sensitivity(schema)` in Euclidean norm, whatever its cells.
    `constants_from` returns a center inside the declared range and a scale between `MIN_SPREAD` and 1 times
    half the range, however noisy the sums are.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from tacit.data.preprocessing import selected_rows, transformed
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table
from tacit.errors import ProtocolError

Vector = NDArray[np.float64]
MIN_COUNT = 10.0  # fewer present values than this say less than the declared range does
MAX_BLUR = 0.02  # largest noise in a mean, as a share of half the range; the smallest spread is 0.05
MIN_SPREAD = 0.05  # smallest standard deviation believed, as a share of half the range


def statistics_size(schema: Schema) -> int:
    """Length of the vector: count, sum and sum of squares of each numeric column."""
    return 3 * len(_numeric_columns(schema))


def sensitivity(schema: Schema) -> float:
    """Largest Euclidean norm of one record's vector: (1, z, z^2) has norm at most sqrt(3) since |z| <= 1."""
    return math.sqrt(statistics_size(schema))


def record_statistics(table: Table, schema: Schema) -> Vector:
    """The vector of each training record, shape (rows, statistics_size(schema))."""
    rows = selected_rows(table, schema, "train")
    parts: list[Vector] = [np.zeros((int(rows.sum()), 0))]
    for name, column in _numeric_columns(schema).items():
        x = table.numbers(name)[rows]
        middle, half = column.range_affine()
        with np.errstate(over="ignore"):
            z = np.clip((transformed(x, column) - middle) / half, -1.0, 1.0)
        present = ~np.isnan(z)
        z = np.where(present, z, 0.0)
        parts.append(np.column_stack([present.astype(np.float64), z, z * z]))
    return np.column_stack(parts)


def sum_statistics(table: Table, schema: Schema) -> Vector:
    """What one site contributes: the sum over its training records, shape (statistics_size(schema),)."""
    return np.asarray(record_statistics(table, schema).sum(axis=0), dtype=np.float64)


def constants_from(sums: Vector, schema: Schema, noise: float = 0.0) -> dict[str, tuple[float, float]]:
    """Center and scale of each numeric column, in the unit of t(x), from the (noisy) sum over all sites.

    Args:
        sums: shape (statistics_size(schema),).
        schema: the columns.
        noise: standard deviation of the noise in each coordinate of the sum. A column whose mean it blurs by more
            than `MAX_BLUR` of half the range is scaled by its declared range instead.

    Raises:
        ProtocolError: the sum has another length, or is not finite.
    """
    if sums.shape != (statistics_size(schema),) or not np.isfinite(sums).all():
        raise ProtocolError("statistics", "the sum has another length or is not finite")
    columns = _numeric_columns(schema).items()
    return {
        name: _affine(column, *map(float, triple), noise=noise)
        for (name, column), triple in zip(columns, sums.reshape(-1, 3), strict=True)
    }


def _affine(
    column: NumericColumn, count: float, total: float, squares: float, *, noise: float
) -> tuple[float, float]:
    """Mean and standard deviation, cut at what values in the range can have; the range's own when too few."""
    middle, half = column.range_affine()
    if count < MIN_COUNT or noise > MAX_BLUR * count:
        return middle, half
    mean = min(1.0, max(-1.0, total / count))
    variance = squares / count - mean * mean  # noise may push this below 0 or above 1
    spread = math.sqrt(min(1.0, max(MIN_SPREAD**2, variance)))
    return middle + half * mean, half * spread


def _numeric_columns(schema: Schema) -> dict[str, NumericColumn]:
    """The columns that statistics are made of; a schema with federated scaling has all their ranges."""
    return {name: c for name, c in schema.columns.items() if isinstance(c, NumericColumn)}
