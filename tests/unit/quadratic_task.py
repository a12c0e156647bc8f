"""A task whose optimum is known: the loss of record x is half the squared distance between x and the model.

The optimum of a site is the mean of its records, and k steps of rate r over all of them move a model w by
(1 - (1 - r)^k) (mean - w).
"""

import csv
from pathlib import Path
from typing import ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from tacit.tasks import Records

COLUMNS = {"mean radius": (14.0, 4.0), "mean texture": (19.0, 4.0), "mean smoothness": (0.1, 0.02)}


class Point(nn.Module):
    """Where in space the model is: two coordinates and a third, which a site may keep for itself."""

    def __init__(self) -> None:
        super().__init__()
        self.w = nn.Parameter(torch.zeros(2))
        self.head = nn.Parameter(torch.zeros(1))

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features - torch.cat([self.w, self.head])


class Quadratic:
    metric_names: ClassVar[tuple[str, ...]] = ("near",)

    def model(self) -> nn.Module:
        return Point()

    def read(self, path: Path, split: str) -> Records:
        points = points_of(path, split)
        return Records(torch.from_numpy(points), torch.zeros(len(points)))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs.square().sum(dim=1) / 2

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"near": (outputs.norm(dim=1) < 1).float()}


class Normed(Quadratic):
    """The same, of a model that has a BatchNorm layer; its loss does not depend on it."""

    def model(self) -> nn.Module:
        point = Point()
        point.norm = nn.BatchNorm1d(2)
        return point


def points_of(path: Path, split: str) -> NDArray[np.float32]:
    with path.open(encoding="utf-8") as file:
        rows = [row for row in csv.DictReader(file) if row["split"] == split]
    points = [[(float(row[name]) - c) / s for name, (c, s) in COLUMNS.items()] for row in rows]
    return np.array(points, dtype=np.float32).reshape(-1, len(COLUMNS))
