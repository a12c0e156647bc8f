"""Which way a private step takes: book-keeping where there is a rule for each layer, else Opacus. Both give the same.

The log and a simulation's report say which, and why; neither the accounting nor the noise knows.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Final

from torch import nn

from client.bookkeeping import BookKeeping, NoRule, supports, unknown
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task

if TYPE_CHECKING:
    from client.training import Gradients

LOG: Final = logging.getLogger(__name__)


def private_gradients(
    model: nn.Module,
    task: Task,
    max_grad_norm: float,
    noise_multiplier: float,
    max_batch: int = 0,
    precision: str = "float32",
) -> Gradients:
    """The fastest way that is exact for this model; see `BookKeeping` for the arguments.

    Raises:
        ConfigError: there is none; names the layer.
    """
    bounds = max_grad_norm, noise_multiplier, max_batch, precision
    if supports(model):
        return told(BookKeeping(model, task, *bounds))
    if reason := unknown(model):
        return by_opacus(model, task, *bounds, reason=reason)
    return told(Watched(model, task, *bounds))


class Watched:
    """Book-keeping, until the model's forward pass does what there is no rule for; from then on Opacus."""

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        max_grad_norm: float,
        noise_multiplier: float,
        max_batch: int,
        precision: str,
    ) -> None:
        self._arguments = model, task, max_grad_norm, noise_multiplier, max_batch, precision
        self.gradients: Gradients = BookKeeping(*self._arguments)

    @property
    def engine(self) -> str:
        """See `Gradients`."""
        return self.gradients.engine

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """See `Gradients`."""
        try:
            self.gradients.fill(batch, normaliser, noise)
        except NoRule as error:  # nothing was written, and nothing of the stream was used
            self.gradients = by_opacus(*self._arguments, reason=str(error))
            self.gradients.fill(batch, normaliser, noise)


def by_opacus(
    model: nn.Module,
    task: Task,
    max_grad_norm: float,
    noise_multiplier: float,
    max_batch: int,
    precision: str,
    *,
    reason: str,
) -> Gradients:
    """Gradients by Opacus, which is loaded only here: it costs a device its memory."""
    from client.private_gradients import PrivateGradients

    return told(PrivateGradients(model, task, max_grad_norm, noise_multiplier, max_batch, precision, reason))


def told(gradients: Gradients) -> Gradients:
    """The same, and a line in the log."""
    LOG.info("gradients: %s", gradients.engine)
    return gradients
