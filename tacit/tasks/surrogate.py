"""A linear model around each record that stands in for the trained one there: LIME (Ribeiro, Singh and Guestrin 2016).

Columns are left out at random, as in its section 3.3, and a weighted least squares from which columns are left to what
is predicted says what each one adds. What is left out is the same for all records, so that one matrix fits them all.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from torch import Tensor

SAMPLES: Final = 64  # and two for each column
WIDTH: Final = 0.25  # of the kernel, as that of the authors' own explainer of texts


def coefficients(
    predicted: Callable[[Tensor], Tensor], features: Tensor, blocks: tuple[int, ...], columns: int
) -> Tensor:
    """What each column adds to the prediction of each record, shape (rows, columns), float64.

    Args:
        predicted: one number for each record of a tensor like `features`, shape (rows,).
        features: shape (rows, places, ...); 0 stands for a place that is left out.
        blocks: which column each place belongs to.
        columns: how many there are.
    """
    import torch

    kept, fit = surrogates(columns)
    along = (1, -1, *[1] * (features.ndim - 2))
    with torch.no_grad():
        said = [predicted(features * row[list(blocks)].to(features).reshape(along)) for row in kept]
    return torch.stack(said, dim=1).double().cpu() @ fit.T


@lru_cache(maxsize=4)
def surrogates(columns: int) -> tuple[Tensor, Tensor]:
    """Which columns are left, shape (samples, columns), and the matrix from predictions of these to coefficients.

    Both are public and the same everywhere. The first sample is the record as it is.
    """
    import torch

    draws = torch.Generator().manual_seed(0)
    samples = SAMPLES + 2 * columns
    numbers = torch.randint(columns, (samples, 1), generator=draws)
    kept = (torch.rand(samples, columns, generator=draws).argsort(1).argsort(1) < numbers).double()
    kept[0] = 1.0
    distance = 1 - kept.mean(1).sqrt()  # cosine, from the record as it is
    root = torch.exp(-(distance**2) / (4 * WIDTH**2))[:, None]  # of the weight exp(-d^2 / (2 width^2))
    design = torch.cat([torch.ones(samples, 1, dtype=torch.float64), kept], dim=1)
    return kept, (torch.linalg.pinv(root * design) * root.T)[1:]
