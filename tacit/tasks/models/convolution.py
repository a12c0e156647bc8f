"""Small convolutional networks: GroupNorm instead of BatchNorm, so that each record has a gradient of its own."""

from __future__ import annotations

from itertools import pairwise
from typing import Final

from torch import nn

from tacit import config
from tacit.tasks.groupnorm import num_groups
from tacit.tasks.models.mlp import ACTIVATIONS

_PLACES: Final = (
    4  # along each axis, of what the head sees: where something is matters, its exact place does not
)


def cnn(model: config.Model, channels: int, outputs: int) -> nn.Sequential:
    """Images (rows, channels, height, width): each layer halves both sides; then the means over a 4 x 4 grid."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((channels, *model.channels)):
        layers += [
            nn.Conv2d(size_in, size_out, kernel_size=3, stride=2, padding=1),
            nn.GroupNorm(num_groups(size_out), size_out),
            ACTIVATIONS[model.activation](),
        ]
    width = (channels, *model.channels)[-1] * _PLACES**2
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(_PLACES), nn.Flatten(), nn.Linear(width, outputs))


def cnn1d(model: config.Model, channels: int, outputs: int) -> nn.Sequential:
    """Series (rows, channels, time): each layer halves the time axis; then the means over four parts of it."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((channels, *model.channels)):
        layers += [
            nn.Conv1d(size_in, size_out, kernel_size=5, stride=2, padding=2),
            nn.GroupNorm(num_groups(size_out), size_out),
            ACTIVATIONS[model.activation](),
        ]
    width = (channels, *model.channels)[-1] * _PLACES
    return nn.Sequential(*layers, nn.AdaptiveAvgPool1d(_PLACES), nn.Flatten(), nn.Linear(width, outputs))
