"""The networks that a private step and a cohort are measured on, and data for them."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import ClassVar

import torch
from opacus.layers import DPMultiheadAttention
from torch import Tensor, nn

from tacit.learning import Model
from tacit.tasks import Records
from tacit.tasks.models import build

CLASSES = 10


def mlp() -> nn.Module:
    """20-64-2: 1,474 parameters."""
    return build(Model(hidden=(64,)), 20, 2)


def cnn() -> nn.Module:
    """Two convolutions over images of 1x28x28, 60,075 parameters."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Flatten(), nn.Linear(32 * 7 * 7, 35), nn.ReLU(), nn.Linear(35, CLASSES),
    )  # fmt: skip


class Transformer(nn.Module):
    """One encoder layer of width 64 with 4 heads over 32 indices of 1,000."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 64)
        self.encoder = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
        self.encoder.self_attn = DPMultiheadAttention(64, 4, batch_first=True)
        self.head = nn.Linear(64, CLASSES)

    def forward(self, indices: Tensor) -> Tensor:
        return self.head(self.encoder(self.table(indices)).mean(1))


def batch(name: str, rows: int) -> Records:
    """Random records for a network."""
    features = {
        "MLP": lambda: torch.randn(rows, 20),
        "CNN": lambda: torch.randn(rows, 1, 28, 28),
        "Transformer": lambda: torch.randint(0, 1000, (rows, 32)),
    }[name]()
    return Records(features, torch.randint(0, 2 if name == "MLP" else CLASSES, (rows,)))


NETWORKS = {"MLP": mlp, "CNN": cnn, "Transformer": Transformer}


class Images:
    """As a task: a site's file names the seed of each image."""

    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)

    def model(self) -> nn.Module:
        return cnn()

    def read(self, path: Path, split: str) -> Records:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        seeds = [int(float(row["seed"])) for row in rows]
        images = [torch.randn(1, 28, 28, generator=torch.Generator().manual_seed(seed)) for seed in seeds]
        labels = torch.tensor([int(float(row["y"])) for row in rows], dtype=torch.int64)
        return Records(torch.stack(images) if images else torch.zeros(0, 1, 28, 28), labels)

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}
