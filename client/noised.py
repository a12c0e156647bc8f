"""The end of a private step: clipped sums of all parameters in one vector, its noise, the public normaliser."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from tacit.privacy.noise import Stream
from tacit.privacy.normals import BLOCK, gaussians

STEPS_AHEAD: Final = 8  # whose noise is made in one go; what a round's last steps leave over is not used


class NoisedSum:
    """A sum of clipped gradients over the parameters of one model, in their order.

    Args:
        parameters: whose gradients this makes; of one type, on one device.

    Attributes:
        sums: the place of each parameter's clipped sum, in its shape; the caller writes it.
    """

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        self._parameters = list(parameters)
        sizes = [parameter.numel() for parameter in self._parameters]
        # One vector and views of it, made once: a small model's step is mostly the number of calls into torch.
        self._sum, self._gradient = (self._parameters[0].new_zeros(sum(sizes)) for _ in range(2))
        self._ahead: list[NDArray[np.float64]] = []  # each leaves the list as it is used
        self._drawn_from: tuple[Stream, float, int] | None = None
        self.sums, self._gradients = (
            [part.view_as(p) for part, p in zip(torch.split(flat, sizes), self._parameters, strict=True)]
            for flat in (self._sum, self._gradient)
        )

    def clear(self) -> None:
        """All sums become zero."""
        self._sum.zero_()

    def copy(self) -> Tensor:
        """All sums as they are now, to `add` later."""
        return self._sum.clone()

    def add(self, sums: Tensor) -> None:
        """Adds what `copy` gave."""
        self._sum.add_(sums)

    def fill(self, noise: Stream, std: float, normaliser: float) -> None:
        """Sets `.grad` of each parameter to (clipped sum + N(0, std^2)) / normaliser.

        The noise of all parameters is one draw of the stream; it is added in float64. That of a small model is drawn
        for several steps at a time, because it costs mostly calls; it is what single draws would give.

        Args:
            noise: read on from where the step before has stopped.
            std: standard deviation in each coordinate; 0 adds nothing.
            normaliser: public; no function of the records.
        """
        noised = torch.from_numpy(self._next(noise, std)).to(self._sum.device)
        noised += self._sum
        torch.div(noised, normaliser, out=self._gradient)
        for parameter, gradient in zip(self._parameters, self._gradients, strict=True):
            if parameter.grad is not gradient:
                parameter.grad = gradient

    def _next(self, noise: Stream, std: float) -> NDArray[np.float64]:
        """The stream's next draw for all parameters, which no other step gets, nor a forked process."""
        drawn_from = noise, std, os.getpid()  # after a fork the stream itself refuses
        if not self._ahead or self._drawn_from != drawn_from:
            size = self._sum.numel()
            steps = max(1, min(STEPS_AHEAD, (BLOCK - 1) // size))
            self._ahead = list(gaussians([noise] * steps, size, std))[::-1]
            self._drawn_from = drawn_from
        return self._ahead.pop()
