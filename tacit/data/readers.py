"""Reads one site's table from CSV or Parquet. The answer to any file is a table or a `DataError`.

Guarantees:
    An error names the file, the line and, where known, the column; no message contains a cell's value.
    A file above `max_bytes` is refused before it is read.
"""

from __future__ import annotations

import csv
import stat
from array import array
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np

from tacit.data.schema import MISSING, NUMBER
from tacit.data.table import NOT_A_NUMBER, Numbers, Table, Texts, parse_number
from tacit.errors import DataError

MAX_BYTES = 2 * 1024**3
MAX_CELL = 10_000  # characters
PARQUET_SUFFIXES = (".parquet", ".pq")
TAB_SUFFIXES = (".tsv", ".tab")
OTHER_DELIMITERS = {";": "';'", "\t": "a tab", "|": "'|'"}


class Wanted(Protocol):
    """Which columns of a file are kept: those that must be there, those that may be, and which hold numbers."""

    @property
    def required(self) -> Sequence[str]:
        """Names."""
        ...

    @property
    def optional(self) -> Sequence[str]:
        """Names; "" is none."""
        ...

    @property
    def numeric(self) -> Collection[str]:
        """Those of them that are read as numbers."""
        ...


def read_table(
    path: Path,
    schema: Wanted | None,
    *,
    names: Sequence[str] | None = None,
    max_bytes: int = MAX_BYTES,
) -> Table:
    """Reads a CSV file (UTF-8, with a header, separated by commas) or a Parquet file, by its suffix.

    Args:
        path: the file; ".parquet" and ".pq" are Parquet, ".tsv" and ".tab" are CSV separated by tabs, everything else
            is CSV.
        schema: the columns to keep, of which the numeric ones are read as numbers; None = all, CSV as text.
        names: column names of a CSV file that has no header.
        max_bytes: largest file accepted; for Parquet also the largest size once decompressed.

    Raises:
        DataError: the file cannot be used; see the module's guarantees.
        MissingExtra: a Parquet file, and pyarrow is not installed.
    """
    _check_size(path, max_bytes)
    if path.suffix.lower() in PARQUET_SUFFIXES:
        from tacit.data.parquet import read_parquet

        return read_parquet(path, schema, max_bytes)
    try:
        with path.open(encoding="utf-8-sig", newline="") as handle:
            return _CsvFile(path, schema, names).read(handle)
    except UnicodeDecodeError:
        line = _undecodable_line(path)
        raise DataError("is not UTF-8: save the file as UTF-8", path=path, line=line) from None
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from None


def num_rows(path: Path) -> int:
    """How many records a site's file holds: rows of a table, arrays of an archive (.npz), images of a folder.

    Raises:
        DataError: it cannot be read; names the file.
    """
    if path.suffix.lower() == ".npz":
        from tacit.data.npz import num_records

        return num_records(path)
    if path.is_dir():
        from tacit.data.images import image_files

        return sum(1 for _ in image_files(path))
    return read_table(path, None).num_rows


def kept_columns(header: Sequence[str], schema: Wanted | None, path: Path) -> dict[str, int]:
    """Position of each column to keep, in the file's order.

    The site column is kept where it is there: at a site, the file itself says whose it is.

    Raises:
        DataError: a column of the schema is missing, or two columns have the same name.
    """
    positions: dict[str, int] = {}
    for position, name in enumerate(header):
        if name in positions:
            first = positions[name] + 1
            message = f"columns {first} and {position + 1} have the same name"
            raise DataError(message, path=path, line=1)
        positions[name] = position
    if schema is None:
        return positions
    missing = [name for name in schema.required if name not in positions]
    if missing:
        listed = ", ".join(repr(name) for name in missing[:5]) + (", ..." if len(missing) > 5 else "")
        raise DataError(f"the header lacks {listed}{_header_hint(header)}", path=path, line=1)
    wanted = {*schema.required, *schema.optional}
    return {name: position for name, position in positions.items() if name in wanted}


def numeric_columns(schema: Wanted | None) -> Collection[str]:
    """The columns that the schema declares as numbers."""
    return () if schema is None else schema.numeric


def _header_hint(header: Sequence[str]) -> str:
    for delimiter, spelled in OTHER_DELIMITERS.items():
        if any(delimiter in name for name in header):
            return f"; columns seem to be separated by {spelled}, save the file with commas"
    if header and all(NUMBER.fullmatch(name) or name in MISSING for name in header):
        return "; the first line seems to be data, a header line is needed"
    return ""


