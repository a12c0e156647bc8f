"""What a trained model takes: raw records, named as the user's data name them, and how they become its features.

Preparing a record is part of the model here (`torch.nn.Module`), computed as `tacit.data` computes it in training, so
that who exports a model or asks it for a prediction gives it what stands in the file.

Guarantees:
    A raw record becomes the same features here as in training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit.data.array_schema import ArraySchema
from tacit.data.arrays import raw_arrays, read_arrays
from tacit.data.preprocessing import (
    EMPTY,
    UNSEEN,
    Constants,
    labels,
    positions_of,
    selected_rows,
)
from tacit.data.readers import read_table
from tacit.data.schema import MISSING, CategoricalColumn, NumericColumn, Schema, TextColumn
from tacit.data.table import Table
from tacit.data.tokens import tokenised
from tacit.errors import DataError, ProtocolError
from tacit.inference.trained import Trained
from tacit.tasks.arrays import Arrays
from tacit.tasks.models import AXES
from tacit.tasks.tabular import TabularClassification
from tacit.tasks.text import TextClassification

Raw = Mapping[str, NDArray[Any]]  # by input: numbers, or texts (dtype object) of a categorical column


class Input(NamedTuple):
    """One named input.

    Attributes:
        name: a column of the table; "x" of arrays; "features" of a task of the user's own.
        datatype: in the words of the Open Inference Protocol: FP64, FP32, or BYTES (UTF-8 texts).
        shape: of one record; () of a column.
        names: what a text may be; others are unseen.
        may_be_unseen: whether another text is taken, as none of the names.
        may_be_empty: whether a record may lack it.
        tokens: how a column of text is cut: "tokens", "vocabulary" and "length" as in `[data.schema.text]`.
    """

    name: str
    datatype: str
    shape: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    may_be_unseen: bool = False
    may_be_empty: bool = True
    tokens: Mapping[str, Any] | None = None

    def of_a_file(self) -> Input:
        """As an exported model takes it: of a text its tokens, which no runtime makes alike."""
        if self.tokens is None:
            return self
        return self._replace(datatype="INT64", shape=(self.tokens["length"],))


class Inputs(Protocol):
    """The inputs of one model, in order, and the module that makes features of them."""

    inputs: tuple[Input, ...]

    def features(self) -> nn.Module:
        """Takes one tensor per input, with rows first; gives what the model was trained on."""
        ...

    def tensors(self, raw: Raw) -> tuple[Tensor, ...]:
        """One tensor per input: numbers as they are, texts as positions among their names.

        Raises:
            ProtocolError: "input", a value is none that the schema allows; names the input, never the value.
        """
        ...

    def read(self, path: Path) -> tuple[Raw, Tensor]:
        """Raw records of a file and their targets: of its test split where it has one, else all of them.

        A target is a position among the classes, or numbers in their own unit.

        Raises:
            DataError: the file cannot be used.
        """
        ...


class TableInputs:
    """One input per column of a schema: a number (NaN = empty) or a text ("" = empty), each of shape (rows,)."""

    def __init__(self, schema: Schema, constants: Constants | None) -> None:
        self._schema, self._constants = schema, constants
        empty = schema.missing_rows != "drop"
        self.inputs = tuple(
            Input(name, "FP64", may_be_empty=empty)
            if isinstance(column, NumericColumn)
            else Input(name, "BYTES", (), column.categories, column.unseen == "ignore", empty)
            for name, column in schema.columns.items()
        )

    def features(self) -> nn.Module:
        """See `Inputs`."""
        columns = [
            _Number(column, self._constants[name] if self._constants else column.affine())
            if isinstance(column, NumericColumn)
            else _OneHot(column)
            for name, column in self._schema.columns.items()
        ]
        return _Table(columns)

    def tensors(self, raw: Raw) -> tuple[Tensor, ...]:
        """See `Inputs`."""
        found = []
        values: NDArray[Any]
        for name, column in self._schema.columns.items():
            if isinstance(column, NumericColumn):
                values = raw[name].astype(np.float64)
                empty = np.isnan(values)
                if np.isinf(values).any():
                    raise ProtocolError("input", f"{name!r} has an infinite number")
            else:
                values = _positions(raw[name], name, column)
                empty = values == EMPTY
            if self._schema.missing_rows == "drop" and empty.any():
                raise ProtocolError(
                    "input", f"{name!r} has an empty cell, and the model has learned from complete rows only"
                )
            found.append(torch.from_numpy(values))
        return tuple(found)

    def read(self, path: Path) -> tuple[Raw, Tensor]:
        """See `Inputs`."""
        table = read_table(path, self._schema)
        rows = _read_rows(table, self._schema, path)
        raw = {
            name: table.numbers(name)[rows]
            if isinstance(column, NumericColumn)
            else np.array([cell or "" for cell in table.texts(name)], dtype=object)[rows]
            for name, column in self._schema.columns.items()
        }
        return raw, torch.from_numpy(labels(table, self._schema)[rows])


class TextInputs:
    """One input: the texts of a column ("" = empty), of shape (rows,)."""

    def __init__(self, schema: Schema, text: TextColumn) -> None:
        self._schema, self._text = schema, text
        how = text.model_dump(exclude={"column"})
        self.inputs: tuple[Input, ...] = (Input(text.column, "BYTES", tokens=how),)

    def features(self) -> nn.Module:
        """See `Inputs`."""
        return nn.Identity()

    def tensors(self, raw: Raw) -> tuple[Tensor, ...]:
        """See `Inputs`."""
        stripped = [str(cell).strip() for cell in raw[self._text.column]]
        cells = [None if cell in MISSING else cell for cell in stripped]
        return (torch.from_numpy(tokenised(cells, self._text)),)

    def read(self, path: Path) -> tuple[Raw, Tensor]:
        """See `Inputs`."""
        table = read_table(path, self._schema)
        rows = _read_rows(table, self._schema, path)
        texts = np.array([cell or "" for cell in table.texts(self._text.column)], dtype=object)
        return {self._text.column: texts[rows]}, torch.from_numpy(labels(table, self._schema)[rows])


class ArrayInputs:
    """One input "x" of shape (rows, *schema.shape), as it stands in the file; NaN is an empty place."""

    def __init__(self, schema: ArraySchema, *, flat: bool) -> None:
        self._schema, self._flat = schema, flat and not schema.grades
        self.inputs: tuple[Input, ...] = (Input("x", "FP32", schema.shape),)

    def features(self) -> nn.Module:
        """See `Inputs`."""
        return _Array(self._schema, flat=self._flat)

    def tensors(self, raw: Raw) -> tuple[Tensor, ...]:
        """See `Inputs`."""
        return (_finite_or_empty(raw["x"], "x"),)

    def read(self, path: Path) -> tuple[Raw, Tensor]:
        """See `Inputs`."""
        split = "test"
        _, targets = read_arrays(path, self._schema, split)
        if not len(targets):
            split = "train"
            _, targets = read_arrays(path, self._schema, split)
        if not len(targets):
            raise DataError("has no record", path=path)
        arrays = raw_arrays(path, self._schema)
        chosen = arrays["split"] == split if "split" in arrays else slice(None)
        if not self._schema.classes and not self._schema.grades:
            targets = targets * self._schema.target_scale + self._schema.target_center
        return {"x": arrays["x"][chosen].astype(np.float32)}, torch.from_numpy(targets)


class OwnInputs:
    """One input "features": what the `read` of a task of the user's own makes; preparing it stays with the task."""

    def __init__(self, trained: Trained, example: Path) -> None:
        self._task = trained.task
        self.inputs: tuple[Input, ...] = (
            Input("features", "FP32", tuple(self._records(example).features.shape[1:]), may_be_empty=False),
        )

    def features(self) -> nn.Module:
        """See `Inputs`."""
        return nn.Identity()

    def tensors(self, raw: Raw) -> tuple[Tensor, ...]:
        """See `Inputs`."""
        return (_finite_or_empty(raw["features"], "features"),)

    def read(self, path: Path) -> tuple[Raw, Tensor]:
        """See `Inputs`."""
        records = self._records(path)
        return {"features": records.features.numpy()}, records.targets

    def _records(self, path: Path) -> Any:
        records = self._task.read(path, "test")
        records = records if records.num_rows else self._task.read(path, "train")
        if not records.features.is_floating_point():
            raise DataError("the task's features are no floating-point numbers", path=path)
        return records


