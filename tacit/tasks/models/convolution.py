"""Small convolutional networks: GroupNorm instead of BatchNorm, so that each record has a gradient of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from torch import Tensor, nn

from tacit import learning
from tacit.tasks.groupnorm import num_groups
from tacit.tasks.models.mlp import ACTIVATIONS, dropout

_PLACES: Final = (
    4  # along each axis, of what the head sees: where something is matters, its exact place does not
)


def cnn(model: learning.Model, channels: int, outputs: int) -> nn.Sequential:
    """Images (rows, channels, height, width): each layer halves both sides; then the means over a 4 x 4 grid."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((channels, *model.channels)):
        layers += [
            nn.Conv2d(size_in, size_out, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(num_groups(size_out), size_out),
            ACTIVATIONS[model.activation](),
        ]
    head = nn.Linear(model.channels[-1] * _PLACES**2, outputs)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_PLACES), nn.Flatten(), *dropout(model), head)


def cnn1d(model: learning.Model, channels: int, outputs: int) -> nn.Sequential:
    """Series (rows, channels, time): each layer halves the time axis; then the means over four parts of it."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((channels, *model.channels)):
        layers += [
            nn.Conv1d(size_in, size_out, kernel_size=5, stride=2, padding=2),
            nn.GroupNorm(num_groups(size_out), size_out),
            ACTIVATIONS[model.activation](),
        ]
    head = nn.Linear(model.channels[-1] * _PLACES, outputs)
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(_PLACES), nn.Flatten(), *dropout(model), head)


def resnet(model: learning.Model, channels: int, outputs: int) -> nn.Sequential:
    """Images: a residual block for each of `model.channels`, all but the first halve both sides; then the means.

    He et al. 2016, figure 2, with GroupNorm (Wu and He 2018) in the place of BatchNorm.
    """
    widths = model.channels
    stem = [
        nn.Conv2d(channels, widths[0], kernel_size=3, padding=1, bias=False),
        nn.GroupNorm(num_groups(widths[0]), widths[0]),
        ACTIVATIONS[model.activation](),
    ]
    blocks = [Residual(model, widths[0], widths[0], stride=1)]
    blocks += [Residual(model, size_in, size_out, stride=2) for size_in, size_out in pairwise(widths)]
    head = nn.Linear(widths[-1], outputs)
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), *dropout(model), head)


class Residual(nn.Module):
    """Two convolutions beside a way around them, which is a convolution of one pixel where the shape changes."""

    def __init__(self, model: learning.Model, size_in: int, size_out: int, *, stride: int) -> None:
        super().__init__()
        groups, activation = num_groups(size_out), ACTIVATIONS[model.activation]
        self.body = nn.Sequential(
            nn.Conv2d(size_in, size_out, kernel_size=3, stride=stride, padding=1, bias=False),
            nn.GroupNorm(groups, size_out),
            activation(),
            nn.Conv2d(size_out, size_out, kernel_size=3, padding=1, bias=False),
            nn.GroupNorm(groups, size_out),
        )
        self.around = nn.Sequential()
        if stride > 1 or size_in != size_out:
            self.around.append(nn.Conv2d(size_in, size_out, kernel_size=1, stride=stride, bias=False))
            self.around.append(nn.GroupNorm(groups, size_out))
        self.activation = activation()

    def forward(self, images: Tensor) -> Tensor:
        """Images of shape (rows, size_out, height / stride, width / stride), rounded up."""
        result: Tensor = self.activation(self.body(images) + self.around(images))
        return result
