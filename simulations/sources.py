"""The tables that a simulation partitions into sites: built-in public data, or a file of the user's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from simulations import source_schemas
from simulations.download import cache_folder, download
from tacit import config
from tacit.data.infer import infer_schema
from tacit.data.preprocessing import labels
from tacit.data.readers import read_table
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table
from tacit.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    import pandas as pd

UCI = "https://archive.ics.uci.edu"

HOSPITALS = {"cleveland": 303, "hungarian": 294, "switzerland": 123, "va": 200}  # rows of the published files
HEART_COLUMNS = (
    "age", "sex", "cp", "trestbps", "chol", "fbs", "restecg",
    "thalach", "exang", "oldpeak", "slope", "ca", "thal", "target",
)  # fmt: skip
HEART_DROPPED = ("slope", "ca", "thal")  # empty for almost every patient outside Cleveland

CREDIT_ROWS = 30_000
CREDIT_FILES = ("UCI_Credit_Card.csv", "data.csv")
CREDIT_URL = f"{UCI}/static/public/350/data.csv"
CREDIT_LABELS = ("default.payment.next.month", "default payment next month", "Y")

LABEL_NAMES = ("label", "target", "class", "y")  # what an undeclared label column may be called


def load_source(data: config.Data, seed: int = 7) -> tuple[pd.DataFrame, Schema]:
    """The rows and the schema of `[data] source`; `seed` is for rows that are generated.

    The frame holds raw values, as they would stand in a site's file: numbers with NaN, texts with None, and
    for a file of the user's every column of it, so that any column can name the sites. A schema that the
    experiment declares takes the place of the source's own; only a file's may be inferred, which is not
    private.

    Raises:
        DataError: a file is absent and cannot be downloaded, or does not hold what it should.
        ConfigError: the source is a task's own.
        MissingExtra: pandas, pyarrow or scikit-learn is needed and not installed.
    """
    if data.source == "task":
        raise ConfigError("this task brings its own data; there is no table to load", key="data.source")
    try:
        import pandas  # noqa: F401 - asked for here, so that one place says what to install
    except ImportError:
        raise MissingExtra("a simulation over tables", "tables") from None
    if data.source == "generated":
        from simulations.scenarios.catalogue import generated_table

        frame, schema = generated_table(data, seed)
        return frame, data.columns or schema
    if data.source == "breast_cancer":
        return _breast_cancer(), data.columns or source_schemas.breast_cancer()
    if data.source == "heart_disease":
        return _heart_disease(data), data.columns or source_schemas.heart_disease()
    if data.source == "credit_default":
        return _credit_default(data), data.columns or source_schemas.credit_default()
    return _file(data)


def _breast_cancer() -> pd.DataFrame:
    """Wisconsin diagnostic breast cancer, 569 rows, as scikit-learn carries it."""
    try:
        from sklearn.datasets import load_breast_cancer
    except ImportError:
        raise MissingExtra("the breast cancer data", "simulation") from None
    bunch = load_breast_cancer(as_frame=True)
    names = list(bunch.target_names)
    return bunch.data.assign(diagnosis=[names[target] for target in bunch.target])


def _heart_disease(data: config.Data) -> pd.DataFrame:
    """UCI Heart Disease, prepared as FLamby's Fed-Heart-Disease (du Terrail et al. 2022) prepares it.

    slope, ca and thal are dropped, then every row with an empty cell; `target` becomes 0 or 1; `site` is the
    hospital. Rows keep the order of the files: 303, 261, 46 and 130 of them in the published ones.
    """
    import pandas as pd

    folder = Path(data.dir) if data.dir else cache_folder("heart-disease")
    frames = [_hospital(folder, site, may_download=not data.dir) for site in HOSPITALS]
    return pd.concat(frames, ignore_index=True)


def _hospital(folder: Path, site: str, *, may_download: bool) -> pd.DataFrame:
    path = folder / f"processed.{site}.data"
    if not path.exists():
        if not may_download:
            raise DataError("is not there: data.dir needs this file", path=path)
        url = f"{UCI}/ml/machine-learning-databases/heart-disease/{path.name}"
        download(url, path, lambda content: _wrong_rows(content, HOSPITALS[site]))
    names = None if _starts_with(path, HEART_COLUMNS[0]) else HEART_COLUMNS
    table = read_table(path, None, names=names)
    kept = [name for name in HEART_COLUMNS if name not in HEART_DROPPED]
    frame = _frame(table, kept, kept).dropna()
    return frame.assign(target=(frame["target"] > 0).astype(int), site=site)


def _credit_default(data: config.Data) -> pd.DataFrame:
    """UCI default of credit card clients under its original column names, without the ID."""
    folder = Path(data.dir) if data.dir else cache_folder("credit-default")
    path = next((folder / name for name in CREDIT_FILES if (folder / name).exists()), None)
    if path is None:
        path = folder / CREDIT_FILES[-1]
        if data.dir:
            raise DataError(f"is not there: data.dir needs it or {CREDIT_FILES[0]}", path=path)
        download(CREDIT_URL, path, lambda content: _wrong_rows(content, CREDIT_ROWS + 1))
    schema = source_schemas.credit_default()
    table = read_table(path, None)
    features = list(schema.columns)
    # The archive's generated file numbers its columns: X1 to X23 in the original order, and Y.
    spelled: dict[str, tuple[str, ...]] = {
        name: (name, f"X{position}") for position, name in enumerate(features, start=1)
    }
    spelled |= {"PAY_0": ("PAY_0", "PAY_1", "X6"), schema.label: CREDIT_LABELS}
    renamed = {_found(table, names): name for name, names in spelled.items()}
    return _frame(table, list(renamed), list(renamed)).rename(columns=renamed).astype({schema.label: int})


def _file(data: config.Data) -> tuple[pd.DataFrame, Schema]:
    """A CSV or Parquet file of the user's, checked against its schema."""
    path = Path(data.path)
    if (data.source == "parquet") != (path.suffix.lower() in (".parquet", ".pq")):
        raise DataError(f"does not end as a {data.source} file does: set data.source", path=path)
    table = read_table(path, None)
    schema = data.columns
    if schema is None:
        label = next((name for name in LABEL_NAMES if name in table.columns), None)
        if label is None:
            message = f"no column is called {', '.join(LABEL_NAMES)}: state [data.schema] with its label"
            raise DataError(message, path=path)
        schema = infer_schema(table, label)
    else:
        read_table(path, schema)  # says which line breaks the schema
    labels(table, schema)
    numeric = [name for name, column in schema.columns.items() if isinstance(column, NumericColumn)]
    return _frame(table, list(table.columns), numeric), schema


def _frame(table: Table, names: list[str], numeric: list[str]) -> pd.DataFrame:
    """These columns as a frame; those of `numeric` as numbers, the others as they were read."""
    import pandas as pd

    return pd.DataFrame(
        {name: table.numbers(name) if name in numeric else _series(table, name) for name in names}
    )


def _series(table: Table, name: str) -> pd.Series:
    import pandas as pd

    column = table.columns[name]
    return pd.Series(column, dtype=object if isinstance(column, tuple) else float)


def _found(table: Table, names: tuple[str, ...]) -> str:
    """The first of several spellings of a column that the file has."""
    for name in names:
        if name in table.columns:
            return name
    raise DataError("is not in the file", path=table.path, column=names[0])


def _starts_with(path: Path, name: str) -> bool:
    with path.open("rb") as handle:
        return handle.read(64).removeprefix(b"\xef\xbb\xbf").lstrip(b' "').startswith(name.encode())


def _wrong_rows(content: bytes, expected: int) -> str:
    """What is wrong with a download: it must have the published number of lines (an error page has not)."""
    lines = sum(1 for line in content.splitlines() if line.strip())
    return "" if lines == expected else f"{lines} lines where {expected} are published"
