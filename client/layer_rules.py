"""A record's gradient, clipped and summed, from what passed a layer: one rule per kind of layer.

With a the input of a layer and g the gradient of the loss at its output, a rule gives what one record's gradient
measures (squared, over the layer's own parameters), and then the sum of all records' gradients, each divided by its
own number. Two ways lead there. The gradient of each record can be written out ("instantiated"). Or its length
comes from products between the positions of a record, |sum_t g_t a_t^T|^2 = sum_{t,s} (a_t.a_s)(g_t.g_s) ("ghost
norm"), and the sum is the layer's ordinary gradient with g divided before (Bu et al., "Differentially Private
Optimization on Large Model at Small Cost", 2022). The shapes decide which is less work.

Products of lengths are taken in float64: in float32 the one factor could overflow while the other vanishes, and a
long gradient would pass for a short one. Where the positions of a record cancel, its share in a sum that is made in
float32 is mostly rounding error, which follows the positions and not their sum: a record is never taken for shorter
than `RESOLUTION` of what its positions measure one by one.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEW_POSITIONS: Final = 64  # up to here all pairs of positions cost less than sorting them
RESOLUTION: Final = 2.0**-13  # float32 has 2**-24
FEW_SQUARES: Final = 256  # are added up in float32
CHUNK_FLOATS: Final = 1 << 18  # of unfolded images at a time: they stay in the cache


class Passed(NamedTuple):
    """What passed one layer, the records first, and then, where there are several, the views of each.

    A record's gradient is the sum over its views, as it is over its positions: the loss has the mean in it.

    Attributes:
        inputs: shape (rows, ..., in), images (rows, channels, ...), or indices (rows, ...); with several views
            (rows, views, ...).
        gradient: of the summed loss at the layer's output.
        views: of each record.
    """

    inputs: Tensor
    gradient: Tensor
    views: int = 1

    def __repr__(self) -> str:
        return f"<Passed: {len(self.inputs)} rows>"

    @property
    def images(self) -> tuple[Tensor, Tensor]:
        """Inputs and gradient, each view of a record by itself: shape (rows * views, channels, ...)."""
        if self.views == 1:
            return self.inputs, self.gradient
        return self.inputs.flatten(0, 1), self.gradient.flatten(0, 1)


class Share(NamedTuple):
    """A layer's share in the gradients of a batch.

    Attributes:
        squared: squared length of each record's, shape (rows,).
        add_up: writes the sums over records, each divided by its divisor (shape (rows,)), to the places of the
            weight and the bias; None stands for a parameter that is not there or is not trained.
    """

    squared: Tensor
    add_up: Callable[[Tensor, Tensor | None, Tensor | None], None]


def linear(layer: nn.Linear, passed: Passed) -> Share:
    """z = a W^T + b, at one or several positions of a record."""
    weight, bias = trained(layer)
    if passed.inputs.ndim == 2:
        return _linear_at_one_position(passed, weight, bias)
    a, g = passed.inputs.flatten(1, -2), passed.gradient.flatten(1, -2)
    positions, size_in, size_out = a.shape[1], a.shape[2], g.shape[2]
    # Ghost norms in float64 cost about twice their count; an instantiated gradient is read and written again.
    if not weight or 2 * positions**2 * (size_in + size_out) < size_in * size_out * (positions + 4):
        squared = ghost_norms(a, g, weight, bias)

        def add_up(divisors: Tensor, for_weight: Tensor | None, for_bias: Tensor | None) -> None:
            flat = _divided(g, divisors).flatten(0, 1)
            if for_weight is not None:
                torch.mm(flat.T, a.flatten(0, 1), out=for_weight)
            if for_bias is not None:
                torch.sum(flat, 0, out=for_bias)

        return Share(squared, add_up)
    return _instantiated(torch.bmm(g.mT, a), g.sum(1) if bias else None)


def _linear_at_one_position(passed: Passed, weight: bool, bias: bool) -> Share:
    """The gradient of one record is g a^T, whose length is |a| |g| (Goodfellow, 2015)."""
    a, g, _ = passed
    of_inputs, of_outputs = (torch.linalg.vector_norm(x, dim=1, dtype=torch.float64) for x in (a, g))
    squared = of_outputs * of_outputs
    if weight:
        of_inputs *= of_inputs
        squared = torch.addcmul(squared, of_inputs, squared) if bias else squared * of_inputs

    def add_up(divisors: Tensor, for_weight: Tensor | None, for_bias: Tensor | None) -> None:
        divided = g / divisors.unsqueeze(1)
        if for_weight is not None:
            torch.mm(divided.T, a, out=for_weight)
        if for_bias is not None:
            torch.sum(divided, 0, out=for_bias)

    return Share(squared, add_up)


def embedding(layer: nn.Embedding, passed: Passed) -> Share:
    """Row i of the table gets the gradients of the positions where the index is i; `padding_idx` gets none."""
    indices, g = (
        passed.inputs.unsqueeze(1).flatten(1),
        passed.gradient.reshape(len(passed.inputs), -1, layer.embedding_dim),
    )
    if layer.padding_idx is not None:
        g = torch.where((indices == layer.padding_idx).unsqueeze(2), 0.0, g)
    exact = g.double()
    squared = _resolved(_of_equal_indices(indices, exact), exact.square().sum(2))

    def add_up(divisors: Tensor, for_weight: Tensor | None, for_bias: Tensor | None) -> None:
        assert for_weight is not None
        for_weight.zero_().index_add_(0, indices.flatten(), _divided(g, divisors).flatten(0, 1))

    return Share(squared, add_up)


def _of_equal_indices(indices: Tensor, g: Tensor) -> Tensor:
    """Squared length of each record's sums over positions with one index."""
    rows, positions = indices.shape
    if positions <= FEW_POSITIONS:
        same = indices.unsqueeze(2) == indices.unsqueeze(1)
        # Replaced, not multiplied: what overflows between two indices is no part of the length.
        return torch.where(same, torch.bmm(g, g.mT), 0.0).sum((1, 2))
    table = int(indices.max()) + 1
    keys = torch.arange(rows, device=g.device).unsqueeze(1) * table + indices
    pairs, place = torch.unique(keys.flatten(), return_inverse=True)
    sums = g.new_zeros(len(pairs), g.shape[2]).index_add_(0, place, g.flatten(0, 1))
    return g.new_zeros(rows).index_add_(0, pairs // table, sums.square().sum(1))


def layer_norm(layer: nn.LayerNorm, passed: Passed) -> Share:
    """z = w x + b with x normalised over the last dimensions."""
    weight, bias = trained(layer)
    a, g, _ = passed
    x = F.layer_norm(a, layer.normalized_shape, eps=layer.eps)
    shape = (len(a), -1, *layer.normalized_shape)
    return _instantiated(
        (g * x).reshape(shape).sum(1) if weight else None, g.reshape(shape).sum(1) if bias else None
    )


def group_norm(layer: nn.GroupNorm, passed: Passed) -> Share:
    """z = w x + b per channel, with x normalised over the groups of a record."""
    weight, bias = trained(layer)
    a, g = passed.images
    x = F.group_norm(a, layer.num_groups, eps=layer.eps)
    shape = (len(passed.inputs), passed.views, layer.num_channels, -1)
    return _instantiated(
        (g * x).reshape(shape).sum((1, 3)) if weight else None, g.reshape(shape).sum((1, 3)) if bias else None
    )


def convolution(layer: nn.Conv1d | nn.Conv2d, passed: Passed) -> Share:
    """As a Linear layer over the patches that the kernel meets; its positions are the places of the output."""
    weight, bias = trained(layer)
    images, g = passed.images
    g = g.flatten(2)
    # A patch is the kernel's size and an image has many positions: instantiating is less work but for the last
    # layers of large networks, where the positions are few.
    of_bias = g.sum(2).view(-1, passed.views, layer.out_channels).sum(1) if bias else None
    return _instantiated(patch_gradients(layer, images, g, passed.views) if weight else None, of_bias)


def patch_gradients(layer: nn.Conv1d | nn.Conv2d, images: Tensor, g: Tensor, views: int = 1) -> Tensor:
    """Each record's gradient of a convolution's weight, shape (rows, *weight), from (rows * views, ...) images."""
    images, options = _as_images(layer, images)
    rows, groups, positions = len(images) // views, layer.groups, views * g.shape[2]
    patch = math.prod(layer.weight.shape[1:])
    out = g.new_empty(rows, groups, layer.out_channels // groups, patch)
    chunk = max(1, CHUNK_FLOATS // (groups * patch * positions))
    for start in range(0, rows, chunk):
        some = slice(start * views, (start + chunk) * views)
        patches = _side_by_side(F.unfold(images[some], **options), views, groups)
        gradient = _side_by_side(g[some], views, groups)
        torch.bmm(gradient, patches.mT, out=out[start : start + chunk].view(-1, *out.shape[2:]))
    return out.view(rows, *layer.weight.shape)


def _side_by_side(x: Tensor, views: int, groups: int) -> Tensor:
    """The positions of all views of a record in one row, (rows * groups, ..., views * positions)."""
    apart = x.reshape(-1, views, groups, x.shape[1] // groups, x.shape[2])
    return apart.permute(0, 2, 3, 1, 4).reshape(-1, apart.shape[3], views * apart.shape[4])


def _as_images(layer: nn.Conv1d | nn.Conv2d, images: Tensor) -> tuple[Tensor, dict[str, Any]]:
    """Images of two dimensions, and how a kernel goes over them."""
    options: dict[str, Any] = {name: getattr(layer, name) for name in ("kernel_size", "dilation", "stride")}
    if layer.padding_mode == "zeros" and not isinstance(layer.padding, str):
        options["padding"] = layer.padding
    else:
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        images = F.pad(
            images, layer._reversed_padding_repeated_twice, mode=mode
        )  # what "same" means, torch knows
    if isinstance(layer, nn.Conv2d):
        return images, options
    options = {name: (1, *value) for name, value in options.items()}
    if "padding" in options:
        options["padding"] = (0, *options["padding"][1:])
    return images.unsqueeze(2), options


def ghost_norms(a: Tensor, g: Tensor, weight: bool, bias: bool) -> Tensor:
    """Squared lengths from products between positions; a and g have the shape (rows, positions, ...)."""
    g = g.double()
    lengths = g.square().sum(2)
    if not weight:
        return _resolved(g.sum(1).square().sum(1), lengths) if bias else g.new_zeros(len(g))
    a = a.double()
    squared = ((torch.bmm(a, a.mT) + float(bias)) * torch.bmm(g, g.mT)).sum((1, 2))
    return _resolved(squared, (a.square().sum(2) + float(bias)) * lengths)


def _resolved(squared: Tensor, of_positions: Tensor) -> Tensor:
    """Squared lengths of sums, shape (rows,), and no less than float32 resolves.

    Args:
        squared: as computed; cancellation may have made it negative.
        of_positions: squared length of each position's part, shape (rows, positions).
    """
    return squared.clamp(min=0).maximum((RESOLUTION * of_positions.sqrt().sum(1)).square())


def _instantiated(weight: Tensor | None, bias: Tensor | None) -> Share:
    """From each record's gradient itself."""
    parts = [None if part is None else part.flatten(1) for part in (weight, bias)]
    squared = sum(squared_lengths(part) for part in parts if part is not None)
    assert isinstance(squared, Tensor)

    def add_up(divisors: Tensor, for_weight: Tensor | None, for_bias: Tensor | None) -> None:
        factors = divisors.reciprocal()
        for part, place in zip(parts, (for_weight, for_bias), strict=True):
            if part is not None and place is not None:
                torch.mv(part.T, factors, out=place.view(-1))

    return Share(squared, add_up)


def squared_lengths(x: Tensor) -> Tensor:
    """Of each row, in float64, shape (rows,), right to some 1e-6 of itself whatever is in it.

    float32 loses a part of many squares that are alike. Of a few it loses next to nothing, and these sums are added up
    in float64. (All of it in float64 would copy x, and take 20 times as long.)
    """
    parts = x.shape[1] // FEW_SQUARES
    whole, rest = x[:, : parts * FEW_SQUARES], x[:, parts * FEW_SQUARES :]
    whole = whole.reshape(len(x), parts, FEW_SQUARES)
    squared: Tensor = torch.linalg.vector_norm(whole, dim=2).double().square().sum(1)
    return squared.add_(torch.linalg.vector_norm(rest, dim=1).double().square())


def _divided(g: Tensor, divisors: Tensor) -> Tensor:
    return g / divisors.view(-1, *[1] * (g.ndim - 1))


def trained(layer: nn.Module) -> tuple[bool, bool]:
    """Whether the layer has a weight, and a bias, that is trained."""
    weight, bias = (getattr(layer, name, None) for name in ("weight", "bias"))
    return weight is not None and weight.requires_grad, bias is not None and bias.requires_grad


RULES: Final[dict[type[nn.Module], Callable[[Any, Passed], Share]]] = {
    nn.Linear: linear,
    nn.Embedding: embedding,
    nn.LayerNorm: layer_norm,
    nn.GroupNorm: group_norm,
    nn.Conv1d: convolution,
    nn.Conv2d: convolution,
}
