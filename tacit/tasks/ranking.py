"""What every built-in task that ranks has in common: a record is one list of items, and its loss is that of the list.

So a query with all its items is what a promise for records protects, and no pair of items is of two records.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from tacit import learning

if TYPE_CHECKING:
    from torch import Tensor

NO_ITEM = -1.0  # the relevance of a place that no item has


class Ranking:
    """A score for each item, shape (rows, items, 1), and its relevance from 0 up, shape (rows, items).

    A place that no item has says `NO_ITEM`; it counts neither in the loss nor in a metric.

    Attributes:
        settings: `ndcg_at`, how many places of a ranking `ndcg` looks at.

    Guarantees:
        `metrics` lies in [0, 1] for each record, whatever the outputs, NaN included.
        What the model says of a place without an item changes neither loss nor metrics.
    """

    metric_names: tuple[str, ...] = ("ndcg", "map")
    summary_names: tuple[str, ...] = metric_names
    settings: learning.Task = learning.Task(kind="array_ranking")

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross entropy in nats between the top-one probabilities of relevances and scores, shape (rows,).

        ListNet (Cao et al. 2007, equation 5 and lemma 8 with exp). A list without an item has loss 0.
        """
        import torch

        there = targets >= 0
        lowest = torch.finfo(outputs.dtype).min  # not -inf: a list without an item has a gradient, too
        said = outputs.squeeze(-1).masked_fill(~there, lowest).log_softmax(-1)
        wanted = targets.to(said.dtype).masked_fill(~there, lowest).softmax(-1)
        return -torch.where(there, wanted * said, 0.0).sum(-1)

    def metrics(self, outputs: Tensor, targets: Tensor) -> Mapping[str, Tensor]:
        """Per record: `ndcg` and `map`, the average precision, of which a mean is the mean average precision.

        Items with one score share their places, as in scikit-learn. A list without a relevant item has 0 of both.
        """
        import torch

        scores = outputs.detach().squeeze(-1).double().nan_to_num(nan=-1e300, posinf=1e300, neginf=-1e300)
        scores = scores.masked_fill(targets < 0, -torch.inf)
        return {
            "ndcg": ndcg(scores, targets, self.settings.ndcg_at),
            "map": average_precision(scores, targets),
        }

    def summary(self, outputs: Tensor, targets: Tensor) -> Mapping[str, float]:
        """The means of `metrics` over a whole set; nothing of an empty one."""
        if not len(targets):
            return {}
        return {name: float(values.mean()) for name, values in self.metrics(outputs, targets).items()}


def ndcg(scores: Tensor, relevance: Tensor, at: int) -> Tensor:
    """Normalised discounted cumulative gain over the first `at` places, shape (rows,), float64.

    Jarvelin and Kekalainen 2002, with the gain 2^relevance - 1 (Burges et al. 2005). Items with one score have each
    the mean of the discounts of their places (McSherry and Najork 2008).

    Args:
        scores: float64, shape (rows, items); -inf where there is no item.
        relevance: likewise, below 0 where there is no item.
        at: 1 or more.
    """
    import torch

    places = torch.arange(scores.shape[-1], device=scores.device)
    discounts = torch.where(places < at, 1 / torch.log2(places + 2.0).double(), 0.0)
    up_to = torch.nn.functional.pad(discounts.cumsum(0), (1, 0))
    above, upwards = _above(scores, scores), _upwards(scores, scores)
    gains = torch.exp2(relevance.clamp(min=0).double()) - 1
    reached = (gains * (up_to[upwards] - up_to[above]) / (upwards - above)).sum(-1)
    best = (gains.sort(-1, descending=True).values * discounts).sum(-1)
    return torch.where(best > 0, reached / best, 0.0).clamp(0.0, 1.0)


def average_precision(scores: Tensor, relevance: Tensor) -> Tensor:
    """Mean over the relevant items of the precision among those that score as much or more, shape (rows,), float64.

    Args:
        scores, relevance: as of `ndcg`; an item of any relevance above 0 is relevant.
    """
    import torch

    relevant = relevance > 0
    of_relevant = scores.masked_fill(~relevant, -torch.inf)
    precision = _upwards(of_relevant, scores).double() / _upwards(scores, scores)
    total = torch.where(relevant, precision, 0.0).sum(-1)
    return torch.where(relevant.any(-1), total / relevant.sum(-1), 0.0)


def _above(scores: Tensor, values: Tensor) -> Tensor:
    """How many scores of the same list are above each value, shape (rows, items)."""
    import torch

    return scores.shape[-1] - torch.searchsorted(scores.sort(-1).values, values, right=True)


def _upwards(scores: Tensor, values: Tensor) -> Tensor:
    """How many are as high or above."""
    import torch

    return scores.shape[-1] - torch.searchsorted(scores.sort(-1).values, values)
