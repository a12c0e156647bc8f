"""One step's private gradient by book-keeping: gradients are clipped per record and never made per record.

For a layer z = W a + b with the gradient g = dL/dz, one record's gradient is g a^T (and g for the bias). So its
squared norm is (|a|^2 + 1) |g|^2 (Goodfellow, "Efficient Per-Example Gradient Computations", 2015), and with clip
factors c the clipped sum is (c g)^T a: one product of matrices per layer, after one backward pass to the layers'
outputs (Bu et al., "Differentially Private Optimization on Large Model at Small Cost", 2022).

In a small model Opacus' hooks cost several times the arithmetic, and this saves them. Whatever `supports` does not
know is left to `PrivateGradients`.
"""

from __future__ import annotations

import math
from functools import reduce
from itertools import chain
from typing import NamedTuple

import torch
from torch import Tensor, nn

from client.noised import NoisedSum
from client.training import record_losses
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task
from tacit.tasks.models import Classifier

# Without parameters; an output depends on the input at its own place alone.
ELEMENTWISE = frozenset(
    {nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus}
    | {nn.Dropout}
)

MARGIN = 1e-6  # added to a norm before it divides, as Opacus does


class Passed(NamedTuple):
    """What passed one Linear layer.

    Attributes:
        inputs: shape (rows, ..., in).
        gradient: of the summed loss at the layer's output, shape (rows, ..., out).
    """

    inputs: Tensor
    gradient: Tensor

    def __repr__(self) -> str:
        return f"<Passed: {len(self.inputs)} rows>"

    def squared_norms(self, bias: bool) -> Tensor:
        """Squared Euclidean norm of each record's gradient, shape (rows,), in float64."""
        # Not in float32: |a|^2 could overflow while |g|^2 vanishes, and a long gradient would pass for a short one.
        if self.inputs.ndim == 2:
            norms = [torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in self]
            a, g = (norm * norm for norm in norms)
            squared: Tensor = (a + bias) * g
            return squared
        # Several positions in a record: |sum g a^T|^2 is a sum over pairs of positions, of (a.a' + 1)(g.g').
        a, g = (x.flatten(1, -2).double() for x in self)
        return ((a @ a.mT + bias) * (g @ g.mT)).sum((1, 2))


class BookKeeping:
    """Clipped, noised gradient sums over a public normaliser, equal to those of `PrivateGradients`.

    Args:
        model: trained in place; one that `supports` accepts.
        task: gives the loss of each record.
        max_grad_norm: clip norm of one record's gradient over all parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`.

    Raises:
        ValueError: `supports` does not accept the model.
        ConfigError: in `fill`, a built-in model meets records of another width, or the loss is not per record.

    Guarantees:
        Adding or removing one record moves the gradient sum before noise by at most max_grad_norm.
        A record contributes nothing where its gradient, or its norm, is not finite.
        An empty batch is a step of noise alone.
    """

    def __init__(self, model: nn.Module, task: Task, max_grad_norm: float, noise_multiplier: float) -> None:
        if not supports(model):
            raise ValueError("the model is not a plain stack of Linear layers and element-wise activations")
        self.task, self.max_grad_norm, self.noise_multiplier = task, max_grad_norm, noise_multiplier
        self.model = model
        self.layers = stack(model)
        self.biases = [layer.bias is not None for layer in self.layers if isinstance(layer, nn.Linear)]
        self.total = NoisedSum(list(model.parameters()))

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """Sets `.grad` to (clipped sum + noise) / normaliser; skips the forward pass of an empty batch."""
        if batch.num_rows:
            self._add_up(self._pass(batch))
        else:
            self.total.clear()
        self.total.fill(noise, self.noise_multiplier, normaliser / self.max_grad_norm)

    def _pass(self, batch: Records) -> list[Passed]:
        """Forward through all layers, back to the output of each Linear one."""
        features, inputs, outputs = batch.features, [], []
        if isinstance(self.model, Classifier):
            self.model.check_width(features)
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                inputs.append(features.detach())
                outputs.append(features := layer(features))
            else:
                features = layer(features)
        loss = record_losses(self.task, features, batch.targets).sum()
        return [Passed(a, g) for a, g in zip(inputs, torch.autograd.grad(loss, outputs), strict=True)]

    def _add_up(self, passed: list[Passed]) -> None:
        """Writes each parameter's clipped sum, in units of `max_grad_norm`."""
        squared = [layer.squared_norms(bias) for layer, bias in zip(passed, self.biases, strict=True)]
        norms = reduce(torch.add, squared).to(passed[0].gradient.dtype).sqrt()
        if not math.isfinite(norms.sum().item()):
            finite = norms.isfinite()
            norms, passed = norms[finite], [Passed(a[finite], g[finite]) for a, g in passed]
        divisors = (norms + MARGIN).clamp(min=self.max_grad_norm)
        sums = iter(self.total.sums)
        for (a, g), bias in zip(passed, self.biases, strict=True):
            g = (g / divisors.view(-1, *[1] * (g.ndim - 1))).flatten(0, -2)
            torch.mm(g.T, a.flatten(0, -2), out=next(sums))
            if bias:
                torch.sum(g, 0, out=next(sums))


def supports(model: nn.Module) -> bool:
    """Whether the model is a plain stack of Linear layers and element-wise activations, all of it trained."""
    if type(model).forward not in (nn.Sequential.forward, Classifier.forward):
        return False
    layers = stack(model)
    owned = chain.from_iterable(layer.parameters() for layer in layers)  # a shared one comes twice
    return (
        any(type(layer) is nn.Linear for layer in layers)
        and all(_known(layer) for layer in layers)
        and len(list(owned)) == len(list(model.parameters()))
        and all(parameter.requires_grad for parameter in model.parameters())
    )


def stack(model: nn.Module) -> list[nn.Module]:
    """The layers in the order that a record passes them; one that is used twice is there twice."""
    return list(model) if isinstance(model, nn.Sequential) else []


def _known(layer: nn.Module) -> bool:
    """Whether the layer is of exactly a known kind, and writes over nothing that the backward pass reads."""
    if type(layer) is nn.Flatten:
        return (layer.start_dim, layer.end_dim) == (1, -1)
    return type(layer) is nn.Linear or (type(layer) in ELEMENTWISE and not getattr(layer, "inplace", False))
