"""Which columns a model goes by: attributions of single predictions, computed where the records are, and added up.

Of each held-out record: how much each column contributed to the class that was predicted (or to the numbers), without
its sign, as shares that add up to 1. The sum over records says how much the model goes by each column; a single
record's shares never leave the site.

saliency               gradient (Simonyan et al. 2014)
integrated_gradients   from the schema's centers to the record (Sundararajan et al. 2017)
occlusion              one column at a time put to its center
shap                   Shapley values by sampling orders of columns (Castro et al. 2009; Strumbelj and Kononenko 2014)
lime                   a linear model around each record that stands in for it (Ribeiro et al. 2016)

Captum computes them, all but the last (`tacit.tasks.surrogate`).

Guarantees:
    One record's shares of importance have a norm of at most 1, whatever the model says of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import numpy as np

from tacit.config import Experiment
from tacit.data.schema import NumericColumn
from tacit.errors import ConfigError, MissingExtra
from tacit.learning import CLASSES, NUMBERS, TEXT
from tacit.tasks.measures import drowned
from tacit.tasks.surrogate import coefficients

if TYPE_CHECKING:
    from torch import Tensor, nn

    from tacit.tasks.task import Records, Task

PREFIX: Final = "importance/"
STEPS: Final = 16  # of integrated gradients
ORDERS: Final = 10  # of Shapley sampling
MOST_COLUMNS: Final = 1024
AT_A_TIME: Final = 1024  # records


@dataclass(frozen=True)
class Importance:
    """The shares of one experiment's columns.

    Attributes:
        method: one of those above.
        columns: names; of arrays, channels by number.
        blocks: which column each place along the first axis of a record belongs to.
        classes: whether classes are predicted.
    """

    method: str
    columns: tuple[str, ...]
    blocks: tuple[int, ...]
    classes: bool

    @property
    def names(self) -> tuple[str, ...]:
        """What the sums are called among the metrics that travel."""
        return tuple(f"{PREFIX}{i}" for i in range(len(self.columns)))

    @property
    def squared_norm(self) -> int:
        """Shares that add up to 1 have a norm of at most 1."""
        return 1

    def sums(self, model: nn.Module, outputs: Tensor, records: Records) -> dict[str, float]:
        """Sums of shares over records.

        Raises:
            MissingExtra: Captum is not installed.
        """
        total = np.zeros(len(self.columns))
        for start in range(0, records.num_rows, AT_A_TIME):
            total += self.shares(model, records.features[start : start + AT_A_TIME]).sum(0).numpy()
        return dict(zip(self.names, total.tolist(), strict=True))

    def shares(self, model: nn.Module, features: Tensor) -> Tensor:
        """Of each record, shape (rows, columns), float64: none below 0, adding up to 1, or all 0 where none matters."""
        import torch

        device = next(model.parameters()).device
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)  # the orders of Shapley sampling; no noise
            found = self._attributions(model, features.to(device))
        sizes = found.detach().cpu().double().abs().nan_to_num(0.0, 0.0, 0.0)
        sizes = sizes.reshape(*sizes.shape[:2], -1)
        blocks = torch.tensor(self.blocks)
        # A method that changes a whole column at a time says the same of each of its places.
        how = "amax" if self._masked else "sum"
        per_place = sizes.amax(-1) if self._masked else sizes.sum(-1)
        per_column = torch.zeros(len(sizes), len(self.columns), dtype=torch.float64)
        per_column.scatter_reduce_(1, blocks.expand(len(sizes), -1), per_place, how)
        total = per_column.sum(1, keepdim=True)
        return torch.where((total > 0) & total.isfinite(), per_column / total, 0.0)

    @property
    def _masked(self) -> bool:
        return self.method in ("occlusion", "shap", "lime")

    def _attributions(self, model: nn.Module, features: Tensor) -> Tensor:
        """Of the logit of the class that is predicted; of numbers, of their sum."""
        import torch

        with torch.no_grad():
            target = model(features).argmax(-1) if self.classes else None

        def predicted(inputs: Tensor) -> Tensor:
            outputs: Tensor = model(inputs)
            if target is None:
                return outputs.sum(-1)
            repeated = target.repeat(
                len(outputs) // len(target)
            )  # integrated gradients ask for all steps at once
            return outputs.gather(1, repeated[:, None])[:, 0]

        if self.method == "lime":
            return coefficients(predicted, features, self.blocks, len(self.columns))[:, list(self.blocks)]
        try:
            from captum import attr
        except ImportError:
            raise MissingExtra("the importance of columns", "explain") from None
        if not self._masked:
            features = features.clone().requires_grad_()
            steps: dict[str, int] = {} if self.method == "saliency" else {"n_steps": STEPS}
            how = attr.Saliency if self.method == "saliency" else attr.IntegratedGradients
            gradients: Tensor = how(predicted).attribute(features, **steps)
            return gradients
        along = (1, -1, *[1] * (features.ndim - 2))
        mask = torch.tensor(self.blocks, device=features.device).reshape(along).expand(1, *features.shape[1:])
        orders: dict[str, int] = {} if self.method == "occlusion" else {"n_samples": ORDERS}
        how = attr.FeatureAblation if self.method == "occlusion" else attr.ShapleyValueSampling
        with torch.no_grad():
            ablated: Tensor = how(predicted).attribute(features, feature_mask=mask, **orders)
            return ablated.detach()


def importance_of(experiment: Experiment, task: Task) -> Importance | None:
    """Whose importance an experiment asks for; None where it does not.

    Raises:
        ConfigError: the task predicts neither a class nor numbers, is the user's own, reads text, or has too many
            columns.
    """
    method = experiment.evaluation.explain
    if not method:
        return None
    if experiment.task.kind not in (*CLASSES, *NUMBERS) or experiment.task.kind in TEXT:
        raise ConfigError(
            "is for the built-in tasks that predict a class or numbers from columns or channels",
            key="evaluation.explain",
        )
    columns, blocks = _columns(experiment)
    if len(columns) > MOST_COLUMNS:
        raise ConfigError(
            f"{len(columns)} columns would be told of, {MOST_COLUMNS} is the most", key="evaluation.explain"
        )
    return Importance(method, columns, blocks, experiment.task.kind in CLASSES)


def _columns(experiment: Experiment) -> tuple[tuple[str, ...], tuple[int, ...]]:
    table, arrays = experiment.data.columns, experiment.data.arrays
    if experiment.task.kind == "tabular" and table is not None:
        blocks: list[int] = []
        for i, column in enumerate(table.columns.values()):
            width = 1 + column.indicator if isinstance(column, NumericColumn) else len(column.categories)
            blocks += [i] * width
        return tuple(table.columns), tuple(blocks)
    assert arrays is not None  # which the other tasks of these kinds declare
    from tacit.tasks.models import AXES

    channels = arrays.shape[0]
    each = int(np.prod(arrays.shape[1:], dtype=int)) if experiment.task.model.name not in AXES else 1
    places = [channel for channel in range(channels) for _ in range(each)]
    return tuple(f"channel {i}" for i in range(channels)), tuple(places * (arrays.input_shape[0] // channels))


def shares_of(
    importance: Importance, sums: Mapping[str, float], noise: float
) -> tuple[tuple[float, ...], float] | None:
    """Mean shares from sums with noise of this standard deviation in each, and what that is in a share.

    None is below zero, and they add up to 1; there are none where noise has left nothing of them. None where the sums
    are not all there.
    """
    if not all(name in sums for name in importance.names):
        return None
    values = np.array([sums[name] for name in importance.names])
    total = float(values.sum())
    if total <= 0 or drowned(values, noise):
        return (), noise / max(total, 1.0)
    positive = np.maximum(values, 0.0)
    return tuple((positive / positive.sum()).tolist()), noise / total
