"""Low-rank adapters: a Linear layer that stays as it is, and a narrow way around it that is trained."""

from __future__ import annotations

from torch import Tensor, nn


class Adapted(nn.Module):
    """W x + b + U D x with D of `rank` rows (Hu et al. 2022, with alpha = rank); U begins at zero.

    Args:
        layer: stays as it is; frozen by the caller.
        rank: width of the way around.
    """

    def __init__(self, layer: nn.Linear, rank: int) -> None:
        super().__init__()
        self.layer = layer
        self.down = nn.Linear(layer.in_features, rank, bias=False)
        self.up = nn.Linear(rank, layer.out_features, bias=False)
        nn.init.zeros_(self.up.weight)

    def forward(self, x: Tensor) -> Tensor:
        """Of shape (..., out) for x of shape (..., in)."""
        result: Tensor = self.layer(x) + self.up(self.down(x))
        return result
