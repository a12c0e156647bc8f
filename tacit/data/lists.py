"""Lists of items from a table with a row for each, as the arrays that an archive would hold; see `ListTable`.

Guarantees:
    A record follows from the rows of its own list and the schema alone.
    An error names the file, the line and the column, and shows no cell.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.data.array_schema import ArraySchema
from tacit.data.npz import is_relevance
from tacit.data.readers import MAX_BYTES, read_table
from tacit.data.series import Columns, rows_by, whole_of
from tacit.errors import DataError


def read_lists(path: Path, schema: ArraySchema) -> dict[str, NDArray[Any]]:
    """The arrays `x`, `y` and, where the schema names their columns, `split` and `site`.

    Returns:
        x of shape (records, *schema.shape) and y of shape (records, items), float32, NaN where there is no item; split
        and site of shape (records,). Items stand in the order of their rows.

    Raises:
        DataError: names file, line and column.
    """
    lists = schema.lists
    assert lists is not None
    numbers = (*lists.features, lists.relevance)
    texts = tuple(name for name in (lists.id, lists.split) if name)
    table = read_table(path, Columns((*texts, *numbers), (lists.site,), frozenset(numbers)))
    of_rows, first = rows_by(table, lists.id)
    places = _places(of_rows)
    if (more := np.flatnonzero(places >= schema.shape[1])).size:
        raise table.error(
            f"has more than the {schema.shape[1]} items that the second number of data.arrays.shape declares",
            row=int(more[0]),
            column=lists.id,
        )
    if 4 * len(first) * (schema.shape[0] + 1) * schema.shape[1] > MAX_BYTES:
        raise DataError(f"has {len(first)} lists, more than fit: declare fewer items", path=path)
    relevance = table.numbers(lists.relevance)
    if (bad := np.flatnonzero(~(np.isnan(relevance) | is_relevance(relevance, schema.grades)))).size:
        raise table.error(
            f"must be a whole number from 0 to {schema.grades}", row=int(bad[0]), column=lists.relevance
        )
    x = np.full((len(first), *schema.shape), np.nan, dtype=np.float32)
    y = np.full((len(first), schema.shape[1]), np.nan, dtype=np.float32)
    with np.errstate(over="ignore"):  # infinity is refused where records are scaled
        x[of_rows, :, places] = np.stack([table.numbers(name) for name in lists.features], axis=1)
    y[of_rows, places] = relevance
    return {"x": x, "y": y, **whole_of(table, lists.split, lists.site, of_rows, first)}


def _places(of_rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Which item of its list each row is, from 0, shape (rows,)."""
    order = np.argsort(of_rows, kind="stable")
    starts = np.searchsorted(of_rows[order], of_rows[order])
    places = np.empty_like(of_rows)
    places[order] = np.arange(len(of_rows)) - starts
    return places
