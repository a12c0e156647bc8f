"""A model that Tacit's own gradients do not know, so that Opacus computes them; about 100 000 parameters."""

import csv
from pathlib import Path
from typing import ClassVar

import torch
from torch import nn

from tacit.tasks import Records

COLUMNS = 20


class Wide:
    metric_names: ClassVar[tuple[str, ...]] = ("accuracy",)

    def model(self) -> nn.Module:
        return nn.Sequential(
            nn.Linear(COLUMNS, 256), nn.ReLU(), nn.LayerNorm(256), nn.Linear(256, 370), nn.ReLU(), nn.Linear(370, 2)
        )  # fmt: skip

    def read(self, path: Path, split: str) -> Records:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row["split"] == split]
        features = [[float(row[f"x{i}"]) for i in range(COLUMNS)] for row in rows]
        return Records(
            torch.tensor(features).reshape(len(rows), COLUMNS), torch.tensor([int(row["y"]) for row in rows])
        )

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"accuracy": (outputs.argmax(1) == targets).float()}
