"""A generator of table rows, and a discriminator that tells them from records.

Goodfellow et al. 2014, conditional on the class (Mirza and Osindero 2014). A record is judged beside a row that was
made up for it, of its own class, and the losses of the two are the record's loss: clipping bounds the pair, and where
the discriminator cannot tell them apart their gradients cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from tacit import learning
from tacit.data.rows import Names, Number
from tacit.tasks.models.mlp import hidden_layers, mlp

KNOWN_ROWS: Final = (
    64  # of each class, of the same draws each time: what records are compared with after training
)
_SHARPNESS: Final = 5.0  # of a draw among names, where a gradient passes


class Generator(nn.Module):
    """Rows of features for classes: numbers between their bounds, and one name of each list, drawn by its chance.

    Args:
        model: widths from the row down, activation, how many latent numbers.
        layout: of the features, column by column.
        classes: how many there are.
    """

    def __init__(self, model: learning.Model, layout: Sequence[Number | Names], classes: int) -> None:
        super().__init__()
        self.layout, self.latent = tuple(layout), model.latent
        self.sizes = [_outputs(part) for part in layout]
        widths = (model.latent + classes, *reversed(model.hidden))
        whole = model.model_copy(update={"dropout": 0.0})
        self.layers = nn.Sequential(*hidden_layers(whole, widths), nn.Linear(widths[-1], sum(self.sizes)))

    def forward(self, classes: Tensor, draws: torch.Generator | None = None) -> Tensor:
        """Features of shape (rows, features).

        Args:
            classes: one-hot, shape (rows, classes).
            draws: where random numbers come from; torch's own generator, if not given.
        """
        place = classes.device if draws is None else draws.device
        normal = torch.randn(len(classes), self.latent, generator=draws, device=place).to(classes)
        uniform = torch.rand(len(classes), sum(self.sizes), generator=draws, device=place).to(classes)
        outputs = self.layers(torch.cat([normal, classes], 1))
        # Gumbel's numbers: the largest of logits with one added to each is drawn as softmax says.
        drawn = outputs - (-uniform.clamp(1e-7, 1 - 1e-7).log()).log()
        parts = zip(self.layout, outputs.split(self.sizes, 1), drawn.split(self.sizes, 1), strict=True)
        return torch.cat([_features(*part) for part in parts], 1)


class GAN(nn.Module):
    """Both. Records train the discriminator alone: the generator's parameters ask for no gradient here.

    Args:
        model: size of both.
        layout: of a record's features, behind which its class stands one-hot.
        classes: how many there are.
    """

    def __init__(self, model: learning.Model, layout: Sequence[Number | Names], classes: int) -> None:
        super().__init__()
        self.generator = Generator(model, layout, classes).requires_grad_(False)
        self.features = sum(part.width for part in layout)
        self.discriminator = mlp(model, self.features + classes, 1)

    def forward(self, records: Tensor) -> Tensor:
        """Of each record what the discriminator says of it and of what is made up, and their distance; shape (rows, 3).

        In training it is one row, made up for this record; else `KNOWN_ROWS` of its class: the mean of what is said of
        them, and the mean squared difference to the nearest one.
        """
        self.discriminator.check_width(records)
        features, classes = records[:, : self.features], records[:, self.features :]
        if not self.training:
            return self._compared(features, classes, self.discriminator(records))
        made = self.draw(classes)
        said = self.discriminator(torch.stack([records, torch.cat([made, classes], 1)], 1)).squeeze(2)
        return torch.cat([said, (features - made).square().mean(1, keepdim=True)], 1)

    def draw(self, classes: Tensor) -> Tensor:
        """A made-up row for each of these classes, from torch's generator: each record's is its own."""
        with torch.no_grad():
            made: Tensor = self.generator(classes)
        return made

    def judged(self, classes: Tensor, draws: torch.Generator) -> Tensor:
        """What the discriminator says of rows that are made up of these draws, shape (rows,)."""
        said: Tensor = self.discriminator(torch.cat([self.generator(classes, draws), classes], 1))
        return said.squeeze(1)

    def _compared(self, features: Tensor, classes: Tensor, said: Tensor) -> Tensor:
        count = classes.shape[1]
        known = torch.eye(count).repeat_interleave(KNOWN_ROWS, 0).to(classes)
        made = self.generator(known, torch.Generator().manual_seed(0))
        of_made = self.discriminator(torch.cat([made, known], 1)).view(count, KNOWN_ROWS).mean(1)
        apart = torch.cdist(features, made).square().view(-1, count, KNOWN_ROWS).amin(2) / self.features
        of_class = torch.stack([classes @ of_made, (apart * classes).sum(1)], 1)
        return torch.cat([said, of_class], 1)


def _outputs(part: Number | Names) -> int:
    """How many numbers the last layer gives for a column."""
    if isinstance(part, Names):
        return part.size + part.may_be_empty
    return 1 + 2 * part.indicator


def _features(part: Number | Names, outputs: Tensor, drawn: Tensor) -> Tensor:
    """A column's features, from what the last layer gives for it, without and with Gumbel's numbers."""
    if isinstance(part, Names):
        return _chosen(drawn)[:, : part.size]
    number = (part.high + part.low) / 2 + (part.high - part.low) / 2 * outputs[:, :1].tanh()
    if not part.indicator:
        return number
    empty = _chosen(drawn[:, 1:])[:, :1] * float(part.may_be_empty)
    return torch.cat([number + empty * (part.empty - number), empty], 1)


def _chosen(drawn: Tensor) -> Tensor:
    """1 at the largest, 0 elsewhere; a gradient passes as through softmax (Jang et al. 2017, straight-through)."""
    soft = (drawn * _SHARPNESS).softmax(1)
    hard = F.one_hot(soft.argmax(1), soft.shape[1]).to(soft)
    return hard + soft - soft.detach()
