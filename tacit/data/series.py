"""Series from a table, in long or wide form, as the arrays that an archive would hold; see `SeriesTable`.

Guarantees:
    A record follows from the rows of its own series and the schema alone.
    An error names the file, the line and the column, and shows no cell.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

from tacit.data.array_schema import ArraySchema
from tacit.data.preprocessing import EMPTY, positions_of
from tacit.data.readers import MAX_BYTES, read_table
from tacit.data.schema import SPLITS
from tacit.data.series_schema import SeriesTable
from tacit.data.table import Table
from tacit.errors import DataError

_ROUNDING = 1e-6  # of a step: 0.3 / 0.1 is below 3
Floats = NDArray[np.float32]
Numbers = NDArray[np.int64]


class Columns(NamedTuple):
    """See `tacit.data.readers.Wanted`."""

    required: tuple[str, ...]
    optional: tuple[str, ...]
    numeric: frozenset[str]


def read_series(path: Path, schema: ArraySchema) -> dict[str, NDArray[Any]]:
    """The arrays `x`, `y` and, where the schema names their columns, `split` and `site`.

    Returns:
        x of shape (records, *schema.shape), float32, NaN where a step is empty; y, split and site of shape (records,),
        y of shape (records, horizon) where the series is forecast.

    Raises:
        DataError: names file, line and column.
    """
    series = schema.series
    assert series is not None
    time = schema.shape[1]
    table = read_table(path, _columns(series, series.length or time))
    of_rows, first = rows_by(table, series.id) if series.form == "long" else _wide_rows(table)
    if series.form == "long":
        steps = _steps(table, series)
        x = _from_long(table, series, of_rows, steps, None if series.horizon else time)
    else:
        x = _from_wide(table, series, series.length or time)
    said = whole_of(table, series.split, series.site, of_rows, first)
    if series.horizon:
        return _windows(x, said, series, time, path)
    return {"x": x, "y": _labels(table, schema, series.label, of_rows, first), **said}


def _columns(series: SeriesTable, steps: int) -> Columns:
    if series.form == "long":
        numbers: list[str] = [series.time, *series.channels]
    else:
        numbers = [series.column(channel, step) for channel in series.channels for step in range(steps)]
    texts = [name for name in (series.id, series.label, series.split) if name]
    return Columns((*texts, *numbers), (series.site,), frozenset(numbers))


def rows_by(table: Table, column: str) -> tuple[Numbers, Numbers]:
    """Which record each row is of by a column that names it, shape (rows,), and the first row of each, in file order.

    Raises:
        DataError: a row names none.
    """
    numbers: dict[str, int] = {}
    of_rows = np.empty(table.num_rows, dtype=np.int64)
    for row, name in enumerate(table.texts(column)):
        if name is None:
            raise table.error("is empty", row=row, column=column)
        of_rows[row] = numbers.setdefault(name, len(numbers))
    return of_rows, np.unique(of_rows, return_index=True)[1]


def _wide_rows(table: Table) -> tuple[Numbers, Numbers]:
    rows = np.arange(table.num_rows, dtype=np.int64)
    return rows, rows


def _steps(table: Table, series: SeriesTable) -> Numbers:
    """Of each row, shape (rows,); below 0 before the first one."""
    times = table.numbers(series.time)
    if (empty := np.flatnonzero(np.isnan(times))).size:
        raise table.error("is empty", row=int(empty[0]), column=series.time)
    steps = np.floor((times - series.start) / series.step + _ROUNDING)
    return np.clip(steps, -1, 2**62).astype(np.int64)


def _from_long(
    table: Table, series: SeriesTable, of_rows: Numbers, steps: Numbers, time: int | None
) -> Floats:
    """Shape (series, channels, steps): as many steps as are declared, or up to the last one."""
    num, last = int(of_rows.max()) + 1, int(steps.argmax())
    time = time or int(steps[last]) + 1
    if 8 * num * len(series.channels) * max(time, 0) > MAX_BYTES:
        raise table.error(
            f"is step {int(steps[last])}, and so many do not fit: check start and step",
            row=last,
            column=series.time,
        )
    inside = (steps >= 0) & (steps < time)
    x = np.full((num, len(series.channels), max(time, 0)), np.nan, dtype=np.float32)
    for channel, name in enumerate(series.channels):
        values = table.numbers(name)
        there = inside & ~np.isnan(values)
        place = of_rows[there] * time + steps[there]
        counts = np.bincount(place, minlength=num * time).reshape(num, time)
        sums = np.bincount(place, values[there], minlength=num * time).reshape(num, time)
        with np.errstate(over="ignore"):  # infinity is refused where records are scaled
            np.divide(sums, counts, out=x[:, channel], where=counts > 0, casting="unsafe")
    return x


def _from_wide(table: Table, series: SeriesTable, steps: int) -> Floats:
    """Shape (series, channels, steps)."""
    columns = [
        [table.numbers(series.column(channel, step)) for step in range(steps)] for channel in series.channels
    ]
    return np.moveaxis(np.array(columns, dtype=np.float32), 2, 0)


def whole_of(
    table: Table, split: str, site: str, of_rows: Numbers, first: Numbers
) -> dict[str, NDArray[Any]]:
    """What these columns, as far as they are named and there, say of each record: `split` and `site`.

    Raises:
        DataError: nothing, or not the same in each of its rows; or another split than there is.
    """
    said = {
        name: np.array(_said(table, column, of_rows, first))
        for name, column in (("split", split), ("site", site))
        if column and column in table.columns
    }
    if "split" in said and (other := np.flatnonzero(~np.isin(said["split"], SPLITS))).size:
        raise table.error('is neither "train" nor "test"', row=int(first[other[0]]), column=split)
    return said


def _said(table: Table, column: str, of_rows: Numbers, first: Numbers) -> list[str]:
    """What a column says of each record.

    Raises:
        DataError: nothing, or not the same in each of its rows.
    """
    cells = table.texts(column)
    for row, number in enumerate(of_rows):
        if cells[row] is None:
            raise table.error("is empty", row=row, column=column)
        if cells[row] != cells[first[number]]:
            raise table.error("is not what an earlier row of the same record says", row=row, column=column)
    return [str(cells[row]) for row in first]


def _labels(table: Table, schema: ArraySchema, column: str, of_rows: Numbers, first: Numbers) -> NDArray[Any]:
    """Class positions, or numbers in their own unit, shape (series,)."""
    said: Sequence[str] = _said(table, column, of_rows, first)
    if not schema.classes:
        return table.numbers(column)[first]
    positions = positions_of(said, schema.classes)
    if (unknown := np.flatnonzero(positions <= EMPTY)).size:
        row = int(first[unknown[0]])
        raise table.error(f"is none of the {len(schema.classes)} classes", row=row, column=column)
    return positions


def _windows(
    x: Floats, said: dict[str, NDArray[Any]], series: SeriesTable, time: int, path: Path
) -> dict[str, NDArray[Any]]:
    """Windows of all series, those of one after another: what is known, and what comes then."""
    whole = time + series.horizon
    if x.shape[2] < whole:
        raise DataError(f"has no series of {whole} steps, which a window has with its horizon", path=path)
    views = sliding_window_view(x, whole, axis=2)[:, :, :: series.stride].transpose(0, 2, 1, 3)
    starts = np.arange(views.shape[1]) * series.stride
    target = series.channels.index(series.target)
    unknown = np.cumsum(
        ~np.isfinite(x[:, target]), axis=1
    )  # up to each step; of a horizon it is a difference
    last = starts + whole - 1
    wanted = unknown[:, last] == unknown[:, last - series.horizon]
    splits = np.full(len(starts), "train", dtype="U5")
    if series.test_from is not None:
        border = np.ceil((series.test_from - series.start) / series.step - _ROUNDING)
        splits[starts + time >= border] = "test"
        wanted &= (starts + time >= border) | (starts + whole <= border)
    for part in SPLITS if series.most_windows else ():
        own = wanted & (splits == part)
        wanted &= ~own | (own[:, ::-1].cumsum(1)[:, ::-1] <= series.most_windows)  # counted from the end
    if 4 * wanted.sum() * x.shape[1] * whole > MAX_BYTES:
        raise DataError(f"has {int(wanted.sum())} windows, more than fit: a larger stride", path=path)
    of, at = np.nonzero(wanted)
    if not len(of):
        raise DataError("has no window whose horizon is known", path=path, column=series.target)
    cut = views[of, at]
    found = {
        "x": np.ascontiguousarray(cut[:, :, :time]),
        "y": cut[:, target, time:].copy(),
        **{name: values[of] for name, values in said.items()},
    }
    return found if series.test_from is None else {**found, "split": splits[at]}
