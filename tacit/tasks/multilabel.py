"""What every built-in task that predicts several classes of one record has in common: loss, metrics, summary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit.errors import MissingExtra
from tacit.tasks.classification import LOSS_BOUND

if TYPE_CHECKING:
    from torch import Tensor


class MultiLabel:
    """A logit for each class, shape (rows, classes), and targets of that shape, 1 where a record has the class.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("accuracy", "loss")
    summary_names: tuple[str, ...] = (*metric_names, "auroc")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Binary cross entropy in nats, the mean over the classes of each record, shape (rows,)."""
        from torch.nn.functional import binary_cross_entropy_with_logits

        return binary_cross_entropy_with_logits(outputs, targets, reduction="none").mean(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `accuracy` as the share of classes that are right, and `loss` cut at 5 nats, divided by 5."""
        loss = self.loss(outputs, targets).nan_to_num(nan=LOSS_BOUND).clamp(0.0, LOSS_BOUND) / LOSS_BOUND
        return {"accuracy": ((outputs > 0) == (targets > 0)).to(loss.dtype).mean(-1), "loss": loss}

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics of a whole set: the means of `metrics`, and `auroc`, the mean over classes.

        A class that all records have, or none, is left out of `auroc`; nothing is returned for an empty set.
        """
        if not len(targets):
            return {}
        try:
            from sklearn.metrics import roc_auc_score
        except ImportError:
            raise MissingExtra("AUROC", "simulation") from None
        outputs = outputs.detach()
        means = {name: float(values.mean()) for name, values in self.metrics(outputs, targets).items()}
        # A diverged model must give a bad figure, not an exception.
        logits = outputs.double().nan_to_num(nan=0.0, posinf=1e6, neginf=-1e6).cpu().numpy()
        truth = targets.cpu().numpy() > 0
        areas = [
            float(roc_auc_score(has, scores))
            for has, scores in zip(truth.T, logits.T, strict=True)
            if 0 < has.sum() < len(has)
        ]
        return {**means, "auroc": math.fsum(areas) / len(areas)} if areas else means
