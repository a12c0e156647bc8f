"""What is trained: the protocol that a user implements in one file of their own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple, Protocol, runtime_checkable

from tacit.config import Experiment
from tacit.errors import ConfigError

if TYPE_CHECKING:
    from torch import Tensor, nn


class Records(NamedTuple):
    """The rows of one split of one site. Its repr shows none of them.

    Attributes:
        features: shape (rows, ...), the model's input.
        targets: shape (rows,) or (rows, ...), what the loss compares with.
    """

    features: Tensor
    targets: Tensor

    def __repr__(self) -> str:
        return f"<Records: {self.num_rows} rows>"

    @property
    def num_rows(self) -> int:
        """Number of records."""
        return len(self.targets)


@runtime_checkable
class Task(Protocol):
    """Model, data, loss and metrics of a federated training.

    One record is one row of `Records`; record-level privacy protects exactly that. `read` must therefore treat
    each record by itself: a statistic over the file (its mean, its vocabulary) would leave the guarantee.
    """

    metric_names: tuple[str, ...]

    def model(self) -> nn.Module:
        """A fresh model. The global weights are loaded into it, so its initial values matter at the server only."""
        ...

    def read(self, path: Path, split: str) -> Records:
        """The records of `split` ("train" or "test") in one site's file."""
        ...

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Loss of each record, shape (rows,). Per record, so that gradients can be clipped per record."""
        ...

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """A value in [0, 1] for each record and name of `metric_names`, shape (rows,). Only their sums travel."""
        ...


@runtime_checkable
class Summarises(Protocol):
    """A task that also has metrics of a whole set (AUROC, say): at the site itself and in simulation only."""

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics that need all outputs of a set at once."""
        ...


def load_task(experiment: Experiment) -> Task:
    """The task that `[task] kind` names.

    Raises:
        ConfigError: the module or object does not exist, or lacks a method of `Task`.
    """
    kind = experiment.task.kind
    if kind == "tabular":
        from tacit.tasks.tabular import TabularClassification

        return TabularClassification.of(experiment)
    if kind == "tabular_anomaly":
        from tacit.tasks.tabular import TabularAnomaly

        return TabularAnomaly.of(experiment)
    if kind == "text_classification":
        from tacit.tasks.text import TextClassification

        return TextClassification.of(experiment)
    if not experiment.task.is_own:
        from tacit.tasks.arrays import array_task

        return array_task(experiment)
    module_name, _, name = kind.partition(":")
    try:
        factory = getattr(importlib.import_module(module_name), name)
    except (ImportError, AttributeError) as error:
        raise ConfigError(f"cannot import {kind!r}: {error}", key="task.kind") from None
    try:
        task = factory(**experiment.task.options)
    except TypeError as error:
        raise ConfigError(f"{kind!r} does not take these options: {error}", key="task.options") from None
    missing = [m for m in ("model", "read", "loss", "metrics", "metric_names") if not hasattr(task, m)]
    if missing:
        raise ConfigError(f"{kind!r} lacks {', '.join(missing)} of tacit.tasks.Task", key="task.kind")
    return task  # type: ignore[no-any-return]
