"""One step's private gradient by book-keeping: gradients are clipped per record and never made per record.

For a layer z = W a + b with the gradient g = dL/dz, one record's gradient is g a^T (and g for the bias). So its
squared norm is (|a|^2 + 1) |g|^2 (Goodfellow, "Efficient Per-Example Gradient Computations", 2015), and with clip
factors c the clipped sum is (c * g)^T a: one matrix product per layer, after one backward pass to the layers'
outputs (Bu et al., "Differentially Private Optimization on Large Model at Small Cost", 2022).

A small model's private step costs Opacus many times the plain one, nearly all of it in hooks; here a fraction of that.
What this does not know, `PrivateGradients` does.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from client.noised import fill_noised
from client.training import record_losses
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task
from tacit.tasks.models import Classifier

# Each output is a function of the input at the same place; none has parameters.
ELEMENTWISE: tuple[type[nn.Module], ...] = (
    nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus, nn.Dropout
)  # fmt: skip

_MARGIN = 1e-6  # added to a norm before dividing by it, as Opacus does


class Passed(NamedTuple):
    """What went through one Linear layer: (rows, ..., in) and the loss's gradient at (rows, ..., out)."""

    inputs: Tensor
    gradient: Tensor

    def squared_norms(self, bias: bool) -> Tensor:
        """Squared Euclidean norm of each record's gradient, shape (rows,), float64: no square overflows."""
        if self.inputs.ndim == 2:
            a, g = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float64).square() for x in self)
            return (a + bias) * g
        # A record with several positions: |sum g a^T|^2 = sum over pairs of positions of (a.a' + 1)(g.g').
        a, g = (x.flatten(1, -2).double() for x in self)
        return ((a @ a.mT + bias) * (g @ g.mT)).sum((1, 2))


class BookKeeping:
    """Clipped, noised gradient sums over a public normaliser, equal to those of `PrivateGradients`.

    Args:
        model: trained in place; one that `supports` accepts.
        task: gives the loss of each record.
        max_grad_norm: clip norm of one record's gradient over all parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`.

    Guarantees:
        Adding or removing one record moves the gradient sum before noise by at most max_grad_norm.
        A record contributes nothing where its gradient, or its norm, is not finite.
        An empty batch is a step of noise alone.
    """

    def __init__(self, model: nn.Module, task: Task, max_grad_norm: float, noise_multiplier: float) -> None:
        if not supports(model):
            raise ValueError("not a plain stack of Linear layers and element-wise activations")
        self.task, self.max_grad_norm = task, max_grad_norm
        self.std = noise_multiplier * max_grad_norm
        self.layers = list(model.children())
        self.parameters = list(model.parameters())

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """Sets `.grad` to (clipped sum + noise) / normaliser; skips the forward pass of an empty batch."""
        if batch.num_rows:
            sums = self._clipped_sums(self._pass(batch))
        else:
            sums = [torch.zeros_like(parameter) for parameter in self.parameters]
        fill_noised(self.parameters, sums, noise, self.std, normaliser)

    def _pass(self, batch: Records) -> list[Passed]:
        """Forward through the layers, back to the output of each Linear one."""
        features, inputs, outputs = batch.features, [], []
        for layer in self.layers:
            inputs.append(features)
            features = layer(features)
            outputs.append(features)
        linear = [i for i, layer in enumerate(self.layers) if isinstance(layer, nn.Linear)]
        loss = record_losses(self.task, features, batch.targets).sum()
        gradients = torch.autograd.grad(loss, [outputs[i] for i in linear])
        return [Passed(inputs[i].detach(), g) for i, g in zip(linear, gradients, strict=True)]
