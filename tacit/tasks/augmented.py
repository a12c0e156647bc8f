"""Another view of each record, as `[task.augment]` says.

Guarantees:
    What is drawn for a record touches that record alone.
"""

from __future__ import annotations

from functools import cached_property
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tacit.augmentation import Augment
from tacit.config import Experiment
from tacit.data.array_schema import ArraySchema
from tacit.data.schema import NumericColumn, Schema
from tacit.errors import ConfigError


class Layout(NamedTuple):
    """What the first axis of a record holds: channels, or the features of a row.

    Attributes:
        shape: of one record as the model sees it.
        columns: number of the column that each entry belongs to, from 0; they are masked together.
        measured: whether an entry is a number that was measured, not a category and not what tells of an empty place.
        empty: what an entry is where its column is empty.
    """

    shape: tuple[int, ...]
    columns: tuple[int, ...]
    measured: tuple[bool, ...]
    empty: tuple[float, ...]


def layout_of(experiment: Experiment) -> Layout:
    """Of the records of a built-in task; `ConfigError` where the experiment does not declare them."""
    arrays, columns = experiment.data.arrays, experiment.data.columns
    if arrays is not None and not experiment.task.is_tabular:
        return layout_of_arrays(arrays)
    if columns is not None and experiment.task.is_tabular:
        return layout_of_columns(columns)
    raise ConfigError("views need records that are declared", key="data")


def layout_of_arrays(schema: ArraySchema) -> Layout:
    """Channels, and behind them those that tell of empty places."""
    size, total = schema.shape[0], schema.input_shape[0]
    told = [i >= size for i in range(total)]
    return Layout(
        schema.input_shape,
        tuple(i % size for i in range(total)),
        tuple(not tells for tells in told),
        tuple(map(float, told)),
    )


def layout_of_columns(schema: Schema) -> Layout:
    """The features of a row; see `Schema.feature_names`."""
    columns, measured, empty = list[int](), list[bool](), list[float]()
    for number, column in enumerate(schema.columns.values()):
        numeric = isinstance(column, NumericColumn)
        size = 1 + column.indicator if isinstance(column, NumericColumn) else len(column.categories)
        columns += [number] * size
        measured += [numeric and i == 0 for i in range(size)]
        empty += [float(numeric and i == 1) for i in range(size)]
    return Layout((len(columns),), tuple(columns), tuple(measured), tuple(empty))


def augmented(features: Tensor, settings: Augment, layout: Layout, generator: torch.Generator) -> Tensor:
    """Another view of each record, in the shape of the features; see `Augment` for what is drawn.

    Args:
        features: shape (rows, ...), flat or in the layout's shape.
        settings: what is applied, and how strongly.
        layout: of a record.
        generator: of the features' device; all that is drawn comes from it.
    """
    view = _Views(features.reshape(-1, *layout.shape), layout, generator)
    for name, strength in settings.strengths.items():
        getattr(view, name)(strength)
    return view.x.reshape(features.shape)


class _Views:
    """Records x of shape (rows, first axis, ...); a method for each key of `[task.augment]`, in their order."""

    def __init__(self, x: Tensor, layout: Layout, generator: torch.Generator) -> None:
        self.x, self.layout, self.generator = x, layout, generator
        self.axes = range(2, x.ndim)

    @cached_property
    def measured(self) -> Tensor:
        """Shape (1, first axis, 1, ...), as the next one."""
        return self._first_axis(self.layout.measured)

    @cached_property
    def empty(self) -> Tensor:
        """See `Layout`."""
        return self._first_axis(self.layout.empty)

    def flip(self, chance: float) -> None:
        self.x = torch.where(self._uniform() < chance, self.x.flip(-1), self.x)

    def shift(self, most: float) -> None:
        for axis in self.axes:
            size = self.x.shape[axis]
            by = (self._uniform() * (2 * most + 1)).floor().long() - int(most)
            places = (self._places(axis) - by).clamp(0, size - 1)
            self.x = self.x.gather(axis, places.expand_as(self.x))

    def brightness(self, most: float) -> None:
        self._measure(self.x + most * self._around_zero())

    def contrast(self, most: float) -> None:
        mean = self.x.mean(tuple(self.axes), keepdim=True)
        self._measure(mean + (self.x - mean) * (1 + most * self._around_zero()))

    def scale(self, most: float) -> None:
        self._measure(self.x * (1 + most * self._around_zero()))

    def noise(self, std: float) -> None:
        drawn = torch.empty_like(self.x).normal_(0.0, std, generator=self.generator)
        self._measure(self.x + drawn)

    def mask(self, share: float) -> None:
        if self.axes:
            hidden = torch.ones_like(self.x[:, :1], dtype=torch.bool)
        else:
            of_columns = self._uniform(max(self.layout.columns) + 1) < share
            hidden = of_columns[:, torch.tensor(self.layout.columns, device=self.x.device)]
        for axis in self.axes:
            size = self.x.shape[axis]
            length = max(1, round(size * share ** (1 / len(self.axes))))
            start = (self._uniform() * (size - length + 1)).floor()
            place = self._places(axis)
            hidden = hidden & (place >= start) & (place < start + length)
        self.x = torch.where(hidden, self.empty, self.x)

    def _measure(self, x: Tensor) -> None:
        """Takes the new values where they were measured."""
        self.x = torch.where(self.measured, x, self.x)

    def _uniform(self, size: int = 1) -> Tensor:
        """One number from 0 to 1 for each record, or several: shape (rows, size, 1, ...)."""
        shape = (len(self.x), size, *[1] * len(self.axes))
        return torch.rand(shape, generator=self.generator, device=self.x.device)

    def _around_zero(self) -> Tensor:
        return 2 * self._uniform() - 1

    def _places(self, axis: int) -> Tensor:
        """0, 1, ... along an axis."""
        shape = [-1 if i == axis else 1 for i in range(self.x.ndim)]
        return torch.arange(self.x.shape[axis], device=self.x.device).view(shape)

    def _first_axis(self, values: tuple[Any, ...]) -> Tensor:
        dtype = torch.bool if isinstance(values[0], bool) else self.x.dtype
        return torch.tensor(values, dtype=dtype, device=self.x.device).view(1, -1, *[1] * len(self.axes))
