"""The built-in tasks for images, series and vectors: classes or numbers that are predicted, and anomalies."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Final

from tacit import config, learning
from tacit.data.array_schema import ArraySchema
from tacit.errors import ConfigError, DataError
from tacit.tasks.anomaly import Anomalies, with_labels
from tacit.tasks.classification import Classification, check_weights
from tacit.tasks.multilabel import MultiLabel
from tacit.tasks.regression import Regression
from tacit.tasks.task import Records, Task

if TYPE_CHECKING:
    from torch import nn


class Arrays:
    """A model of `tacit.tasks.models` on arrays of a declared shape.

    Args:
        schema: shape, scaling and targets.
        model: which model, and its size.

    Attributes:
        settings: the loss by name, and the weights to begin with.
    """

    settings: learning.Task = learning.Task()

    def __init__(self, schema: ArraySchema, model: learning.Model) -> None:
        self.schema = schema
        self._model = model

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_for
        from tacit.tasks.transfer import started

        outputs = len(self.schema.classes) or self.schema.outputs
        model = build_for(self._model, self.schema.input_shape, outputs)
        return started(model, self.settings.start)

    def read(self, path: Path, split: str) -> Records:
        """Scaled records, flat where the model wants them so, and their targets.

        Raises:
            DataError: the file cannot be used, or has no record to train on.
        """
        import torch

        from tacit.data.arrays import read_arrays
        from tacit.tasks.models import AXES

        records, targets = read_arrays(path, self.schema, split)
        if split == "train" and not len(targets):
            raise DataError("no record is left for training", path=path, key="split")
        if self._model.name not in AXES:
            records = records.reshape(len(records), self.schema.num_inputs)
        return Records(torch.from_numpy(records), torch.from_numpy(targets))


class ArrayClassification(Classification, Arrays):
    """`[task] kind = "array_classification"`."""


class ArrayMultiLabel(MultiLabel, Arrays):
    """`[task] kind = "array_multilabel"`: a record has several of the classes, one or none."""


class ArrayRegression(Regression, Arrays):
    """`[task] kind = "array_regression"`: one number or several, a forecast's steps among them."""

    def __init__(self, schema: ArraySchema, model: learning.Model) -> None:
        super().__init__(schema, model)
        self.target_scale = schema.target_scale


class ArrayAnomaly(Anomalies, Arrays):
    """`[task] kind = "array_anomaly"`: the first class is the ordinary one, all others are anomalies."""

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_to_give_back
        from tacit.tasks.transfer import started

        return started(build_to_give_back(self._model, self.schema.num_inputs), self.settings.start)

    def read(self, path: Path, split: str) -> Records:
        """Scaled records, flat, and the same with the label behind; raises as `Arrays.read`."""
        records = super().read(path, split)
        return Records(records.features, with_labels(*records))


KINDS: Final[Mapping[str, type[ArrayClassification | ArrayMultiLabel | ArrayRegression | ArrayAnomaly]]] = {
    "array_classification": ArrayClassification,
    "array_multilabel": ArrayMultiLabel,
    "array_regression": ArrayRegression,
    "array_anomaly": ArrayAnomaly,
}


def array_task(experiment: config.Experiment) -> Task:
    """The task of an experiment over arrays.

    Raises:
        ConfigError: it declares no arrays, or targets of another kind.
    """
    schema, kind = experiment.data.arrays, experiment.task.kind
    if schema is None:
        raise ConfigError(f'kind = "{kind}" needs the shape of its records', key="data.arrays")
    if (kind not in learning.NUMBERS) != bool(schema.classes):
        wanted = "needs the names of its classes" if not schema.classes else "predicts numbers, not classes"
        raise ConfigError(f'kind = "{kind}" {wanted}', key="data.arrays.classes")
    if (kind in learning.LABELS) != schema.several:
        wanted = "needs several = true" if not schema.several else "predicts one class for each record"
        raise ConfigError(f'kind = "{kind}" {wanted}', key="data.arrays.several")
    task = KINDS[kind](schema, experiment.task.model)
    task.settings = check_weights(experiment.task, len(schema.classes))
    return task
