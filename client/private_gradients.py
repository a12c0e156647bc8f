"""One step's private gradient: Opacus clips per record, our stream adds the noise.

Opacus 1.6 draws noise from torch's generator (its secure mode needs a package that no longer installs) and takes
the normaliser from the batch; both are replaced here. What Opacus does well, gradients per record, it keeps doing.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import nn

from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task


class StreamNoiseOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from a `Stream` (float64) and a public normaliser.

    `noise` and `expected_batch_size` are set by the caller before each step.
    """

    noise: Stream

    def clip_and_accumulate(self) -> None:
        """Clips per record; a record whose gradient is not finite contributes nothing."""
        for parameter in self.params:
            if parameter.grad_sample is not None:
                torch.nan_to_num_(parameter.grad_sample, nan=0.0, posinf=0.0, neginf=0.0)
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Adds N(0, (noise_multiplier * max_grad_norm)^2) to every coordinate of the clipped sum."""
        std = self.noise_multiplier * self.max_grad_norm
        for parameter in self.params:
            noise = torch.from_numpy(self.noise.gaussian(tuple(parameter.shape), std))
            noised = parameter.summed_grad.double() + noise.to(parameter.device)
            parameter.grad = noised.to(parameter.dtype).view_as(parameter)


class PrivateGradients:
    """Clipped, noised gradient sums over a public normaliser (Abadi et al. 2016, algorithm 1).

    Args:
        model: trained in place; wrapped once.
        task: gives the loss of each record.
        max_grad_norm: clip norm of one record's gradient over all parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`.

    Raises:
        ConfigError: a layer has no gradient per record; names the layer.

    Guarantees:
        Adding or removing one record moves the gradient sum before noise by at most max_grad_norm.
        An empty batch is a step of noise alone.
    """

    def __init__(self, model: nn.Module, task: Task, max_grad_norm: float, noise_multiplier: float) -> None:
        self.task = task
        errors = ModuleValidator.validate(model, strict=False)
        if errors:
            raise ConfigError(
                f"the model cannot be trained with record-level privacy: {_reason(errors)}", key="task"
            )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that noise is not from torchcsprng: it is not used
            self.module = GradSampleModule(model, loss_reduction="sum")
            self.optimizer = StreamNoiseOptimizer(
                torch.optim.SGD(model.parameters(), lr=0.0),  # never steps: the caller owns the update rule
                noise_multiplier=noise_multiplier,
                max_grad_norm=max_grad_norm,
                expected_batch_size=1,
                loss_reduction="mean",
            )

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """Sets `.grad` to (clipped sum + noise) / normaliser; skips the forward pass of an empty batch."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.noise = noise
        self.optimizer.expected_batch_size = normaliser
        if batch.num_rows:
            with (
                warnings.catch_warnings()
            ):  # the first layer's hook fires although its input needs no gradient
                warnings.filterwarnings("ignore", message="Full backward hook is firing")
                self.task.loss(self.module(batch.features), batch.targets).sum().backward()  # type: ignore[no-untyped-call]
        else:
            for parameter in self.optimizer.params:
                parameter.grad_sample = parameter.new_zeros((0, *parameter.shape))
        self.optimizer.pre_step()


def _reason(errors: Sequence[Exception]) -> str:
    return "; ".join(" ".join(str(error).split()) for error in errors[:3])
