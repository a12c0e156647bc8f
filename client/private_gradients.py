"""One step's private gradient: Opacus clips per record, our stream adds the noise.

The fallback for models that `client.bookkeeping` does not know, and the reference that it is tested against.

Opacus 1.6 draws noise from torch's generator (its secure mode needs a package that no longer installs) and takes
the normaliser from the batch; both are replaced here. What Opacus does well, gradients per record, it keeps doing.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from opacus import GradSampleModule
from opacus.optimizers import DPOptimizer
from opacus.validators import ModuleValidator
from torch import Tensor, nn

from client.layer_rules import squared_lengths
from client.noised import NoisedSum
from client.precision import layers_in, widened
from client.training import portions, record_losses
from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task

SHORT: Final = 1 + 1e-5  # times its norm in float32: what is longer has not been rounded but lost


class WideGradients(GradSampleModule):  # type: ignore[misc]
    """Opacus' gradients per record, in float32 also where the layers were in bfloat16: so no norm is taken in that."""

    def rearrange_grad_samples(self, **what: Any) -> tuple[list[Tensor], Tensor]:
        """What passed a layer: its inputs, and the gradient at its output."""
        activations, backprops = super().rearrange_grad_samples(**what)
        return [widened(activation) for activation in activations], widened(backprops)


class StreamNoiseOptimizer(DPOptimizer):  # type: ignore[misc]
    """Opacus' optimiser with noise from a `Stream` (float64) and a public normaliser.

    `total`, `noise` and `normaliser` are set by the caller before each step.
    """

    total: NoisedSum
    noise: Stream
    normaliser: float

    def clip_and_accumulate(self) -> None:
        """Clips per record; a record contributes nothing where its gradient, or its norm, is not finite.

        Opacus adds norms up in float32. A record whose norm falls short there is clipped before, and comes through.
        """
        samples = self.grad_samples
        if len(samples[0]):
            finite = torch.stack([torch.isfinite(g.reshape(len(g), -1)).all(dim=1) for g in samples])
            if not finite.all():
                for sample in samples:
                    sample[~finite.all(dim=0)] = 0.0
            flat = [g.reshape(len(g), -1) for g in samples]
            norms = torch.stack([squared_lengths(g) for g in flat]).sum(0).sqrt()
            seen = torch.stack([g.norm(2, dim=1) for g in flat]).norm(2, dim=0)
            if (short := (norms > SHORT * seen) & (norms > self.max_grad_norm)).any():
                factors = self.max_grad_norm / norms[short]
                for sample in samples:
                    sample[short] *= factors.to(sample).view(-1, *[1] * (sample.ndim - 1))
        super().clip_and_accumulate()

    def add_noise(self) -> None:
        """Adds N(0, (noise_multiplier * max_grad_norm)^2) to every coordinate, and divides."""
        for place, parameter in zip(self.total.sums, self.params, strict=True):
            place.copy_(parameter.summed_grad.view_as(parameter))
        self.total.fill(self.noise, self.noise_multiplier * self.max_grad_norm, self.normaliser)


