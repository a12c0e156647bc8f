"""One step's private gradient by book-keeping: one backward pass to the outputs of the layers, and a rule for each.

The gradients with respect to the layers' outputs and the layers' inputs are all that is needed to clip per record
(`client.layer_rules`); the parameters' own gradients are never made by autograd. In a small model Opacus' hooks cost
several times the arithmetic, in a large one they write out what need not be written; this saves both. Whatever
`unknown` names is left to `PrivateGradients`.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from functools import reduce
from itertools import chain
from math import isfinite
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import GradientEdge, get_gradient_edge

from client.layer_rules import RULES, Passed, trained
from client.noised import NoisedSum
from client.precision import layers_in, widened
from client.training import portions, record_losses
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task
from tacit.tasks.models import Classifier

# Without parameters; an output depends on the input at its own place alone.
ELEMENTWISE = frozenset(
    {nn.Identity, nn.ReLU, nn.LeakyReLU, nn.ELU, nn.SELU, nn.GELU, nn.SiLU, nn.Tanh, nn.Sigmoid, nn.Softplus}
    | {nn.Dropout}
)

MARGIN = 1e-6  # added to a norm before it divides, as Opacus does


class NoRule(Exception):
    """The model does in its forward pass what book-keeping has no rule for; the message says what."""


class _Call(NamedTuple):
    """One call of a layer: its input, the version of it, and where its output hangs in autograd's graph.

    The edge is taken before anything can write over the output, so it stays that of the layer.
    """

    inputs: Tensor
    version: int
    edge: GradientEdge


class BookKeeping:
    """Clipped, noised gradient sums over a public normaliser, equal to those of `PrivateGradients`.

    Args:
        model: trained in place; one in which `unknown` finds nothing.
        task: gives the loss of each record.
        max_grad_norm: clip norm of one record's gradient over all parameters.
        noise_multiplier: noise standard deviation over `max_grad_norm`.
        max_batch: most records that pass at once; 0 = the whole batch.
        precision: of the layers, "float32" or "bfloat16".

    Raises:
        ValueError: `unknown` finds something.
        NoRule: in `fill`, before anything is written: the forward pass does what no rule is for.
        ConfigError: in `fill`, a built-in model meets records of another width, or the loss is not per record.

    Guarantees:
        Adding or removing one record moves the gradient sum before noise by at most max_grad_norm, where no loss
            of a record depends on another record.
        In either precision a record's contribution, in float32, is no longer than max_grad_norm.
        A record with several views moves it by no more: its gradient is the mean over them, and is clipped then.
        A record contributes nothing where its gradient, or its norm, is not finite.
        An empty batch is a step of noise alone.
    """

    engine = "per record by book-keeping"

    def __init__(
        self,
        model: nn.Module,
        task: Task,
        max_grad_norm: float,
        noise_multiplier: float,
        max_batch: int = 0,
        precision: str = "float32",
    ) -> None:
        if reason := unknown(model):
            raise ValueError(reason)
        self.max_batch, self.precision = max_batch, precision
        self.task, self.max_grad_norm, self.noise_multiplier = task, max_grad_norm, noise_multiplier
        self.model = model
        self.stack = stack(model) if supports(model) else []
        self.layers = [layer for layer in model.modules() if type(layer) in RULES and any(trained(layer))]
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self.total = NoisedSum(parameters)
        place: dict[Any, Tensor] = dict(zip(parameters, self.total.sums, strict=True))
        self.places = [
            tuple(place.get(getattr(layer, name, None)) for name in ("weight", "bias"))
            for layer in self.layers
        ]
        # What a plain stack calls, and how often, it shows before it is called.
        self.checked = bool(self.stack)

    def fill(self, batch: Records, normaliser: float, noise: Stream) -> None:
        """Sets `.grad` to (clipped sum + noise) / normaliser; skips the forward pass of an empty batch."""
        if not batch.num_rows:
            self.total.clear()
        for number, part in enumerate(portions(batch, self.max_batch)):
            before = self.total.copy() if number else None
            self._add_up(self._stacked_pass(part) if self.stack else self._pass(part))
            if before is not None:
                self.total.add(before)
        self.total.fill(noise, self.noise_multiplier, normaliser / self.max_grad_norm)

    def _stacked_pass(self, batch: Records) -> list[Passed | None]:
        """Through a plain stack without hooks, which in a small model cost as much as the layers."""
        features, inputs, outputs = batch.inputs, [], []
        if isinstance(self.model, Classifier):
            self.model.check_width(features)
        with layers_in(self.precision, features.device):
            for layer in self.stack:
                if isinstance(layer, nn.Linear):
                    inputs.append(features.detach())
                    outputs.append(features := layer(features))
                else:
                    features = layer(features)
        loss = record_losses(self.task, features, batch.targets, batch.views).sum()
        gradients = torch.autograd.grad(loss, outputs)
        return [
            _of_records(widened(a), widened(g), batch.views) for a, g in zip(inputs, gradients, strict=True)
        ]

    def _pass(self, batch: Records) -> list[Passed | None]:
        """Through any model, watched by hooks; None for a layer that this batch does not call."""
        calls: list[list[_Call]] = [[] for _ in self.layers]
        hooks = [
            layer.register_forward_hook(_watch(own)) for layer, own in zip(self.layers, calls, strict=True)
        ]
        try:
            with layers_in(self.precision, batch.inputs.device):
                outputs = self.model(batch.inputs)
            losses = record_losses(self.task, outputs, batch.targets, batch.views)
        finally:
            for hook in hooks:
                hook.remove()
        if not self.checked:
            self._check_uses(losses, calls)
            self.checked = True
        edges = [call.edge for own in calls for call in own]
        gradients = iter(torch.autograd.grad(losses.sum(), edges, allow_unused=True))
        return [
            _merged(layer, own, [next(gradients) for _ in own], batch)
            for layer, own in zip(self.layers, calls, strict=True)
        ]

    def _check_uses(self, losses: Tensor, calls: list[list[_Call]]) -> None:
        """Raises `NoRule` if a parameter reaches the losses otherwise than through the calls of its layer."""
        uses = _uses(losses)
        for layer, own in zip(self.layers, calls, strict=True):
            for parameter in layer._parameters.values():
                if parameter is not None and uses[parameter] > len(own):
                    raise NoRule(
                        f"a parameter of a {type(layer).__name__} is used past the layer it belongs to"
                    )

    @torch.inference_mode()  # a small model's step is mostly calls, and these come cheaper
    def _add_up(self, passed: list[Passed | None]) -> None:
        """Writes each parameter's clipped sum, in units of `max_grad_norm`."""
        if None in passed:
            self.total.clear()
        shares = [
            (RULES[type(layer)](layer, p), places)
            for layer, p, places in zip(self.layers, passed, self.places, strict=True)
            if p is not None
        ]
        if not shares:
            return
        squared = reduce(torch.add, [share.squared for share, _ in shares])
        # No number where its square is none, as in Opacus.
        norms = squared.to(self.total.sums[0].dtype).sqrt_()
        if not isfinite(norms.sum()):  # of numbers that are not negative
            finite = norms.isfinite()
            if not finite.any():
                self.total.clear()
                return
            if not finite.all():
                self._add_up([p and Passed(p.inputs[finite], p.gradient[finite], p.views) for p in passed])
                return
        divisors = norms.add_(MARGIN).clamp_(min=self.max_grad_norm)
        for share, (weight, bias) in shares:
            share.add_up(divisors, weight, bias)


