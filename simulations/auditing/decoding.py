"""Which canaries are in a sum? The linear estimate with the least mean square error, given all but the coins.

The auditor models what was released, in units of a gradient sum, as

    y = sum over records j of c_j g_j + noise of some variance s in each coordinate

with gradients g_j that he can compute himself, and c_j unknown, of a mean and a variance that he knows: a canary is in
by a coin, and who is in is drawn into batches by chance. He estimates all c_j together, because records whose gradients
resemble each other would drown one another otherwise, and takes for s what makes y most probable: he trusts nobody's
word that there is noise. A lower bound holds for any score that does not look at the coins, so that a poor model costs
strength and never truth.
"""

from __future__ import annotations

import math
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

MOST_COORDINATES: Final = 4_000  # of a gradient; of more a fixed choice is looked at
_ROWS: Final = 64  # gradients made at a time


class Decoder:
    """Gathers what was released and estimates `count` unknowns of mean 0 and variance 1.

    Args:
        count: how many.
    """

    def __init__(self, count: int) -> None:
        self._gram, self._evidence = np.zeros((count, count)), np.zeros(count)
        self._energy, self._size = 0.0, 0

    def add(self, directions: Matrix, observed: Matrix) -> None:
        """One more release that the same unknowns are in.

        Args:
            directions: what each unknown adds, times its standard deviation; shape (count, coordinates).
            observed: what was released less what was to be expected of it; shape (coordinates,).
        """
        self._gram += directions @ directions.T
        self._evidence += directions @ observed
        self._energy += float(observed @ observed)
        self._size += observed.size

    def estimates(self) -> Matrix:
        """Each unknown, in its standard deviations; shape (count,)."""
        return self.solution()[0]

    def solution(self) -> tuple[Matrix, float]:
        """The same, and how surprising what was released is under this model: minus twice its log-likelihood."""
        values, vectors = np.linalg.eigh(self._gram)
        values, rotated = np.maximum(values, 0.0), vectors.T @ self._evidence
        # The part of y in the span of the directions, in its own coordinates; what is left is noise alone.
        seen = np.divide(rotated**2, values, out=np.zeros_like(values), where=values > 1e-9 * values.max())
        rest = max(self._energy - float(seen.sum()), 0.0)
        noise, surprise = self._noise(values, seen, rest)
        return np.asarray(vectors @ (rotated / (values + noise)), dtype=np.float64), surprise

    def _noise(self, values: Matrix, seen: Matrix, rest: float) -> tuple[float, float]:
        """The variance s of highest likelihood, from a millionth of what is seen upwards."""
        mean = max(self._energy / max(1, self._size), 1e-30)
        candidates = mean * np.geomspace(1e-6, 1.0, 61)
        others = self._size - values.size  # below 0 where the same coordinates hold many unknowns

        def surprise(s: float) -> float:
            inside = float((seen / (values + s) + np.log(values + s)).sum())
            return inside + rest / s + others * math.log(s)

        least, best = min((surprise(float(s)), float(s)) for s in candidates)
        return best, least


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