class PrivateGradients:
    """Clipped, noised gradient sums over a public normaliser (Abadi et al. 2016, algorithm 1).

    Args:
        model: trained in place; wrapped once, and anew after a step that failed.
        task: gives the loss of each record.
        max_grad_norm: clip norm of one record's gradient over all parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`.
        max_batch: most records that pass at once; 0 = the whole batch.
        precision: of the layers, "float32" or "bfloat16".
        reason: why book-keeping would not do.

    Raises:
        ConfigError: a layer has no gradient per record; names the layer.

    Guarantees:
        Adding or removing one record moves the gradient sum before noise by at most max_grad_norm, where no loss
            of a record depends on another record.
        In either precision a record's contribution, in float32, is no longer than max_grad_norm.
        A record with several views moves it by no more: its gradient is the mean over them, and is clipped then.
        An empty batch is a step of noise alone.
        A step that fails leaves no gradient, and nothing of it is in a later one.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        max_grad_norm: float,
        noise_multiplier: float,
        max_batch: int = 0,
        precision: str = "float32",
        reason: str = "",
    ) -> None:
        self.task, self.max_batch, self.precision = task, max_batch, precision
        self.engine = f"per record by opacus{reason and f': {reason}'}"
        self.model = model
        if problems := list(unsupported(model)):
            raise ConfigError(
                f"the model cannot be trained with record-level privacy: {'; '.join(problems)}", key="task"
            )
        self.bounds = {"noise_multiplier": noise_multiplier, "max_grad_norm": max_grad_norm}
        self._watch()

    def _watch(self) -> None:
        """Hangs Opacus on the model, as if it never had been there."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # that noise is not from torchcsprng: it is not used
            self.module = WideGradients(self.model, loss_reduction="sum")
            self.optimizer = StreamNoiseOptimizer(
                torch.optim.SGD(
                    self.model.parameters(), lr=0.0
                ),  # never steps: the caller owns the update rule
                expected_batch_size=None,
                loss_reduction="sum",  # Opacus divides by nothing
                **self.bounds,
            )
        self.optimizer.total = NoisedSum(self.optimizer.params)

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """Sets `.grad` to (clipped sum + noise) / normaliser; skips the forward pass of an empty batch."""
        self.optimizer.noise, self.optimizer.normaliser = noise, normaliser
        try:
            self._add_up(batch)
            self.optimizer.add_noise()
        except BaseException:  # a step may end anywhere: out of memory, Ctrl-C, an error of the task
            self.module.to_standard_module()
            self.model.zero_grad(set_to_none=True)
            self._watch()
            raise

    def _add_up(self, batch: Records) -> None:
        """The clipped sum, a part of the batch after the other."""
        for parameter in self.optimizer.params:
            parameter.summed_grad = None
        for part in list(portions(batch, self.max_batch)) or [batch]:
            for parameter in self.optimizer.params:
                parameter.grad = parameter.grad_sample = None
            if part.num_rows:
                self._backward(part)
            self._fill_unused(part.num_rows)
            self.optimizer.clip_and_accumulate()

    def _backward(self, part: Records) -> None:
        """Gradients per record of a part of the batch."""
        with warnings.catch_warnings():  # the first layer's hook fires although its input needs no gradient
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            with layers_in(self.precision, part.inputs.device):
                outputs = self.module(part.inputs)
            losses = record_losses(self.task, outputs, part.targets, part.views)
            losses.sum().backward()  # type: ignore[no-untyped-call]
        if part.views > 1:
            self._add_views(part.views)

    def _add_views(self, views: int) -> None:
        """Makes one gradient of those of a record's views, each of which has its share in the mean already."""
        parameter: Any
        for parameter in self.model.parameters():
            if (samples := getattr(parameter, "grad_sample", None)) is not None:
                parameter.grad_sample = samples.unflatten(0, (-1, views)).sum(1)

    def _fill_unused(self, num_rows: int) -> None:
        """Zeros for a parameter that the loss of this batch does not depend on: noise is its whole gradient.

        Raises:
            ConfigError: the loss does depend on it, past the layers that Opacus watches.
        """
        parameter: Any  # Opacus hangs `grad_sample` on it
        for name, parameter in self.model.named_parameters():
            if parameter.requires_grad and parameter.grad_sample is None:
                if parameter.grad is not None:
                    raise ConfigError(f"parameter {name!r} has no gradient per record", key="task")
                parameter.grad_sample = parameter.new_zeros((num_rows, *parameter.shape))


def unsupported(model: nn.Module) -> Iterator[str]:
    """A line for each layer that mixes records, keeps something of them or has no gradient per record.

    Opacus looks only at layers with parameters to train, knows no RNN, and names no layer; hence this walk.
    """
    for name, layer in model.named_modules():
        trains = any(parameter.requires_grad for parameter in layer.parameters(recurse=False))
        normalises = isinstance(layer, nn.modules.batchnorm._NormBase)
        where = f"layer {name or 'model'!r} ({type(layer).__name__})"
        errors = ModuleValidator.VALIDATORS.get(type(layer), lambda layer: [])(layer)
        if (trains or normalises) and errors:
            yield f"{where}: {' '.join(str(errors[0]).split('. ')[0].split())}"
        elif trains and isinstance(layer, nn.RNNBase):
            yield f"{where}: its steps have no gradient per record"
        elif trains and any(True for _ in layer.buffers()):
            yield f"{where}: it has buffers, which could carry records past the noise"
