"""BatchNorm mixes the records of a batch, so a gradient per record does not exist; GroupNorm takes its place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def replace_batchnorm(model: nn.Module) -> nn.Module:
    """Replaces each BatchNorm layer by GroupNorm over up to 32 groups (Wu and He 2018); returns the model.

    Server and client both call it in a private run, so that they agree on the model's arrays.
    """
    from torch import nn

    if isinstance(model, nn.modules.batchnorm._BatchNorm):
        return nn.GroupNorm(_groups(model.num_features), model.num_features, affine=model.affine)
    for name, child in list(model.named_children()):
        setattr(model, name, replace_batchnorm(child))
    return model


def has_batchnorm(model: nn.Module) -> bool:
    """Whether any layer is a BatchNorm."""
    from torch import nn

    return any(isinstance(layer, nn.modules.batchnorm._BatchNorm) for layer in model.modules())


def _groups(channels: int) -> int:
    """The largest divisor of `channels` up to 32."""
    return max(g for g in range(1, min(32, channels) + 1) if channels % g == 0)
