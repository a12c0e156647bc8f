"""What every built-in task that looks for anomalies has in common: loss, metrics, summary.

A model learns to give records back. What it gives back worse than others is out of the ordinary: the error of a record
is its score. Labels are not learned from; where there are any they say afterwards how good the scores were.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit.errors import MissingExtra
from tacit.tasks.regression import ERROR_BOUND

if TYPE_CHECKING:
    from torch import Tensor


class Anomalies:
    """Records given back, of shape (rows, inputs) or, with mean and log-variance of a code, (rows, inputs + 2 code).

    Targets have the shape (rows, inputs + 1): the record itself, and 1 where it is labelled as out of the ordinary.

    Guarantees:
        A label reaches `summary` alone: neither loss nor metrics nor their gradients change with it.
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("error",)
    summary_names: tuple[str, ...] = (*metric_names, "auroc")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The error of each record, shape (rows,), and of a variational autoencoder the divergence of its code.

        That is -2 / inputs times the evidence bound of Kingma and Welling 2014, equation 10, for a Gaussian of
        variance 1 around the record that is given back, up to a constant.
        """
        inputs = targets.shape[-1] - 1
        loss = errors(outputs, targets)
        if outputs.shape[-1] > inputs:
            mean, log_variance = outputs[..., inputs:].chunk(2, dim=-1)
            loss = loss + (mean.square() + log_variance.exp() - 1 - log_variance).sum(-1) / inputs
        return loss

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `error` as squared error cut at 4 declared scales squared, divided by 4."""
        error = errors(outputs, targets).nan_to_num(nan=ERROR_BOUND)
        return {"error": error.clamp(0.0, ERROR_BOUND) / ERROR_BOUND}

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics of a whole set: the mean `error`, and `auroc` of the errors against the labels.

        `auroc` is left out where all labels are equal. Nothing is returned for an empty set.
        """
        if not len(targets):
            return {}
        try:
            from sklearn.metrics import roc_auc_score
        except ImportError:
            raise MissingExtra("AUROC", "simulation") from None
        found = {"error": float(self.metrics(outputs.detach(), targets)["error"].mean())}
        # A diverged model must give a bad figure, not an exception.
        scores = errors(outputs.detach(), targets).double().nan_to_num(nan=0.0, posinf=1e30)
        labels = targets[:, -1].bool()
        if labels.any() and not labels.all():
            found["auroc"] = float(roc_auc_score(labels.cpu().numpy(), scores.cpu().numpy()))
        return found


def errors(outputs: Tensor, targets: Tensor) -> Tensor:
    """Mean squared error over the numbers of each record, shape (rows,): its score."""
    inputs = targets.shape[-1] - 1
    return (outputs[..., :inputs] - targets[..., :inputs]).square().mean(-1)


def with_labels(features: Tensor, labels: Tensor) -> Tensor:
    """The targets of flat records, shape (rows, inputs + 1); every class but the first is out of the ordinary."""
    import torch

    return torch.cat([features, (labels > 0).to(features).unsqueeze(1)], dim=1)