class _Table(nn.Module):
    """Columns side by side, float32 of shape (rows, features)."""

    def __init__(self, columns: Sequence[nn.Module]) -> None:
        super().__init__()
        self.columns = nn.ModuleList(columns)

    def forward(self, *columns: Tensor) -> Tensor:
        """One tensor per column."""
        parts = [prepare(values) for prepare, values in zip(self.columns, columns, strict=True)]
        return torch.cat(parts, dim=1).to(torch.float32)


class _Number(nn.Module):
    """A numeric column, in float64 as `tacit.data.preprocessing` computes it; shape (rows, 1) or (rows, 2)."""

    def __init__(self, column: NumericColumn, affine: tuple[float, float]) -> None:
        super().__init__()
        self._center, self._scale = affine
        self._clip, self._missing = column.clip, column.missing
        self._log, self._indicator = column.transform == "log", column.indicator

    def forward(self, x: Tensor) -> Tensor:
        """Of float64 numbers, shape (rows,), NaN where the cell is empty."""
        missing = torch.isnan(x)
        if self._missing is not None:
            x = torch.where(missing, self._missing, x)
        if self._log:
            x = torch.sign(x) * torch.log1p(torch.abs(x))
        scaled = torch.clamp((x - self._center) / self._scale, -self._clip, self._clip)
        features = [torch.where(torch.isnan(scaled), 0.0, scaled)]
        if self._indicator:
            features.append(missing.to(torch.float64))
        return torch.stack(features, dim=1)


