"""Book-keeping against Opacus and against one record at a time."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import hypothesis.strategies as st
import torch
from hypothesis import given, settings
from torch import nn
from torch.nn import functional as F

from client.bookkeeping import ELEMENTWISE, BookKeeping, supports
from client.private_gradients import PrivateGradients
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records


class Classes:
    """Cross-entropy of each record; where a record has several positions, its sum over them."""

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return (
            F.cross_entropy(outputs.mT if outputs.ndim == 3 else outputs, targets, reduction="none")
            .reshape(len(targets), -1)
            .sum(1)
        )


ACTIVATIONS = sorted(ELEMENTWISE - {nn.Dropout}, key=lambda kind: kind.__name__)


@st.composite
def problems(draw: Any) -> tuple[nn.Sequential, Records, float]:
    """A stack of Linear layers, a batch of 0 to 40 records, and a clip norm from far below to far above its norms."""
    widths = draw(st.lists(st.integers(1, 9), min_size=2, max_size=4))
    rows, positions = draw(st.sampled_from([0, 1, 2, 7, 40])), draw(st.sampled_from([(), (), (1,), (3,)]))
    torch.manual_seed(draw(st.integers(0, 2**31)))
    layers: list[nn.Module] = [nn.Flatten()] if draw(st.booleans()) and not positions else []
    for i, (size_in, size_out) in enumerate(pairwise(widths)):
        layers += [draw(st.sampled_from(ACTIVATIONS))()] if i else []
        layers.append(nn.Linear(size_in, size_out, bias=draw(st.booleans())))
    features = torch.randn(rows, *positions, widths[0]) * draw(st.sampled_from([0.1, 1.0, 30.0]))
    targets = torch.randint(0, widths[-1], (rows, *positions))
    return nn.Sequential(*layers), Records(features, targets), 10.0 ** draw(st.integers(-3, 3))


def filled(gradients: Any, model: nn.Module, records: Records, normaliser: float) -> list[torch.Tensor]:
    gradients.fill(records, normaliser, Stream(SeededKeys(1).key("noise")))
    return [parameter.grad for parameter in model.parameters()]


def by_opacus(model: nn.Module, records: Records, clip: float, noise: float) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    return filled(PrivateGradients(model, Classes(), clip, noise), model, records, normaliser(records))


def by_bookkeeping(model: nn.Module, records: Records, clip: float, noise: float) -> list[torch.Tensor]:
    return filled(BookKeeping(model, Classes(), clip, noise), model, records, normaliser(records))


def one_at_a_time(model: nn.Module, records: Records, clip: float) -> list[list[torch.Tensor]]:
    """The clipped gradient of each record by itself, in float64: float32 loses much of a loss near zero."""
    model, clipped = copy.deepcopy(model).double(), []
    for i in range(records.num_rows):
        outputs = model(records.features[i : i + 1].double())
        loss = Classes().loss(outputs, records.targets[i : i + 1]).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        factor = min(1.0, clip / (length(gradient) + 1e-6))
        clipped.append([g * factor for g in gradient])
    return clipped


def normaliser(records: Records) -> float:
    return max(1.0, 0.9 * records.num_rows)


def length(gradient: Iterable[torch.Tensor]) -> float:
    return math.sqrt(sum(float(g.double().square().sum()) for g in gradient))


def assert_equal(
    got: list[torch.Tensor], wanted: list[torch.Tensor], records: list[list[torch.Tensor]]
) -> None:
    """To 1e-6 of the longest record's gradient; their sum may be nothing, where they cancel."""
    longest = max(map(length, records), default=0.0)
    for g, w in zip(got, wanted, strict=True):
        assert (g.shape, g.dtype) == (w.shape, w.dtype)
        torch.testing.assert_close(g, w, rtol=1e-6, atol=1e-6 * longest)


@settings(max_examples=150, deadline=None)
@given(problems(), st.sampled_from([0.0, 1.3]))
def test_gradient_sums_are_equal_to_those_of_private_gradients(problem: Any, noise: float) -> None:
    model, records, clip = problem
    assert supports(model)
    got, wanted = (f(model, records, clip, noise) for f in (by_bookkeeping, by_opacus))
    assert_equal(got, wanted, one_at_a_time(model, records, clip))


@settings(max_examples=80, deadline=None)
@given(problems())
def test_gradient_sums_are_those_of_one_record_at_a_time(problem: Any) -> None:
    model, records, clip = problem
    each = one_at_a_time(model, records, clip)
    total = [torch.zeros_like(parameter, dtype=torch.float64) for parameter in model.parameters()]
    for gradient in each:
        total = [t + g for t, g in zip(total, gradient, strict=True)]
    doubled = Records(records.features.double(), records.targets)
    got = by_bookkeeping(model.double(), doubled, clip, 0.0)
    assert_equal(got, [t / normaliser(records) for t in total], each)


@settings(max_examples=80, deadline=None)
@given(problems(), st.sampled_from([1.0, 1e6, 1e20, 3e38, math.inf, math.nan]))
def test_adding_one_record_moves_the_sum_by_at_most_max_grad_norm(problem: Any, size: float) -> None:
    model, records, clip = problem
    if not records.num_rows:
        return
    features = records.features.clone()
    features[-1] *= size
    fewer = Records(features[:-1], records.targets[:-1])
    gradients = BookKeeping(model, Classes(), clip, 0.0)
    more = [
        gradient.clone() for gradient in filled(gradients, model, Records(features, records.targets), 1.0)
    ]
    moved = [m - g for m, g in zip(more, filled(gradients, model, fewer, 1.0), strict=True)]
    assert length(moved) <= clip * (1 + 1e-5 * len(features))
