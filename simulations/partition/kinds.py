"""The ways in which one table becomes sites.

What `flwr_datasets` has is used from there (`simulations.partition.library`). Four kinds are a line of NumPy each: the
library's `IidPartitioner` cuts the table in file order, so that a sorted file gives sites of one class; its
`NaturalIdPartitioner` writes a progress bar to the terminal; sizes from a Dirichlet it does not have.

Guarantees:
    Every row is at exactly one site.
    No site has fewer than `min_rows` rows.
    The same seed gives the same partition, in any process, and changes no global random state.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from simulations.partition.classes import class_indices
from simulations.partition.library import LIBRARY, grouped, label_skew, top_up, uneven_sizes
from simulations.partition.site_rows import Affine, SiteRows
from tacit.config import Partition
from tacit.data.schema import NumericColumn, Schema
from tacit.errors import ConfigError, DataError

if TYPE_CHECKING:
    from pandas import DataFrame

Rows = NDArray[np.int64]


def partition(table: DataFrame, schema: Schema, settings: Partition, seed: int) -> list[SiteRows]:
    """Divides the rows of `table` among sites; see this module's guarantees.

    Args:
        table: all rows; its index is not read.
        schema: names the label, where the kind goes by it, and the numeric columns (feature_shift).
        settings: kind and strength. Its `shifts` are another step: `simulations.partition.shifts`.
        seed: the experiment's seed.

    Raises:
        ConfigError: not enough rows for `min_rows`, or `column` does not name the sites.
        DataError: a label outside the declared classes, or a cell that is no number where one is needed.
        MissingExtra: a kind of the library without the extra "simulation".
    """
    if settings.kind == "natural":
        return _natural(table, settings)
    if settings.kind == "grouped":
        _check_column(table, settings)
        return _not_too_small(grouped(table[settings.column], settings), settings)
    if settings.kind == "virtual":
        return [SiteRows("pool", np.arange(len(table)))]
    num_rows, k = len(table), settings.num_clients
    _check_enough(num_rows, settings)
    rng = np.random.default_rng(seed)
    if settings.kind in LIBRARY:
        parts = LIBRARY[settings.kind](table, schema, settings, seed)
    elif settings.kind == "dirichlet":
        parts = top_up(label_skew(class_indices(table, schema), settings, seed), settings.min_rows)
    elif settings.kind == "quantity":
        parts = np.split(
            rng.permutation(num_rows), np.cumsum(uneven_sizes(num_rows, settings, settings.alpha, rng))[:-1]
        )
    else:
        parts = np.array_split(rng.permutation(num_rows), k)
    width = len(str(k))
    sites = [SiteRows(f"site-{i:0{width}}", np.sort(rows)) for i, rows in enumerate(parts, start=1)]
    if settings.kind == "feature_shift":
        check_numeric(table, schema, numeric_columns(schema))
        return [SiteRows(s.label, s.rows, readings(schema, settings.shift, rng)) for s in sites]
    return _not_too_small(sites, settings)


def _check_enough(num_rows: int, settings: Partition) -> None:
    needed = settings.num_clients * settings.min_rows
    if needed > num_rows:
        raise ConfigError(
            f"{settings.num_clients} clients of at least {settings.min_rows} rows need {needed} rows, "
            f"the table has {num_rows}",
            key="partition.min_rows",
        )


def _natural(table: DataFrame, settings: Partition) -> list[SiteRows]:
    """One site per value of a column, labelled with it, in the order of the values."""
    _check_column(table, settings)
    groups = table.groupby(settings.column, sort=True, observed=True).indices
    sites = [SiteRows(str(value), np.sort(rows).astype(np.int64)) for value, rows in groups.items()]
    return _not_too_small(sites, settings)


def _check_column(table: DataFrame, settings: Partition) -> None:
    if settings.column not in table.columns:
        raise ConfigError(f"the table has no column {settings.column!r}", key="partition.column")
    if empty := int(table[settings.column].isna().sum()):
        raise ConfigError(f"{empty} rows have no value in column {settings.column!r}", key="partition.column")


def _not_too_small(sites: list[SiteRows], settings: Partition) -> list[SiteRows]:
    for site in sites:
        if len(site.rows) < settings.min_rows:
            raise ConfigError(
                f"site {site.label!r} has {len(site.rows)} rows, fewer than min_rows = {settings.min_rows}",
                key="partition.min_rows",
            )
    return sites


def numeric_columns(schema: Schema) -> list[str]:
    """Names of the numeric features."""
    return [name for name, column in schema.columns.items() if isinstance(column, NumericColumn)]


def check_numeric(table: DataFrame, schema: Schema, names: Iterable[str]) -> None:
    """Raises `DataError` where one of these columns is not of numbers."""
    from pandas.api.types import is_numeric_dtype

    for name in names:
        if name not in table.columns or not is_numeric_dtype(table[name]):
            raise DataError("a shift of its readings needs a column of numbers", column=name)


def readings(schema: Schema, strength: float, rng: np.random.Generator) -> dict[str, Affine]:
    """How one site's instruments read: a gain about the middle of the range, then a shift, then saturation.

    With `strength` 0.5 a reading moves by up to a quarter of the declared range, and its distance from the
    middle is stretched or shrunk by up to sqrt(2).
    """
    drawn = {}
    for name in numeric_columns(schema):
        low, high = readable(schema, name)
        middle, half = (low + high) / 2, (high - low) / 2
        gain = 2.0 ** (strength * rng.uniform(-1, 1))
        offset = middle * (1 - gain) + half * strength * rng.uniform(-1, 1)
        drawn[name] = Affine(gain, offset, low, high)
    return drawn


def readable(schema: Schema, name: str) -> tuple[float, float]:
    """Ends of what can be read of a numeric column: its range, or without one its center +- `clip` scales."""
    column = schema.columns[name]
    assert isinstance(column, NumericColumn)
    if column.range is not None:
        return column.range
    center, scale = column.affine()
    ends = (center - column.clip * scale, center + column.clip * scale)
    if column.transform == "log":  # 700: beyond it exp overflows
        ends = (_inverse_log(max(ends[0], -700.0)), _inverse_log(min(ends[1], 700.0)))
    return ends


def _inverse_log(t: float) -> float:
    return math.copysign(math.expm1(abs(t)), t)