class _OneHot(nn.Module):
    """A categorical column of positions, shape (rows,); all zeros for an empty or unseen cell."""

    def __init__(self, column: CategoricalColumn) -> None:
        super().__init__()
        self._num = len(column.categories)

    def forward(self, positions: Tensor) -> Tensor:
        """Shape (rows, categories)."""
        return (positions[:, None] == torch.arange(self._num)).to(torch.float64)


class _Array(nn.Module):
    """`tacit.data.npz.scaled` as a module."""

    center: Tensor
    scale: Tensor

    def __init__(self, schema: ArraySchema, *, flat: bool) -> None:
        super().__init__()
        self._clip, self._indicator = schema.clip, schema.missing == "indicator"
        self._flat = math.prod(schema.input_shape) if flat else 0
        self._items_first = bool(schema.grades)
        along = (-1, *[1] * (len(schema.shape) - 1))
        for name in ("center", "scale"):
            constants = torch.tensor(getattr(schema, name), dtype=torch.float32).reshape(along)
            self.register_buffer(name, constants)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (rows, *shape), NaN where a place is empty."""
        empty = torch.isnan(x)
        z = torch.where(empty, 0.0, torch.clamp((x - self.center) / self.scale, -self._clip, self._clip))
        if self._indicator:
            z = torch.cat([z, empty.to(torch.float32)], dim=1)
        if self._items_first:
            return z.mT
        return z.reshape(-1, self._flat) if self._flat else z


def inputs_of(trained: Trained, example: Path | None = None) -> Inputs:
    """What a trained model takes.

    Args:
        trained: the model.
        example: a data file, from which a task of the user's own shows what its features look like.

    Raises:
        DataError: the task is the user's own and there is no such file, or it cannot be used.
    """
    task = trained.task
    if isinstance(task, TabularClassification):
        return TableInputs(task.schema, task.constants)
    if isinstance(task, TextClassification):
        return TextInputs(task.schema, task.text)
    if isinstance(task, Arrays):
        return ArrayInputs(task.schema, flat=trained.experiment.task.model.name not in AXES)
    if example is None:
        raise DataError(
            "the task is your own: name a data file with --data, so that the shape of its features is known"
        )
    return OwnInputs(trained, example)


def made_up(inputs: Sequence[Input], rows: int, seed: int = 0) -> dict[str, NDArray[Any]]:
    """Raw records that no file has, empty and unseen cells among them; for tracing a model and for comparing two."""
    draws = np.random.default_rng(seed)
    found: dict[str, NDArray[Any]] = {}
    for each in inputs:
        if each.tokens is not None:
            letters = np.array(list("abcdeéß 0 ,"))
            lengths = draws.integers(2 * each.tokens["length"] + 2, size=rows)
            found[each.name] = np.array(["".join(draws.choice(letters, n)) for n in lengths], dtype=object)
            continue
        if each.datatype == "BYTES":
            names = [*each.names, *[""] * each.may_be_empty, *["none of these"] * each.may_be_unseen]
            chosen = [names[i] for i in draws.integers(len(names), size=rows)]
            found[each.name] = np.array(chosen, dtype=object)
            continue
        values = draws.standard_cauchy((rows, *each.shape)) * 10
        if each.may_be_empty:
            values[draws.random(values.shape) < 0.1] = np.nan
        found[each.name] = values.astype(np.float64 if each.datatype == "FP64" else np.float32)
    return found


def _read_rows(table: Table, schema: Schema, path: Path) -> NDArray[np.bool_]:
    rows = selected_rows(table, schema, "test") if schema.split else None
    if rows is None or not rows.any():
        rows = selected_rows(table, schema, "train")
    if not rows.any():
        raise DataError("has no row that can be used", path=path)
    return rows


def _positions(cells: NDArray[Any], name: str, column: CategoricalColumn) -> NDArray[np.int64]:
    stripped = [str(cell).strip() for cell in cells]
    positions = positions_of([None if c in MISSING else c for c in stripped], column.categories)
    if column.unseen == "error" and (positions == UNSEEN).any():
        raise ProtocolError(
            "input", f"{name!r} is none of its {len(column.categories)} categories in some row"
        )
    return positions


def _finite_or_empty(values: NDArray[Any], name: str) -> Tensor:
    with np.errstate(over="ignore"):
        values = values.astype(np.float32)
    if np.isinf(values).any():
        raise ProtocolError("input", f"{name!r} has an infinite number")
    return torch.from_numpy(values)
