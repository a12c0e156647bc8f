"""What is trained: the protocol that a user implements in one file of their own."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, runtime_checkable

from tacit.config import Experiment
from tacit.errors import ConfigError

if TYPE_CHECKING:
    import torch
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

    @property
    def views(self) -> int:
        """How many times the model sees each record in a step, at most; see `client.views`."""
        return 1

    @property
    def inputs(self) -> Tensor:
        """What the model sees: shape (rows * views, ...)."""
        return self.features


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
    """A task that also has metrics of a whole set (AUROC, say): at the site itself and in simulation only.

    Where it has an attribute `summary_names`, all names that `summary` may give, a search or a sweep that asks for
    another one is refused before it runs.
    """

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics that need all outputs of a set at once."""
        ...


@runtime_checkable
class Follows(Protocol):
    """A task of Tacit's own with a part of the model that records do not train: it follows the rest.

    After a step of training it makes a step of its own, from weights and random numbers. Neither method is given a
    record, and the model that they are given is one that no record has passed through (`client.following`).
    """

    def follower(self, model: nn.Module) -> nn.Module:
        """The part. Its parameters ask for no gradient when the model is made."""
        ...

    def follower_loss(self, model: nn.Module, draws: torch.Generator) -> Tensor:
        """What its step makes smaller: one number, of the model's weights and of draws from `draws`."""
        ...


@runtime_checkable
class Augments(Protocol):
    """A task of one's own that has views of a record for training: a step sees them in the record's place."""

    def augment(self, features: Tensor, generator: torch.Generator) -> Tensor:
        """Views of one record, drawn from the generator alone.

        Args:
            features: of the record, as often as there are views: shape (views, ...). That of the result, too.
            generator: of the features' device.
        """
        ...


def load_task(experiment: Experiment) -> Task:
    """The task that `[task] kind` names.

    Raises:
        ConfigError: the module or object does not exist, or lacks a method of `Task`.
    """
    if experiment.task.is_own:
        return _own_task(experiment)
    if experiment.task.is_tabular:
        task: Task = _built_in(experiment.task.kind).of(experiment)
        return task
    from tacit.tasks.arrays import array_task

    return array_task(experiment)


def names_of_metrics(experiment: Experiment, *, summed: bool = False) -> tuple[str, ...]:
    """Names of the metrics that a simulation's models can have; empty where a task of one's own does not tell.

    Needs neither data nor a schema. Raises as `load_task` does of a task of one's own.

    Args:
        experiment: with the task.
        summed: only those of which sums travel.
    """
    task = _own_task(experiment) if experiment.task.is_own else _built_in(experiment.task.kind)
    names: tuple[str, ...] = task.metric_names
    return names if summed or not hasattr(task, "summary") else getattr(task, "summary_names", ())


def _built_in(kind: str) -> Any:
    """The class of a kind of task that is Tacit's own."""
    if kind == "text_classification":
        from tacit.tasks.text import TextClassification

        return TextClassification
    if kind == "tabular_synthesis":
        from tacit.tasks.synthesis import TabularSynthesis

        return TabularSynthesis
    if kind in ("tabular", "tabular_anomaly"):
        from tacit.tasks.tabular import TabularAnomaly, TabularClassification

        return TabularClassification if kind == "tabular" else TabularAnomaly
    from tacit.tasks.arrays import KINDS

    return KINDS[kind]


def _own_task(experiment: Experiment) -> Task:
    kind = experiment.task.kind
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
