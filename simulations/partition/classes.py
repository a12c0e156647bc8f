"""Which class each row of a table belongs to, and which rows are complete."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tacit.data.schema import MISSING, Schema, match_key
from tacit.errors import DataError

if TYPE_CHECKING:
    from pandas import DataFrame


def class_indices(table: DataFrame, schema: Schema) -> NDArray[np.int64]:
    """Position of each row's label in `schema.classes`, shape (rows,), by the rule that a site's reader uses.

    Raises:
        DataError: no label column, or rows whose label is empty or undeclared (their number only).
    """
    import pandas

    if schema.label not in table.columns:
        raise DataError("the table has no such column", column=schema.label)
    by_key = {match_key(name): position for position, name in enumerate(schema.classes)}
    codes, values = pandas.factorize(table[schema.label])
    # factorize gives -1 for an empty cell, which here picks the -1 at the end.
    positions = np.array([*(by_key.get(match_key(str(value)), -1) for value in values), -1], dtype=np.int64)
    indices: NDArray[np.int64] = positions[codes]
    unknown = int((indices < 0).sum())
    if unknown:
        raise DataError(
            f"{unknown} rows have an empty label, or one that is none of the declared classes",
            column=schema.label,
        )
    return indices


def is_missing(column: Any) -> Any:
    """Which cells of a pandas column a site's reader will take for empty, shape (rows,)."""
    return column.isna() | column.astype(str).str.strip().isin(MISSING)
