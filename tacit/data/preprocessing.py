"""Turns a table into features and class indices, by the declared schema alone.

Guarantees:
    Each record is treated by itself: adding a row to a file leaves the features of all other rows bit-equal.
    Every feature is finite and within +-clip of its column (1 for one-hot and indicator features).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from tacit.data.schema import SPLITS, CategoricalColumn, NumericColumn, Schema, match_key
from tacit.data.table import Numbers, Table
from tacit.errors import ConfigError

Constants = Mapping[str, tuple[float, float]]  # (center, scale) by numeric column, in the unit of t(x)
Mask = NDArray[np.bool_]


def transform(
    table: Table, schema: Schema, *, split: str, constants: Constants | None = None
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features of shape (rows, len(schema.feature_names)) and class indices of shape (rows,) of one split.

    The whole file is checked, whichever split is asked for.

    Args:
        table: rows of one site.
        schema: what the columns mean.
        split: "train" or "test".
        constants: center and scale from the federation's statistics, for `scaling = "federated"`.

    Raises:
        DataError: a cell that the schema does not allow, with its line.
        ConfigError: the schema needs constants and there are none.
    """
    if schema.scaling == "federated" and constants is None:
        raise ConfigError("needs the statistics round first: no constants yet", key="data.schema.scaling")
    blocks: list[NDArray[np.float64]] = []
    for name, column in schema.columns.items():
        if isinstance(column, NumericColumn):
            affine = constants[name] if constants is not None else column.affine()
            blocks.extend(_numeric(table.numbers(name), column, affine))
        else:
            blocks.append(_one_hot(table, name, column))
    rows = selected_rows(table, schema, split)
    features = np.column_stack(blocks).astype(np.float32)
    return features[rows], labels(table, schema)[rows]


def selected_rows(table: Table, schema: Schema, split: str) -> Mask:
    """Which rows belong to the split and are complete enough for `missing_rows`; shape (rows,)."""
    rows = _rows_of_split(table, schema, split)
    if schema.missing_rows == "drop":
        for name, column in schema.columns.items():
            rows &= ~_is_missing(table, name, column)
    return rows


def labels(table: Table, schema: Schema) -> NDArray[np.int64]:
    """Class index of each row, shape (rows,); `DataError` for an empty or unknown label."""
    indices = positions_of(table.texts(schema.label), schema.classes)
    unknown = np.flatnonzero(indices < 0)
    if unknown.size:
        row = int(unknown[0])
        reason = "is empty" if indices[row] == EMPTY else f"is none of the {len(schema.classes)} classes"
        raise table.error(reason, row=row, column=schema.label)
    return indices


def transformed(x: Numbers, column: NumericColumn) -> Numbers:
    """t(x) of `NumericColumn`, elementwise."""
    if column.transform == "none":
        return x
    return np.asarray(np.copysign(np.log1p(np.abs(x)), x), dtype=np.float64)


EMPTY, UNSEEN = -1, -2


def _numeric(x: Numbers, column: NumericColumn, affine: tuple[float, float]) -> list[Numbers]:
    """The scaled column and, where the schema asks for it, its missing-indicator; each of shape (rows,)."""
    missing = np.isnan(x)
    if column.missing is not None:
        x = np.where(missing, column.missing, x)
    center, scale = affine
    with np.errstate(over="ignore"):  # infinity is cut at the clip like any other large number
        scaled = np.clip((transformed(x, column) - center) / scale, -column.clip, column.clip)
    features = [np.where(np.isnan(scaled), 0.0, scaled)]
    if column.indicator:
        features.append(missing.astype(np.float64))
    return features


def _one_hot(table: Table, name: str, column: CategoricalColumn) -> NDArray[np.float64]:
    """Shape (rows, categories); all zeros for an empty cell and, where ignored, an unseen name."""
    positions = positions_of(table.texts(name), column.categories)
    unseen = np.flatnonzero(positions == UNSEEN)
    if unseen.size and column.unseen == "error":
        message = f"is none of the {len(column.categories)} categories"
        raise table.error(message, row=int(unseen[0]), column=name)
    return np.asarray(positions[:, None] == np.arange(len(column.categories)), dtype=np.float64)


def positions_of(cells: Sequence[str | None], names: Sequence[str]) -> NDArray[np.int64]:
    """Position of each cell in `names` by `match_key`, `EMPTY` or `UNSEEN`; shape (rows,)."""
    by_key = {match_key(name): position for position, name in enumerate(names)}
    by_cell: dict[str | None, int] = {None: EMPTY}
    for cell in cells:
        if cell not in by_cell:
            by_cell[cell] = by_key.get(match_key(cell or ""), UNSEEN)
    return np.array([by_cell[cell] for cell in cells], dtype=np.int64)


def _rows_of_split(table: Table, schema: Schema, split: str) -> Mask:
    if split not in SPLITS:
        raise ValueError(f"split must be one of {SPLITS}, not {split!r}")
    if not schema.split:
        return np.full(table.num_rows, split == "train")
    names = table.texts(schema.split)
    for row, name in enumerate(names):
        if name not in SPLITS:
            raise table.error('is neither "train" nor "test"', row=row, column=schema.split)
    return np.array([name == split for name in names], dtype=np.bool_)


def _is_missing(table: Table, name: str, column: NumericColumn | CategoricalColumn) -> Mask:
    if isinstance(column, NumericColumn):
        return np.isnan(table.numbers(name))
    return np.array([cell is None for cell in table.texts(name)], dtype=np.bool_)
