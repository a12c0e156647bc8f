"""Outcomes as counts: each record falls into one cell of each table, and only sums of cells over records travel.

Two classes: one table of group x truth x bin of the second class's probability. More: one of group x truth x
prediction, and one of right or wrong x bin of the first choice's probability. Confusion matrix, curves, calibration
and rates by group all follow from such sums (`tacit.tasks.measures`), with nobody's single outcome in one place.

Guarantees:
    One record more moves all counts together by at most the square root of the number of tables.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.learning import CLASSES

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tacit.tasks.task import Records, Task

PREFIX: Final = "cells/"
OTHERS: Final = "others"  # the group of an empty or unseen cell
MOST_CELLS: Final = 4096
Counts = NDArray[np.float64]


@dataclass(frozen=True)
class Cells:
    """The tables of one experiment: public, the same at every site.

    Attributes:
        classes: names, in order.
        bins: of a probability, see `edges`; an even number, so that one half is an edge.
        groups: names, in order; one group without a name where nobody asked for groups.
        group_features: where in a record's features the groups' one-hot block stands; empty without groups.
    """

    classes: tuple[str, ...]
    bins: int
    groups: tuple[str, ...] = ("",)
    group_features: tuple[int, ...] = ()

    @property
    def shapes(self) -> tuple[tuple[int, ...], ...]:
        """Of each table."""
        k, g = len(self.classes), len(self.groups)
        return ((g, 2, self.bins),) if k == 2 else ((g, k, k), (2, self.bins))

    @cached_property
    def edges(self) -> Counts:
        """Of the bins, shape (bins + 1,): equally far apart in arcsin(sqrt(p)), where shares of all sizes spread alike.

        So the bins are narrow at 0 and 1, where the probabilities of a rare class are (Anscombe 1948).
        """
        edges: Counts = np.sin(np.linspace(0, np.pi / 2, self.bins + 1)) ** 2
        edges[self.bins // 2] = 0.5
        return edges

    @property
    def middles(self) -> Counts:
        """Of the bins, shape (bins,)."""
        middles: Counts = (self.edges[1:] + self.edges[:-1]) / 2
        return middles

    @property
    def size(self) -> int:
        """How many cells there are in all."""
        return sum(math.prod(shape) for shape in self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """What the counts are called among the metrics that travel."""
        return tuple(f"{PREFIX}{i}" for i in range(self.size))

    @property
    def squared_norm(self) -> int:
        """A record is in one cell of each table."""
        return len(self.shapes)

    def sums(self, model: nn.Module, outputs: Tensor, records: Records) -> dict[str, float]:
        """See `Summed`."""
        return self.count(outputs, records)

    def count(self, outputs: Tensor, records: Records) -> dict[str, float]:
        """How many records are in each cell.

        Args:
            outputs: logits, shape (rows, classes); whatever they are, each record is counted.
            records: theirs.
        """
        import torch

        probabilities = outputs.detach().double().nan_to_num(0.0, 1e6, -1e6).softmax(-1)
        truth, group = records.targets, self._group(records.features)
        if len(self.classes) == 2:
            indices = [(group * 2 + truth) * self.bins + self._bin(probabilities[:, 1])]
        else:
            best, prediction = probabilities.max(-1)
            right = (prediction == truth).long()
            k = len(self.classes)
            indices = [(group * k + truth) * k + prediction, right * self.bins + self._bin(best)]
        tables = [
            torch.bincount(index, minlength=math.prod(shape))
            for index, shape in zip(indices, self.shapes, strict=True)
        ]
        return dict(zip(self.names, torch.cat(tables).double().tolist(), strict=True))

    def tables(self, counts: dict[str, float]) -> tuple[Counts, ...] | None:
        """Sums of counts as tables; None where they are not all there."""
        if not all(name in counts for name in self.names):
            return None
        flat = np.array([counts[name] for name in self.names], dtype=np.float64)
        ends = np.cumsum([math.prod(shape) for shape in self.shapes])[:-1]
        return tuple(
            part.reshape(shape) for part, shape in zip(np.split(flat, ends), self.shapes, strict=True)
        )

    def _bin(self, probabilities: Tensor) -> Tensor:
        import torch

        return torch.bucketize(probabilities.contiguous(), torch.from_numpy(self.edges[1:-1]), right=True)

    def _group(self, features: Tensor) -> Tensor:
        import torch

        if not self.group_features:
            return torch.zeros(len(features), dtype=torch.long)
        block = features[:, list(self.group_features)]
        return torch.where(block.any(-1), block.argmax(-1), len(self.groups) - 1)


def cells_of(experiment: Experiment, task: Task, *, always: bool = False) -> Cells | None:
    """The tables of an experiment; None where it asks for none, or predicts no classes.

    Args:
        experiment: whose `[evaluation]` it is.
        task: its task.
        always: without being asked too; for whoever has all outcomes in one place anyway.

    Raises:
        ConfigError: curves or groups that this task cannot have, or too many cells.
    """
    evaluation = experiment.evaluation
    if not (evaluation.curves or always):
        return None
    if experiment.task.kind not in CLASSES:
        if evaluation.curves:
            raise ConfigError("are for the built-in tasks that predict classes", key="evaluation.curves")
        return None
    groups, places = _groups(experiment, evaluation.groups) if evaluation.groups else (("",), ())
    schema: Any = getattr(task, "schema")  # noqa: B009 - which every task of these kinds has
    cells = Cells(tuple(schema.classes), evaluation.bins, groups, places)
    if cells.size > MOST_CELLS:
        raise ConfigError(
            f"{cells.size} counts would travel, {MOST_CELLS} is the most: fewer bins, classes or groups",
            key="evaluation",
        )
    return cells


def _groups(experiment: Experiment, column: str) -> tuple[tuple[str, ...], tuple[int, ...]]:
    schema = experiment.data.columns
    declared = schema.columns.get(column) if schema is not None else None
    if (
        schema is None
        or declared is None
        or declared.kind != "categorical"
        or experiment.task.kind != "tabular"
    ):
        raise ConfigError(f"{column!r} is no categorical column of data.schema", key="evaluation.groups")
    features: Sequence[str] = schema.feature_names
    first = features.index(f"{column}={declared.categories[0]}")
    return (*declared.categories, OTHERS), tuple(range(first, first + len(declared.categories)))