def _watch(calls: list[_Call]) -> Callable[[nn.Module, tuple[Any, ...], Any], None]:
    """A forward hook that writes a layer's calls down."""

    def hook(layer: nn.Module, args: tuple[Any, ...], output: Any) -> None:
        if len(args) != 1 or not isinstance(output, Tensor) or not output.requires_grad:
            raise NoRule(f"a {type(layer).__name__} is called with keywords, or without a gradient")
        calls.append(_Call(args[0].detach(), args[0]._version, get_gradient_edge(output)))

    return hook


def _merged(
    layer: nn.Module, calls: list[_Call], gradients: list[Tensor | None], batch: Records
) -> Passed | None:
    """All calls of a layer as one.

    Raises:
        NoRule: it cannot be told which part of an input is of which record, or an input was written over.
    """
    kind, num_inputs = type(layer).__name__, batch.num_rows * batch.views
    used = [(call, g) for call, g in zip(calls, gradients, strict=True) if g is not None]
    for call, g in used:
        if call.inputs._version != call.version:
            raise NoRule(f"the input of a {kind} is written over")
        if not len(call.inputs) == len(g) == num_inputs or call.inputs.ndim < _least_dimensions(layer):
            raise NoRule(f"the input of a {kind} has other than one entry for each record")
    if len(used) > 1 and type(layer) is not nn.Linear:
        raise NoRule(f"a {kind} is called more than once")
    columns = [widened(call.inputs) for call, _ in used], [widened(g) for _, g in used]
    if len(used) < 2:
        return _of_records(columns[0][0], columns[1][0], batch.views) if used else None
    a, g = (torch.cat([x.reshape(batch.num_rows, -1, x.shape[-1]) for x in xs], 1) for xs in columns)
    return Passed(a, g)


