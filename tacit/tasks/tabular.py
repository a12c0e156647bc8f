"""Table rows: the built-in tasks that predict their class, or look for those that are out of the ordinary."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import TYPE_CHECKING, Self

from tacit import config, learning
from tacit.data.preprocessing import Constants, transform
from tacit.data.readers import read_table
from tacit.data.schema import Schema
from tacit.data.statistics import sum_statistics
from tacit.errors import ConfigError, DataError
from tacit.tasks.anomaly import Anomalies, with_labels
from tacit.tasks.classification import Classification, check_weights
from tacit.tasks.task import Records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn


class Tabular:
    """A model of `tacit.tasks.models` on the columns of a declared schema.

    Attributes:
        settings: the loss by name, and the weights to begin with.
    """

    settings: learning.Task = learning.Task()

    def __init__(self, schema: Schema, model: learning.Model, constants: Constants | None = None) -> None:
        self.schema = schema
        self._model = model
        self._constants = constants

    @classmethod
    def of(cls, experiment: config.Experiment) -> Self:
        """The task of an experiment; `ConfigError` where it has no schema, or other classes than weights."""
        columns = experiment.data.columns
        if columns is None:
            raise ConfigError("a tabular task needs the columns of its table", key="data.schema")
        task = cls(columns, experiment.task.model)
        task.settings = check_weights(experiment.task, len(columns.classes))
        return task

    def with_constants(self, constants: Constants) -> Self:
        """The same task scaling by these (center, scale), from `tacit.data.statistics.constants_from`.

        Raises:
            ConfigError: they are not the schema's numeric columns.
        """
        numeric = {name for name, column in self.schema.columns.items() if column.kind == "numeric"}
        if set(constants) != numeric:
            raise ConfigError("the constants belong to another schema", key="data.schema.scaling")
        task = copy.copy(self)
        task._constants = dict(constants)
        return task

    @property
    def constants(self) -> Constants | None:
        """Center and scale by column, of a federated scaling; None where the schema declares them."""
        return self._constants

    @property
    def num_features(self) -> int:
        """The model's input size."""
        return len(self.schema.feature_names)

    @property
    def num_classes(self) -> int:
        """Number of logits."""
        return len(self.schema.classes)

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build
        from tacit.tasks.transfer import started

        return started(build(self._model, self.num_features, self.num_classes), self.settings.start)

    def read(self, path: Path, split: str) -> Records:
        """Features (rows, num_features) float32 and class indices (rows,) int64.

        Raises:
            DataError: the file cannot be used, or has no row to train on.
            ConfigError: the schema wants federated scaling and there are no constants yet.
        """
        import torch

        table = read_table(path, self.schema)
        features, classes = transform(table, self.schema, split=split, constants=self._constants)
        if split == "train" and not len(classes):
            raise DataError("no row is left for training", path=path)
        return Records(torch.from_numpy(features), torch.from_numpy(classes))

    def statistics(self, path: Path) -> NDArray[np.float64]:
        """What one site's training rows add to the statistics, without noise; see `sum_statistics`."""
        return sum_statistics(read_table(path, self.schema), self.schema)


class TabularClassification(Classification, Tabular):
    """`[task] kind = "tabular"`."""


class TabularAnomaly(Anomalies, Tabular):
    """`[task] kind = "tabular_anomaly"`: the first class is the ordinary one, all others are anomalies."""

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_to_give_back
        from tacit.tasks.transfer import started

        return started(build_to_give_back(self._model, self.num_features), self.settings.start)

    def read(self, path: Path, split: str) -> Records:
        """Features (rows, num_features) and the same with the label behind, float32; raises as `Tabular.read`."""
        records = super().read(path, split)
        return Records(records.features, with_labels(*records))
