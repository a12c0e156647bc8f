"""What every built-in task that predicts numbers has in common: loss, metrics, summary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit import learning

if TYPE_CHECKING:
    from torch import Tensor

ERROR_BOUND = 4.0  # squared, in declared scales; a record's error counts at most this much in the metric
ABSOLUTE_BOUND = 2.0  # likewise, of the absolute error


class Regression:
    """Error of outputs and targets of shape (rows, outputs), both in declared scales.

    Attributes:
        settings: the loss by name.
        target_scale: the unit of a target over its declared scale; `summary` speaks in the target's own unit.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
    """

    metric_names: tuple[str, ...] = ("error", "absolute_error")
    summary_names: tuple[str, ...] = (*metric_names, "rmse", "mae", "r2")
    target_scale: float = 1.0
    settings: learning.Task = learning.Task(kind="array_regression")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the numbers of each record, shape (rows,), in declared scales.

        Of the square by default, of the absolute value, or of Huber's loss, which is half the square up to one scale
        and grows like the absolute value from there.
        """
        from torch.nn.functional import huber_loss, l1_loss

        if self.settings.loss == "absolute":
            return l1_loss(outputs, targets, reduction="none").mean(-1)
        if self.settings.loss == "huber":
            return huber_loss(outputs, targets, reduction="none").mean(-1)
        return (outputs - targets).square().mean(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record, as the mean over its numbers, in declared scales.

        `error` is the squared error cut at 4 and divided by 4, `absolute_error` the absolute one cut at 2 and divided
        by 2. Multiplied by these they are a mean squared and a mean absolute error of the federation.
        """
        wrong = outputs - targets
        squared = wrong.square().mean(-1).nan_to_num(nan=ERROR_BOUND).clamp(0.0, ERROR_BOUND)
        absolute = wrong.abs().mean(-1).nan_to_num(nan=ABSOLUTE_BOUND).clamp(0.0, ABSOLUTE_BOUND)
        return {"error": squared / ERROR_BOUND, "absolute_error": absolute / ABSOLUTE_BOUND}

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """Metrics of a whole set: `r2`, the share of variance explained, `rmse` and `mae` in the target's unit.

        `r2` is left out where all targets are equal. Nothing is returned for an empty set.
        """
        if not len(targets):
            return {}
        # A diverged model must give a bad figure, not an exception.
        wrong = (outputs.detach() - targets).double().nan_to_num(nan=1e6).clamp(-1e6, 1e6)
        spread = (targets.double() - targets.double().mean(0)).square().mean()
        found = {
            "rmse": float(wrong.square().mean().sqrt()) * self.target_scale,
            "mae": float(wrong.abs().mean()) * self.target_scale,
            **{name: float(values.mean()) for name, values in self.metrics(outputs, targets).items()},
        }
        return {"r2": float(1 - wrong.square().mean() / spread), **found} if spread > 0 else found
