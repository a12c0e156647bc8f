"""What every built-in task that predicts one of several classes has in common: loss, metrics, summary.

The focal loss (Lin et al. 2017, equation 4, with gamma = 2) is cross entropy times (1 - p)^2, where p is what the model
gives the record's own class: records that it is sure of count less.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit import learning
from tacit.errors import ConfigError, MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

LOSS_BOUND = 5.0  # nats; a record's loss counts at most this much in the metric


class Classification:
    """Cross entropy over logits of shape (rows, classes), with class positions of shape (rows,) as targets.

    Attributes:
        settings: the loss by name, public class weights and label smoothing.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("accuracy", "loss")
    summary_names: tuple[str, ...] = (*metric_names, "balanced_accuracy", "auroc")
    settings: learning.Task = learning.Task()

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The loss by name of each record, times the weight of its class, in nats, shape (rows,)."""
        from torch.nn.functional import cross_entropy

        s = self.settings
        weights = outputs.new_tensor(s.class_weights) if s.class_weights else None
        smoothing = s.label_smoothing
        loss = cross_entropy(outputs, targets, weights, reduction="none", label_smoothing=smoothing)
        if s.loss == "focal":
            loss = loss * (1 - _probabilities(outputs, targets)).square()
        return loss

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `accuracy` 1 or 0, and `loss` as cross entropy cut at 5 nats, divided by 5.

        Weights and smoothing do not count here, so that runs with different ones can be compared.
        """
        from torch.nn.functional import cross_entropy

        loss = cross_entropy(outputs, targets, reduction="none").nan_to_num(nan=LOSS_BOUND)
        loss = loss.clamp(0.0, LOSS_BOUND) / LOSS_BOUND
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


def check_weights(settings: learning.Task, num_classes: int) -> learning.Task:
    """The settings; `ConfigError` unless each class has a weight, or none has."""
    if settings.class_weights and len(settings.class_weights) != num_classes:
        raise ConfigError(
            f"has {len(settings.class_weights)} numbers, and there are {num_classes} classes",
            key="task.class_weights",
        )
    return settings


def _probabilities(outputs: Tensor, targets: Tensor) -> Tensor:
    """What the model gives each record's own class, shape (rows,)."""
    return outputs.softmax(-1).gather(-1, targets.unsqueeze(-1)).squeeze(-1)


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
