"""Group G2, G3 and G7: every bad file is answered with file and line, never a traceback or a cell's value."""

import os
from pathlib import Path

import numpy as np
import pytest

from tacit.data.readers import MAX_CELL, read_table
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema
from tacit.errors import DataError

CANARY = "Zx9-canary"  # stands in the cells of bad files; no message may show it
SCHEMA = Schema(
    label="y",
    classes=("0", "1"),
    columns={
        "a": NumericColumn(kind="numeric", range=(0, 10)),
        "c": CategoricalColumn(kind="categorical", categories=("red", "blue")),
    },
)


def write(folder: Path, content: bytes | str, name: str = "site.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


HANDLED = {
    "plain": ("a,c,y\n1,red,0\n2,blue,1\n", [2, 3]),
    "byte order mark": ("\ufeffa,c,y\n1,red,0\n2,blue,1\n", [2, 3]),
    "windows line ends": ("a,c,y\r\n1,red,0\r\n2,blue,1\r\n", [2, 3]),
    "old macintosh line ends": ("a,c,y\r1,red,0\r2,blue,1\r", [2, 3]),
    "no newline at the end": ("a,c,y\n1,red,0\n2,blue,1", [2, 3]),
    "blank lines": ("a,c,y\n\n1,red,0\n\n\n2,blue,1\n\n", [3, 6]),
    "quoted newline": ('a,c,note,y\n1,red,"two\nlines",0\n2,blue,one,1\n', [2, 4]),
    "quoted comma and quotes": ('a,c,note,y\n1,red,"a, ""b""",0\n2,blue,,1\n', [2, 3]),
    "spaces around cells": (" a , c,y\n 1 ,red , 0\n2, blue,1 \n", [2, 3]),
    "other columns ignored": ("id,a,c,y,=1+1\nq,1,red,0,=2+2\nq,2,blue,1,inf\n", [2, 3]),
    "other order": ("y,c,a\n0,red,1\n1,blue,2\n", [2, 3]),
}


@pytest.mark.parametrize("case", HANDLED)
def test_G2_odd_but_good_csv_is_read(tmp_path: Path, case: str) -> None:
    content, lines = HANDLED[case]
    table = read_table(write(tmp_path, content), SCHEMA)
    assert set(table.columns) == {"a", "c", "y"}
    assert table.numbers("a").tolist() == [1.0, 2.0]
    assert table.texts("c") == ("red", "blue")
    assert table.texts("y") == ("0", "1")
    assert table.lines.tolist() == lines


@pytest.mark.parametrize("cell", ["", "?", "NA", "nan", "NaN", '""', " "])
def test_G2_missing_cells(tmp_path: Path, cell: str) -> None:
    table = read_table(write(tmp_path, f"a,c,y\n{cell},{cell},0\n"), SCHEMA)
    assert np.isnan(table.numbers("a")).tolist() == [True]
    assert table.texts("c") == (None,)


NOT_NUMBERS = [
    "inf", "-inf", "Infinity", "1e999", "-1e999", "=1+1", "+1+1", "@x", "1_000", "0x1", "1,5", "٣", "1e", ".",
    "--1", "1 2", "abc", "true",
]  # fmt: skip


@pytest.mark.parametrize("cell", NOT_NUMBERS)
def test_G2_cell_that_is_no_finite_number_is_refused(tmp_path: Path, cell: str) -> None:
    path = write(tmp_path, f'a,c,y\n1,red,0\n"{cell}",red,0\n')
    with pytest.raises(DataError) as caught:
        read_table(path, SCHEMA)
    assert (caught.value.line, caught.value.column) == (3, "a")
    assert str(path) in str(caught.value)
    assert cell not in caught.value.reason.replace("is not a finite decimal number", "")


C = CANARY
REFUSED = {
    "empty": ("", None, "is empty"),
    "only a byte order mark": ("\ufeff", None, "is empty"),
    "only blank lines": ("\n\n\n", None, "is empty"),
    "header only": ("a,c,y\n", None, "has no rows"),
    "latin-1": (f"a,c,y\n1,red,0\n1,{C}é,0\n".encode("latin-1"), 3, "not UTF-8"),
    "utf-16": (f"a,c,y\n1,{C},0\n".encode("utf-16"), 1, "not UTF-8"),
    "utf-16 without mark": (f"a,c,y\n1,{C},0\n".encode("utf-16-le"), 1, "NUL"),
    "NUL in a cell": (f"a,c,y\n1,{C}\0,0\n", 2, "NUL"),
    "short row": (f"a,c,y\n1,red,0\n1,{C}\n", 3, "has 2 cells where the header has 3"),
    "long row": (f"a,c,y\n1,red,0\n1,{C},0,5\n", 3, "has 4 cells where the header has 3"),
    "ragged after a quoted newline": (f'a,c,y\n1,"r\ned",0\n1,{C}\n', 4, "has 2 cells"),
    "unclosed quote": (f'a,c,y\n1,red,0\n1,"{C},0\n2,red,1\n', 3, "not valid CSV"),
    "text after a quote": (f'a,c,y\n1,"{C}"x,0\n', 2, "not valid CSV"),
    "million characters": (f"a,c,y\n1,red,0\n1,{C * 100_000},0\n", 3, "not valid CSV"),
    "overlong cell": (f"a,c,y\n1,{'r' * (MAX_CELL + 1)},0\n", 2, "more than 10000 characters"),
    "label column missing": (f"a,c\n1,{C}\n", 1, "lacks 'y'"),
    "feature column missing": (f"c,y\n{C},0\n", 1, "lacks 'a'"),
    "duplicate column": (f"a,c,y,a\n1,{C},0,2\n", 1, "columns 1 and 4 have the same name"),
    "no header": (f"1,2,0\n2,{C},1\n", 1, "first line seems to be data"),
    "semicolons": (f"a;c;y\n1;{C};0\n", 1, "separated by ';'"),
    "tabs": (f"a\tc\ty\n1\t{C}\t0\n", 1, "separated by a tab"),
    "bars": (f"a|c|y\n1|{C}|0\n", 1, "separated by '|'"),
    "semicolons and decimal commas": (f"a;c;y\n1,5;{C};0\n", 1, "separated by ';'"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_G2_bad_csv_is_refused_with_file_and_line_and_no_cell(tmp_path: Path, case: str) -> None:
    content, line, reason = REFUSED[case]
    path = write(tmp_path, content)
    with pytest.raises(DataError, match=reason) as caught:
        read_table(path, SCHEMA)
    assert caught.value.line == line
    assert str(caught.value).startswith(str(path) if line is None else f"{path}:{line}: ")
    assert CANARY not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_G2_split_column_must_be_there_and_site_column_may_be_absent(tmp_path: Path) -> None:
    path = write(tmp_path, "a,c,y\n1,red,0\n")
    assert "site" not in read_table(path, SCHEMA.model_copy(update={"site": "site"})).columns
    with pytest.raises(DataError, match="lacks 'fold'"):
        read_table(path, SCHEMA.model_copy(update={"split": "fold"}))


def test_G2_a_table_prints_no_cell(tmp_path: Path) -> None:
    table = read_table(write(tmp_path, f"a,c,y\n1,{CANARY},0\n"), SCHEMA)
    assert CANARY not in repr(table) + str(table)
    assert repr(table) == "<Table: 1 rows, 3 columns>"


def test_without_a_schema_every_column_is_text_and_names_may_be_given(tmp_path: Path) -> None:
    path = write(tmp_path, "1,x,?\n2,y,3\n")
    table = read_table(path, None, names=("a", "b", "c"))
    assert dict(table.columns) == {"a": ("1", "2"), "b": ("x", "y"), "c": (None, "3")}
    assert table.lines.tolist() == [1, 2]
    assert table.numbers("a").tolist() == [1.0, 2.0]
    with pytest.raises(DataError, match=r":1: column 'b': is not a finite decimal number"):
        table.numbers("b")
    with pytest.raises(DataError, match="column 'z': is not in the file"):
        table.numbers("z")


def test_G3_large_file_is_refused_by_size_and_not_read(tmp_path: Path) -> None:
    path = write(tmp_path, "a,c,y\n1,red,0\n")
    with pytest.raises(DataError, match="has 14 bytes, more than the 13 that are read"):
        read_table(path, SCHEMA, max_bytes=13)
    assert read_table(path, SCHEMA, max_bytes=14).num_rows == 1
    os.truncate(path, 3 * 1024**3)  # a sparse file: no disk is used, and reading it would show
    with pytest.raises(DataError, match="more than the 2147483648 that are read"):
        read_table(path, SCHEMA)


@pytest.mark.parametrize(
    "name",
    [
        "with space.csv",
        "naïve-Ärzte-医院.csv",
        "quote'\"s.csv",
        "new\nline.csv",
        "%s{}.csv",
        "-dash.csv",
        "no-suffix",
    ],
)
def test_G7_unusual_names_are_read(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "mit Leerzeichen" / ("d" * 200)
    folder.mkdir(parents=True)
    assert read_table(write(folder, "a,c,y\n1,red,0\n", name), SCHEMA).num_rows == 1


def test_G7_paths_that_cannot_be_read_are_one_error(tmp_path: Path) -> None:
    fifo = tmp_path / "pipe.csv"
    os.mkfifo(fifo)
    cases = {
        tmp_path / "absent.csv": "No such file",
        tmp_path / ("x" * 300 + ".csv"): "too long",
        Path("/" + "/".join(["deep" * 50] * 40)): "too long",
        tmp_path: "not a regular file",
        fifo: "not a regular file",
        tmp_path / "a\0b.csv": "null",
    }
    for path, reason in cases.items():
        with pytest.raises(DataError, match=reason):
            read_table(path, SCHEMA)


def parquet(folder: Path, **columns: object) -> Path:
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path = folder / "site.parquet"
    pq.write_table(pa.table(columns), path)
    return path


def test_parquet_reads_like_csv(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    path = parquet(
        tmp_path,
        a=pa.array([1, None, 3], pa.int32()),
        c=pa.array(["red", "?", " blue "]).dictionary_encode(),
        y=pa.array([0.0, 1.0, 1.0]),
        other=pa.array([b"x", b"y", b"z"]),
    )
    table = read_table(path, SCHEMA)
    np.testing.assert_array_equal(table.numbers("a"), [1.0, np.nan, 3.0])
    assert table.texts("c") == ("red", None, "blue")
    assert table.texts("y") == ("0.0", "1.0", "1.0")
    assert table.lines.tolist() == [1, 2, 3]


def test_G2_bad_parquet_is_refused(tmp_path: Path) -> None:
    pa = pytest.importorskip("pyarrow")
    good = {"a": [1.0], "c": ["red"], "y": ["0"]}
    cases = [
        ({**good, "a": [float("inf")]}, ":1: column 'a': is not a finite"),
        ({**good, "a": [CANARY]}, ":1: column 'a': is not a finite"),
        ({**good, "c": ["r" * (MAX_CELL + 1)]}, ":1: column 'c': has a cell of more"),
        ({**good, "a": pa.array([0], pa.timestamp("s"))}, "column 'a': has type timestamp"),
        ({"c": ["red"], "y": ["0"]}, "lacks 'a'"),
        ({name: pa.array([], pa.string()) for name in good}, "has no rows"),
    ]
    for columns, reason in cases:
        with pytest.raises(DataError, match=reason) as caught:
            read_table(parquet(tmp_path, **columns), SCHEMA)
        assert CANARY not in str(caught.value)
    path = parquet(tmp_path, **good)
    for content in (b"PAR1", CANARY.encode(), path.read_bytes()[:-9], path.read_bytes()[:40]):
        with pytest.raises(DataError, match="cannot be read as Parquet") as caught:
            read_table(write(tmp_path, content, "bad.parquet"), SCHEMA)
        assert CANARY not in str(caught.value)


def test_G3_parquet_that_grows_is_refused_by_its_decompressed_size(tmp_path: Path) -> None:
    path = parquet(tmp_path, a=np.zeros(500_000), c=["red"] * 500_000, y=["0"] * 500_000)
    assert path.stat().st_size < 100_000
    with pytest.raises(DataError, match="more than the 1000000 that are read"):
        read_table(path, SCHEMA, max_bytes=1_000_000)