def _of_records(inputs: Tensor, gradient: Tensor, views: int) -> Passed:
    """What passed, with the views of a record on an axis of their own."""
    if views == 1:
        return Passed(inputs, gradient)
    a, g = (x.reshape(-1, views, *x.shape[1:]) for x in (inputs, gradient))
    return Passed(a, g, views)


def _least_dimensions(layer: nn.Module) -> int:
    if isinstance(layer, nn.LayerNorm):
        return 1 + len(layer.normalized_shape)
    return {nn.Conv1d: 3, nn.Conv2d: 4, nn.Embedding: 1}.get(type(layer), 2)


def _uses(losses: Tensor) -> Counter[Any]:
    """How often each leaf of the graph that made the losses is an operand."""
    uses: Counter[Any] = Counter()
    nodes, seen = [losses.grad_fn], {losses.grad_fn}
    while nodes:
        node = nodes.pop()
        for operand, _ in node.next_functions if node else ():
            if operand is not None and hasattr(operand, "variable"):
                uses[operand.variable] += 1
            elif operand is not None and operand not in seen:
                seen.add(operand)
                nodes.append(operand)
    return uses


def unknown(model: nn.Module) -> str:
    """What in the model book-keeping has no rule for, in words; empty if nothing."""
    owners: Counter[Any] = Counter()
    for name, layer in model.named_modules():
        own = [p for p in layer._parameters.values() if p is not None and p.requires_grad]
        owners.update(own)
        where = f"layer {name or 'model'!r} ({type(layer).__name__})"
        if isinstance(layer, nn.modules.batchnorm._NormBase):
            return f"{where} mixes records or keeps something of them"
        if own and not (type(layer) in RULES and _as_it_comes(layer)):
            return f"no rule for {where}"
    if not owners:
        return "nothing is trained"
    return "two layers share a parameter" if max(owners.values()) > 1 else ""


def _as_it_comes(layer: nn.Module) -> bool:
    """Whether nothing was hung on the layer that changes what it computes, or ties records together."""
    bare = (
        set(layer._parameters) <= {"weight", "bias"} and not layer._buffers and "forward" not in vars(layer)
    )
    if isinstance(layer, nn.Embedding):  # a table that is scaled by its use, or renormed, by the batch
        bare = bare and layer.max_norm is None and not layer.scale_grad_by_freq and not layer.sparse
    return bare and not layer._forward_pre_hooks and not layer._forward_hooks


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
    if type(layer) is nn.Linear:
        return not layer._buffers  # a frozen layer's weights
    return type(layer) in ELEMENTWISE and not getattr(layer, "inplace", False)
