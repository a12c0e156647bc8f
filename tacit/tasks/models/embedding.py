"""A bag of words: the mean of a text's token vectors, and Linear layers."""

from __future__ import annotations

from typing import Final

from torch import Tensor, nn

from tacit import learning
from tacit.data.tokens import PADDING
from tacit.tasks.models.mlp import hidden_layers

_SPREAD: Final = 0.1  # of first vectors: larger ones keep what they are drawn as, seen by few steps


class Embedding(nn.Module):
    """The mean of the vectors of a text's tokens, without their order, then a small `mlp`.

    Args:
        model: `hidden`, of which the first is the width of a vector; activation; dropout.
        num_tokens: how many different ones there are.
        outputs: numbers per record.
    """

    def __init__(self, model: learning.Model, num_tokens: int, outputs: int) -> None:
        super().__init__()
        widths = model.hidden
        self.input = nn.Embedding(num_tokens, widths[0])
        nn.init.normal_(self.input.weight, std=_SPREAD)
        self.head = nn.Sequential(*hidden_layers(model, widths), nn.Linear(widths[-1], outputs))

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for tokens of shape (rows, length)."""
        outputs: Tensor = self.head(mean_of(self.input(tokens), tokens != PADDING))
        return outputs


def mean_of(x: Tensor, kept: Tensor) -> Tensor:
    """Over the positions that are kept, shape (rows, width); 0 where none is."""
    weights = kept.to(x.dtype).unsqueeze(2)
    result: Tensor = (x * weights).sum(1) / weights.sum(1).clamp(min=1.0)
    return result
