"""Rows that a run's generator makes up, as a table in the columns of its schema."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Final

import numpy as np
import torch

from tacit.data.readers import PARQUET_SUFFIXES, TAB_SUFFIXES
from tacit.data.rows import DIGITS, Cells, rows_of
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Numbers
from tacit.durable import write_file
from tacit.errors import ConfigError, MissingExtra, RunFailed
from tacit.inference.trained import Trained
from tacit.tasks.synthesis import TabularSynthesis

AT_ONCE: Final = 4096  # rows

Columns = dict[str, Numbers | Cells]


def synthesis_of(trained: Trained) -> TabularSynthesis:
    """The task of a run that makes rows up.

    Raises:
        ConfigError: the run is of another kind.
    """
    if not isinstance(trained.task, TabularSynthesis):
        raise ConfigError(
            f'its model makes no rows up: only those of kind = "tabular_synthesis" do, and this is "'
            f'{trained.experiment.task.kind}"',
            key="task.kind",
        )
    return trained.task


def made_up(trained: Trained, rows: int, seed: int) -> Columns:
    """Rows of the generator: classes by the declared shares, all else by the model.

    Args:
        trained: of a run with `[task] kind = "tabular_synthesis"`.
        rows: how many.
        seed: of the draws; the same one gives the same rows.

    Raises:
        ConfigError: the run is of another kind.
        RunFailed: the generator gives what is no number.

    Guarantees:
        Rows are made of the model, the schema and the seed alone.
    """
    task, draws = synthesis_of(trained), torch.Generator().manual_seed(seed)
    generator = task.follower(trained.model)
    features, classes = [], []
    with torch.no_grad():
        for start in range(0, rows, AT_ONCE):
            wanted = task.classes_of(min(AT_ONCE, rows - start), draws, trained.model)
            features.append(generator(wanted, draws).numpy())
            classes.append(wanted.argmax(1).numpy())
    whole = np.concatenate(features)
    if not np.isfinite(whole).all():
        raise RunFailed("the run's generator has diverged: train it again, with a smaller learning rate")
    return rows_of(whole, np.concatenate(classes), task.schema)


def write_rows(columns: Columns, schema: Schema, path: Path) -> None:
    """Writes a table: Parquet if the name ends so, else CSV, separated by tabs if the name ends in .tsv.

    Raises:
        MissingExtra: Parquet, and pyarrow is not installed.
        StorageError: the disk refuses.
    """
    parquet = path.suffix.lower() in PARQUET_SUFFIXES
    write_file(path, _parquet(columns) if parquet else _csv(columns, schema, path))


def _csv(columns: Columns, schema: Schema, path: Path) -> bytes:
    file = io.StringIO()
    writer = csv.writer(
        file, delimiter="\t" if path.suffix.lower() in TAB_SUFFIXES else ",", lineterminator="\n"
    )
    writer.writerow(columns)
    cells = [_texts(values, schema, name) for name, values in columns.items()]
    writer.writerows(zip(*cells, strict=True))
    return file.getvalue().encode()


def _texts(values: Numbers | Cells, schema: Schema, name: str) -> Cells:
    if isinstance(values, list):
        return values
    column = schema.columns[name]
    decimals = column.decimals if isinstance(column, NumericColumn) else None
    form = f".{DIGITS}g" if decimals is None else f".{decimals}f"
    return ["" if np.isnan(value) else format(value + 0.0, form) for value in values]  # + 0.0: no "-0"


def _parquet(columns: Columns) -> bytes:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise MissingExtra("writing Parquet", "tables") from None
    arrays = {
        name: pa.array([cell or None for cell in values], pa.string())
        if isinstance(values, list)
        else pa.array(values, from_pandas=True)
        for name, values in columns.items()
    }
    buffer = io.BytesIO()
    pq.write_table(pa.table(arrays), buffer)
    return buffer.getvalue()
