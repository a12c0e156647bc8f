"""A Transformer encoder whose parameters are those of Linear, LayerNorm and Embedding: each record has a gradient.

torch's own attention keeps its projections as bare parameters, past any layer that could be watched. Here they are one
Linear layer, for which clipping has a rule; what lies between has no parameters.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit import learning
from tacit.data.tokens import PADDING
from tacit.tasks.models.embedding import mean_of
from tacit.tasks.models.mlp import ACTIVATIONS

_WIDENED = 4  # times the width has a block's inner layer, as in the paper


class Attention(nn.Module):
    """Self-attention of several heads (Vaswani et al. 2017, section 3.2.2).

    Args:
        width: of a position; `heads` divides it.
        heads: attentions side by side.
    """

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.projections = nn.Linear(width, 3 * width)
        self.output = nn.Linear(width, width)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """Of the same shape as x, (rows, positions, width); what is not `kept`, (rows, positions), is not looked at."""
        query, key, value = (
            part.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for part in self.projections(x).chunk(3, dim=2)
        )
        mask = None if kept is None else kept[:, None, None]
        seen = F.scaled_dot_product_attention(query, key, value, attn_mask=mask)
        result: Tensor = self.output(seen.transpose(1, 2).flatten(2))
        return result


class Block(nn.Module):
    """Attention, then two Linear layers, each normalised before and added to what it was given."""

    def __init__(self, model: learning.Model) -> None:
        super().__init__()
        width = model.hidden[-1]
        self.attention, self.attention_norm = Attention(width, model.heads), nn.LayerNorm(width)
        self.inner_norm = nn.LayerNorm(width)
        self.inner = nn.Sequential(
            nn.Linear(width, _WIDENED * width),
            ACTIVATIONS[model.activation](),
            nn.Linear(_WIDENED * width, width),
        )
        self.dropout = nn.Dropout(model.dropout)

    def forward(self, x: Tensor, kept: Tensor | None = None) -> Tensor:
        """See `Attention`."""
        x = x + self.dropout(self.attention(self.attention_norm(x), kept))
        result: Tensor = x + self.dropout(self.inner(self.inner_norm(x)))
        return result


class Transformer(nn.Module):
    """`model.layers` blocks over the steps of a series, then a Linear head on their mean.

    Args:
        model: width, heads, layers, activation and dropout.
        inputs: makes a step of that width out of what a record has there.
        outputs: numbers per record.
    """

    def __init__(self, model: learning.Model, inputs: nn.Module, outputs: int) -> None:
        super().__init__()
        width = model.hidden[-1]
        self.input = inputs
        self.blocks = nn.Sequential(*(Block(model) for _ in range(model.layers)))
        self.norm, self.head = nn.LayerNorm(width), nn.Linear(width, outputs)

    def forward(self, series: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for series of shape (rows, channels, time)."""
        x = self.blocks(self.placed(series.mT))
        outputs: Tensor = self.head(self.norm(x).mean(1))
        return outputs

    def placed(self, steps: Tensor) -> Tensor:
        """Steps with their places added, shape (rows, time, width)."""
        x: Tensor = self.input(steps)
        return x + places(x.shape[1], x.shape[2]).to(x)


class TextTransformer(Transformer):
    """The same over the tokens of a text; what fills it up is neither looked at nor part of the mean."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for tokens of shape (rows, length)."""
        x, kept = self.placed(tokens), tokens != PADDING
        kept[:, 0] = True  # of an empty text, too, something has to be there
        for block in self.blocks:
            x = block(x, kept)
        outputs: Tensor = self.head(mean_of(self.norm(x), kept))
        return outputs


def transformer(model: learning.Model, channels: int, outputs: int) -> Transformer:
    """Of series."""
    return Transformer(model, nn.Linear(channels, model.hidden[-1]), outputs)


def text_transformer(model: learning.Model, num_tokens: int, outputs: int) -> TextTransformer:
    """Of texts."""
    return TextTransformer(model, nn.Embedding(num_tokens, model.hidden[-1]), outputs)


def places(time: int, width: int) -> Tensor:
    """Sines and cosines that tell one step from another, shape (time, width); ibid., section 3.5."""
    rates = torch.exp(torch.arange(0, width, 2) * (-math.log(10_000.0) / width))
    angles = torch.arange(time).unsqueeze(1) * rates
    return torch.stack([angles.sin(), angles.cos()], dim=2).flatten(1)[:, :width]
