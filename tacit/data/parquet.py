"""Reads one site's table from Parquet, through pyarrow."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from tacit.data.readers import MAX_CELL, Wanted, kept_columns, numeric_columns
from tacit.data.schema import MISSING
from tacit.data.table import NOT_A_NUMBER, Numbers, Table, Texts
from tacit.errors import DataError, MissingExtra


def read_parquet(path: Path, schema: Wanted | None, max_bytes: int) -> Table:
    """Like `tacit.data.readers.read_table`; a row's "line" is its number, from 1.

    Raises:
        DataError: not Parquet, larger than `max_bytes` once decompressed, or a cell that cannot be used.
        MissingExtra: pyarrow is not installed.
    """
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("reading Parquet", "tables") from None
    try:
        with pq.ParquetFile(path) as file:
            kept = kept_columns(file.schema_arrow.names, schema, path)
            _check_decompressed(file.metadata, len(kept), path, max_bytes)
            arrow = file.read(columns=list(kept))
    except (pa.ArrowException, OSError, ValueError) as error:
        reason = f"cannot be read as Parquet ({type(error).__name__})"  # its text may quote the file
        raise DataError(reason, path=path) from None
    if arrow.num_rows == 0:
        raise DataError("has no rows", path=path)
    table = Table(
        path,
        np.arange(1, arrow.num_rows + 1, dtype=np.int64),
        {name: _column(arrow.column(name), path, name) for name in kept},
    )
    return _with_checked_cells(table, schema)


def _check_decompressed(metadata: Any, columns: int, path: Path, max_bytes: int) -> None:
    """Refuses a small file that grows: by its declared size, and by 8 bytes a cell."""
    declared = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    size = max(declared, 8 * metadata.num_rows * columns)
    if size > max_bytes:
        raise DataError(f"holds {size} bytes, more than the {max_bytes} that are read", path=path)


def _column(column: Any, path: Path, name: str) -> Numbers | Texts:
    """Numbers as float64, texts and booleans as text; everything else is refused by its type."""
    import pyarrow as pa

    if pa.types.is_dictionary(column.type):
        column = column.cast(column.type.value_type)
    kind = column.type
    if pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind):
        return np.array(column.cast(pa.float64(), safe=False).to_numpy(), dtype=np.float64)
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return tuple(_text(cell) for cell in column.to_pylist())
    if pa.types.is_boolean(kind) or pa.types.is_null(kind):
        return tuple(None if cell is None else str(cell) for cell in column.to_pylist())
    raise DataError(f"has type {kind}; numbers, text and booleans are read", path=path, column=name)


def _text(cell: str | None) -> str | None:
    stripped = "" if cell is None else cell.strip()
    return None if stripped in MISSING else stripped


def _with_checked_cells(table: Table, schema: Wanted | None) -> Table:
    """The table with declared numbers as numbers; no infinity and no overlong text in it."""
    numeric = numeric_columns(schema)
    columns: dict[str, Numbers | Texts] = {}
    for name, column in table.columns.items():
        if isinstance(column, tuple):
            for row, cell in enumerate(column):
                if cell is not None and len(cell) > MAX_CELL:
                    message = f"has a cell of more than {MAX_CELL} characters"
                    raise table.error(message, row=row, column=name)
            columns[name] = table.numbers(name) if name in numeric else column
            continue
        infinite = np.flatnonzero(np.isinf(column))
        if infinite.size:
            raise table.error(NOT_A_NUMBER, row=int(infinite[0]), column=name)
        columns[name] = column
    return Table(table.path, table.lines, columns)
