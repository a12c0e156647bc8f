"""Classes, or numbers, predicted from arrays: the built-in tasks for images, series and vectors."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from tacit import config
from tacit.data.array_schema import ArraySchema
from tacit.errors import ConfigError, DataError
from tacit.tasks.classification import Classification
from tacit.tasks.regression import Regression
from tacit.tasks.task import Records, Task

if TYPE_CHECKING:
    from torch import nn


class Arrays:
    """A model of `tacit.tasks.models` on arrays of a declared shape.

    Args:
        schema: shape, scaling and targets.
        model: which model, and its size.
    """

    def __init__(self, schema: ArraySchema, model: config.Model) -> None:
        self.schema = schema
        self._model = model

    def model(self) -> nn.Module:
        """A fresh model, weights drawn from torch's global generator."""
        from tacit.tasks.models import build_for

        outputs = len(self.schema.classes) or self.schema.outputs
        return build_for(self._model, self.schema.input_shape, outputs)

    def read(self, path: Path, split: str) -> Records:
        """Scaled records, flat where the model wants them so, and their targets.

        Raises:
            DataError: the file cannot be used, or has no record to train on.
        """
        import torch

        from tacit.data.npz import read_arrays
        from tacit.tasks.models import FLAT

        records, targets = read_arrays(path, self.schema, split)
        if split == "train" and not len(targets):
            raise DataError("no record is left for training", path=path, key="split")
        if self._model.name in FLAT:
            records = records.reshape(len(records), self.schema.num_inputs)
        return Records(torch.from_numpy(records), torch.from_numpy(targets))


class ArrayClassification(Classification, Arrays):
    """`[task] kind = "array_classification"`."""


class ArrayRegression(Regression, Arrays):
    """`[task] kind = "array_regression"`: one number or several, a forecast's steps among them."""

    def __init__(self, schema: ArraySchema, model: config.Model) -> None:
        super().__init__(schema, model)
        self.target_scale = schema.target_scale


def array_task(experiment: config.Experiment) -> Task:
    """The task of an experiment over arrays.

    Raises:
        ConfigError: it declares no arrays, or classes where numbers are predicted, or the reverse.
    """
    schema, kind = experiment.data.arrays, experiment.task.kind
    if schema is None:
        raise ConfigError(f'kind = "{kind}" needs the shape of its records', key="data.arrays")
    if (kind == "array_classification") != bool(schema.classes):
        wanted = "needs the names of its classes" if not schema.classes else "predicts numbers, not classes"
        raise ConfigError(f'kind = "{kind}" {wanted}', key="data.arrays.classes")
    if schema.classes:
        return ArrayClassification(schema, experiment.task.model)
    return ArrayRegression(schema, experiment.task.model)