def _check_size(path: Path, max_bytes: int) -> None:
    try:
        info = path.stat()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise DataError(f"cannot be read: {reason}", path=path) from None
    if not stat.S_ISREG(info.st_mode):  # a pipe or device has no size and may never end
        raise DataError("is not a regular file", path=path)
    if info.st_size == 0:
        raise DataError("is empty", path=path)
    if info.st_size > max_bytes:
        raise DataError(f"has {info.st_size} bytes, more than the {max_bytes} that are read", path=path)


def _undecodable_line(path: Path) -> int:
    """The first line that is not UTF-8. Lines decode alone: no longer character holds a line feed's byte."""
    with path.open("rb") as handle:
        for number, line in enumerate(handle, start=1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    return 1


class _CsvFile:
    """One pass over a CSV file."""

    def __init__(self, path: Path, schema: Wanted | None, names: Sequence[str] | None) -> None:
        self._path, self._schema, self._names = path, schema, names
        self._delimiter = "\t" if path.suffix.lower() in TAB_SUFFIXES else ","
        self._line = 1  # where the row at hand starts

    def read(self, handle: TextIO) -> Table:
        rows = self._rows(handle)
        header = list(self._names) if self._names else next(rows, None)
        if header is None:
            raise DataError("is empty", path=self._path)
        kept = kept_columns([name.strip() for name in header], self._schema, self._path)
        if len(header) == 1 and (hint := _header_hint(header)):
            raise DataError(f"has a single column{hint}", path=self._path, line=1)
        numeric = numeric_columns(self._schema)
        sinks: dict[str, _NumberSink | _TextSink] = {
            name: _NumberSink() if name in numeric else _TextSink() for name in kept
        }
        lines = array("q")
        for row in rows:
            self._check_width(row, len(header))
            for name, position in kept.items():
                self._put(row[position], name, sinks[name].add)
            lines.append(self._line)
        if not lines:
            raise DataError("has no rows", path=self._path)
        return Table(
            self._path, np.array(lines, dtype=np.int64), {name: sink.column() for name, sink in sinks.items()}
        )

    def _rows(self, handle: TextIO) -> Iterator[list[str]]:
        """The rows with content; `_line` is the physical line on which the latest one starts."""
        reader = csv.reader(self._text_lines(handle), strict=True, delimiter=self._delimiter)
        while True:
            self._line = reader.line_num + 1
            try:
                row = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                raise DataError(f"is not valid CSV: {error}", path=self._path, line=self._line) from None
            if row:
                yield row

    def _text_lines(self, handle: TextIO) -> Iterator[str]:
        for number, line in enumerate(handle, start=1):
            if "\0" in line:
                raise DataError("is not text: it has a NUL character", path=self._path, line=number)
            yield line

    def _check_width(self, row: Sequence[str], width: int) -> None:
        if len(row) != width:
            message = f"has {len(row)} cells where the header has {width}"
            raise DataError(message, path=self._path, line=self._line)

    def _put(self, cell: str, name: str, add: Callable[[str | None], str]) -> None:
        if len(cell) > MAX_CELL:
            problem = f"has a cell of more than {MAX_CELL} characters"
        else:
            cell = cell.strip()
            problem = add(None if cell in MISSING else cell)
        if problem:
            raise DataError(problem, path=self._path, line=self._line, column=name)


class _NumberSink:
    """Collects a numeric column in 8 bytes a cell."""

    def __init__(self) -> None:
        self._values = array("d")

    def add(self, cell: str | None) -> str:
        """Takes a cell; what is wrong with it, or ""."""
        value = parse_number(cell)
        if value is None:
            return NOT_A_NUMBER
        self._values.append(value)
        return ""

    def column(self) -> Numbers:
        return np.array(self._values, dtype=np.float64)


class _TextSink:
    """Collects a text column; equal cells are one object."""

    def __init__(self) -> None:
        self._values: list[str | None] = []
        self._seen: dict[str | None, str | None] = {}

    def add(self, cell: str | None) -> str:
        """Takes a cell; any text will do."""
        self._values.append(self._seen.setdefault(cell, cell))
        return ""

    def column(self) -> Texts:
        return tuple(self._values)


__all__ = ["MAX_BYTES", "MAX_CELL", "read_table"]
