"""Classification of table rows: the built-in task."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from tacit import config
from tacit.data.preprocessing import Constants, transform
from tacit.data.readers import read_table
from tacit.data.schema import Schema
from tacit.data.statistics import sum_statistics
from tacit.errors import ConfigError, DataError, MissingExtra
from tacit.tasks.task import Records

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor, nn

LOSS_BOUND = 5.0  # nats; a record's loss counts at most this much in the metric


class TabularClassification:
    """A model of `tacit.tasks.models` on the columns of a declared schema.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("accuracy", "loss")

    def __init__(self, schema: Schema, model: config.Model, constants: Constants | None = None) -> None:
        self.schema = schema
        self._model = model
        self._constants = constants

    @classmethod
    def of(cls, experiment: config.Experiment) -> TabularClassification:
        """The task of an experiment; `ConfigError` where it has no schema."""
        if experiment.data.columns is None:
            raise ConfigError("a tabular task needs the columns of its table", key="data.schema")
        return cls(experiment.data.columns, experiment.task.model)

    def with_constants(self, constants: Constants) -> TabularClassification:
        """The same task scaling by these (center, scale), from `tacit.data.statistics.constants_from`.

        Raises:
            ConfigError: they are not the schema's numeric columns.
        """
        numeric = {name for name, column in self.schema.columns.items() if column.kind == "numeric"}
        if set(constants) != numeric:
            raise ConfigError("the constants belong to another schema", key="data.schema.scaling")
        return TabularClassification(self.schema, self._model, dict(constants))

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

        return build(self._model, self.num_features, self.num_classes)

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

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy of each record in nats, shape (rows,)."""
        from torch.nn.functional import cross_entropy

        return cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `accuracy` 1 or 0, and `loss` as cross entropy cut at 5 nats, divided by 5."""
        loss = self.loss(outputs, targets).nan_to_num(nan=LOSS_BOUND).clamp(0.0, LOSS_BOUND) / LOSS_BOUND
        return {"accuracy": (outputs.argmax(-1) == targets).to(loss.dtype), "loss": loss}

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics of a whole set: the means of `metrics`, `balanced_accuracy`, and `auroc` where it exists.

        `balanced_accuracy` is the mean recall of the classes that the set has. `auroc` is of class 1 where
        there are two classes, else the mean over each class against the rest; left out where a set has a
        single class. Nothing is returned for an empty set.
        """
        if not len(targets):
            return {}
        outputs = outputs.detach()
        means = {name: float(values.mean()) for name, values in self.metrics(outputs, targets).items()}
        return {**means, **_ranking(outputs, targets)}


def _ranking(outputs: Tensor, targets: Tensor) -> dict[str, float]:
    try:
        from sklearn.metrics import recall_score, roc_auc_score
    except ImportError:
        raise MissingExtra("AUROC and balanced accuracy", "simulation") from None
    # A diverged model must give a bad figure, not an exception.
    logits = outputs.double().nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6).cpu()
    probabilities, truth = logits.softmax(-1).numpy(), targets.cpu().numpy()
    present = sorted(set(truth.tolist()))
    recall = recall_score(
        truth, outputs.argmax(-1).cpu().numpy(), labels=present, average="macro", zero_division=0.0
    )
    result = {"balanced_accuracy": float(recall)}
    if len(present) > 1:
        scored = [1] if probabilities.shape[1] == 2 else present
        areas = [float(roc_auc_score(truth == c, probabilities[:, c])) for c in scored]
        result["auroc"] = math.fsum(areas) / len(areas)
    return result
