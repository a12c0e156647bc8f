"""A table as it stands in a file: cells checked, not yet interpreted."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import compress
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from tacit.data.schema import NUMBER
from tacit.errors import DataError

Numbers = NDArray[np.float64]
Texts = tuple[str | None, ...]


@dataclass(frozen=True, eq=False, repr=False)
class Table:
    """The columns of one file. Its repr and its errors show no cell.

    Attributes:
        path: where the rows came from; errors name it.
        lines: shape (rows,), the physical line on which each row starts, from 1; in Parquet the row's number.
        columns: by name, in the file's order: numbers of shape (rows,) with NaN for an empty cell, or texts
            with None for an empty cell.
    """

    path: Path
    lines: NDArray[np.int64]
    columns: Mapping[str, Numbers | Texts]

    def __repr__(self) -> str:
        return f"<Table: {self.num_rows} rows, {len(self.columns)} columns>"

    @property
    def num_rows(self) -> int:
        """Number of rows."""
        return len(self.lines)

    def numbers(self, name: str) -> Numbers:
        """A column as float64 of shape (rows,), NaN where the cell is empty.

        Raises:
            DataError: there is no such column, or a cell is not a finite number.
        """
        column = self._column(name)
        if not isinstance(column, tuple):
            return column
        return np.array([self._number(cell, row, name) for row, cell in enumerate(column)], dtype=np.float64)

    def texts(self, name: str) -> Texts:
        """A column as text, None where the cell is empty; a number is its shortest decimal form."""
        column = self._column(name)
        if isinstance(column, tuple):
            return column
        return tuple(None if np.isnan(x) else repr(float(x)) for x in column)

    def where(self, rows: NDArray[np.bool_]) -> Table:
        """The table of some of its rows; a mask of shape (rows,)."""
        columns: dict[str, Numbers | Texts] = {
            name: tuple(compress(column, rows)) if isinstance(column, tuple) else column[rows]
            for name, column in self.columns.items()
        }
        return Table(self.path, self.lines[rows], columns)

    def error(self, message: str, *, row: int, column: str) -> DataError:
        """The error of one cell: file, line and column, never what stands there."""
        return DataError(message, path=self.path, line=int(self.lines[row]), column=column)

    def _column(self, name: str) -> Numbers | Texts:
        if name not in self.columns:
            raise DataError("is not in the file", path=self.path, column=name)
        return self.columns[name]

    def _number(self, cell: str | None, row: int, name: str) -> float:
        value = parse_number(cell)
        if value is None:
            raise self.error(NOT_A_NUMBER, row=row, column=name)
        return value


NOT_A_NUMBER = "is not a finite decimal number"


def parse_number(cell: str | None) -> float | None:
    """NaN for an empty cell, None for what is not a finite decimal number ("1e999" and formulas included)."""
    if cell is None:
        return float("nan")
    if not NUMBER.fullmatch(cell):
        return None
    value = float(cell)
    return value if abs(value) != float("inf") else None
