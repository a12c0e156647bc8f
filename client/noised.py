"""The last line of a private step: noise on the clipped sum, then the public normaliser."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from tacit.privacy.noise import Stream


def fill_noised(
    parameters: Sequence[nn.Parameter], sums: Sequence[Tensor], noise: Stream, std: float, normaliser: float
) -> None:
    """Sets `.grad` to (clipped sum + N(0, std^2)) / normaliser.

    The noise of all parameters is one draw of the stream, in their order; it is added in float64.

    Args:
        parameters: whose gradients are set.
        sums: the clipped sum of each, in its shape.
        noise: serves this step alone.
        std: standard deviation in each coordinate; 0 adds nothing.
        normaliser: public; no function of the records.
    """
    flat = torch.cat([total.reshape(-1) for total in sums]).double()
    flat += torch.from_numpy(noise.gaussian(flat.numel(), std)).to(flat.device)
    flat /= normaliser
    parts = torch.split(flat.to(sums[0].dtype), [parameter.numel() for parameter in parameters])
    for parameter, part in zip(parameters, parts, strict=True):
        parameter.grad = part.view_as(parameter)
