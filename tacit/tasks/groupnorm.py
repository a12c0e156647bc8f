"""BatchNorm mixes the records of a batch, so a gradient per record does not exist; GroupNorm takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def replace_batchnorm(model: nn.Module) -> nn.Module:
    """Replaces each BatchNorm layer by GroupNorm (Wu and He 2018); returns the model.

    Over up to 32 groups of two channels or more. Over one group where a channel may be a single number
    (BatchNorm1d), because a number normalised by itself is always zero.

    Server and client both call it in a private run, so that they agree on the model's arrays.
    """
    from torch import nn

    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        channels = model.num_features
        groups = 1 if isinstance(model, nn.BatchNorm1d) else num_groups(channels)
        return nn.GroupNorm(groups, channels, eps=model.eps, affine=model.affine)
    for name, child in list(model.named_children()):
        setattr(model, name, replace_batchnorm(child))
    return model


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer is a BatchNorm."""
    from torch import nn

    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def num_groups(channels: int) -> int:
    """The largest divisor of `channels` up to 32 that leaves two channels or more to a group."""
    return max(
        g for g in range(1, min(32, channels) + 1) if channels % g == 0 and (g == 1 or channels >= 2 * g)
    )
