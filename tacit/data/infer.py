"""Guesses a schema from a file. NOT PRIVATE: for runs without privacy only.

Ranges and category lists are read off the rows, so one record can change them. A private run needs a declared
schema.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pydantic import ValidationError

from tacit.data.schema import SPLITS, CategoricalColumn, Column, NumericColumn, Schema, match_key
from tacit.data.table import Numbers, Table, parse_number
from tacit.errors import DataError

MAX_NAMES = 100  # more different names than this are an identifier or free text, not a category
SITE, SPLIT = "site", "split"  # columns of these names are taken for what they say


def infer_schema(table: Table, label: str) -> Schema:
    """A schema that fits this table: numbers with their range, text with its names.

    Columns called "site" and "split" are taken for what they say; a column without any value is left out.
    Not private, see the module.

    Args:
        table: read without a schema.
        label: name of the label column.

    Raises:
        DataError: no such label, a single class, or a column of free text.
    """
    classes = _names(table, label)
    if len(classes) < 2:
        raise DataError("has fewer than two classes", path=table.path, column=label)
    split = SPLIT if SPLIT in table.columns and set(table.texts(SPLIT)) <= set(SPLITS) else ""
    site = SITE if SITE in table.columns else ""
    columns: dict[str, Column] = {}
    for name in table.columns:
        if name not in (label, site, split) and (column := _column(table, name)) is not None:
            columns[name] = column
    if not columns:
        raise DataError("no schema can be inferred: there is no column besides the label", path=table.path)
    try:
        return Schema(label=label, classes=classes, columns=columns, site=site, split=split)
    except ValidationError as error:
        message = f"no schema can be inferred: {error.errors()[0]['msg']}; state [data.schema]"
        raise DataError(message, path=table.path) from None


def _column(table: Table, name: str) -> Column | None:
    cells = table.columns[name]
    numbers = _as_numbers(cells) if isinstance(cells, tuple) else cells
    if numbers is None:
        return CategoricalColumn(kind="categorical", categories=_names(table, name))
    present = numbers[~np.isnan(numbers)]
    if present.size == 0:
        return None
    low, high = float(present.min()), float(present.max())
    if high / 2 - low / 2 > 0:
        return NumericColumn(kind="numeric", range=(low, high))
    return NumericColumn(kind="numeric", center=low, scale=1.0)


def _as_numbers(cells: Sequence[str | None]) -> Numbers | None:
    numbers = [parse_number(cell) for cell in cells]
    if any(number is None for number in numbers):
        return None
    return np.array(numbers, dtype=np.float64)


def _names(table: Table, name: str) -> tuple[str, ...]:
    """The different names of a column in order: numbers by value and first, then text."""
    by_key = {match_key(cell): cell for cell in table.texts(name) if cell is not None}
    if len(by_key) > MAX_NAMES:
        message = (
            f"has more than {MAX_NAMES} different names: state [data.schema] without it, or with its range"
        )
        raise DataError(message, path=table.path, column=name)
    ordered = sorted(by_key, key=lambda key: (isinstance(key, str), key))
    return tuple(by_key[key] for key in ordered)
