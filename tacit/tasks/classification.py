"""What every built-in task that predicts one of several classes has in common: loss, metrics, summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit.errors import MissingExtra

if TYPE_CHECKING:
    from torch import Tensor

LOSS_BOUND = 5.0  # nats; a record's loss counts at most this much in the metric


class Classification:
    """Cross entropy over logits of shape (rows, classes), with class positions of shape (rows,) as targets.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("accuracy", "loss")

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
