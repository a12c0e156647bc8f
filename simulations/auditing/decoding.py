"""Which canaries are in a sum? The linear estimate with the least mean square error, given all but the coins.

The auditor models what was released, in units of a gradient sum, as

    y_t = sum over others of g_t + sum over canaries i of b_i g_it + noise of standard deviation sigma_t

with coins b_i in {0, 1} of mean 1/2 and variance 1/4, and gradients g_it that he can compute himself. He estimates all
coins together: canaries whose gradients resemble each other would drown one another otherwise. A lower bound holds for
any score that does not look at the coins, so that a poor model costs strength and never truth.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

from client.training import record_losses
from tacit.tasks import Records, Task

Matrix = NDArray[np.float64]

MOST_COORDINATES: Final = 20_000  # of a gradient; of more a fixed choice is looked at
_ROWS: Final = 64  # gradients made at a time


class Decoder:
    """Gathers rounds and estimates the coins of `count` canaries.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._precision, self._evidence = 4.0 * np.eye(count), np.zeros(count)

    def add(self, directions: Matrix, observed: Matrix, std: float) -> None:
        """One round.

        Args:
            directions: what each canary adds if it is in, shape (count, coordinates).
            observed: what was released, less what others added, shape (coordinates,).
            std: of the noise in a coordinate.
        """
        # A floor, so that a sum without noise is read to six digits and not to the last bit of a float32.
        floor = 1e-6 * float((directions**2).sum()) / max(1, directions.shape[1])
        variance = std**2 + floor + 1e-30
        self._precision += directions @ directions.T / variance
        self._evidence += directions @ (observed - 0.5 * directions.sum(axis=0)) / variance

    def scores(self) -> Matrix:
        """Estimate of each coin less 1/2, shape (count,): above 0 speaks for "in"."""
        return np.asarray(np.linalg.solve(self._precision, self._evidence), dtype=np.float64)


def coordinates(size: int) -> NDArray[np.int64] | slice:
    """Which coordinates of a gradient are looked at."""
    if size <= MOST_COORDINATES:
        return slice(None)
    return np.sort(np.random.default_rng(size).choice(size, MOST_COORDINATES, replace=False))


def gradients(model: nn.Module, task: Task, records: Records, clip: float | None) -> Matrix:
    """Each record's gradient over all trained parameters, cut at the clip norm; shape (rows, coordinates).

    Made by torch.func, independently of what the client trains with.
    """
    size = sum(p.numel() for p in model.parameters() if p.requires_grad)
    chosen = coordinates(size)
    parts = [cut(part, clip)[:, chosen] for part in _gradients(model, task, records)]
    return np.concatenate(parts) if parts else np.zeros((0, min(size, MOST_COORDINATES)))


def cut(values: Matrix, clip: float | None) -> Matrix:
    """Rows of at most a norm; of all rows that are finite."""
    values = np.where(np.isfinite(values).all(axis=1, keepdims=True), values, 0.0)
    if clip is None:
        return values
    norms = np.linalg.norm(values, axis=1, keepdims=True)
    return np.asarray(values * np.minimum(1.0, clip / np.maximum(norms, 1e-12)))


def _gradients(model: nn.Module, task: Task, records: Records) -> Iterator[Matrix]:
    parameters = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    model.eval()  # a dropout mask is the site's own chance; its mean is the best guess

    def loss(parameters: dict[str, Tensor], features: Tensor, target: Tensor) -> Tensor:
        outputs = functional_call(model, parameters, (features.unsqueeze(0),))
        return record_losses(task, outputs, target.unsqueeze(0)).sum()

    each = vmap(grad(loss), in_dims=(None, 0, 0))
    for start in range(0, records.num_rows, _ROWS):
        part = slice(start, start + _ROWS)
        found = each(parameters, records.features[part], records.targets[part])
        flat = torch.cat([found[name].flatten(1) for name in parameters], dim=1)
        yield flat.double().numpy()
