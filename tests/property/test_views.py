"""Several views of one record: whatever way its gradient takes, it is the mean over them, clipped once."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from client.bookkeeping import BookKeeping, unknown
from client.layer_rules import RULES, Passed
from client.private_gradients import PrivateGradients
from client.training import PlainGradients
from client.views import Views
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records
from tests.property.test_layer_rules import MODELS, Classes, layers


class Twice(nn.Module):
    """Calls one layer twice, and has a parameter of its own, which only Opacus knows a way for."""

    def __init__(self, own: bool) -> None:
        super().__init__()
        self.inner, self.head = nn.Linear(6, 6), nn.Linear(6, 3)
        self.scale = nn.Parameter(torch.tensor(1.5), requires_grad=own)

    def forward(self, features: Tensor) -> Tensor:
        result: Tensor = self.scale * self.head(torch.tanh(self.inner(torch.tanh(self.inner(features)))))
        return result


def flat(*axes: int) -> Any:
    return lambda rows: torch.randn(rows, *axes)


WHOLE: dict[str, Any] = {
    **MODELS,
    "mlp": (lambda: nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3)), flat(6)),
    "flattened": (lambda: nn.Sequential(nn.Flatten(), nn.Linear(6, 3)), flat(2, 3)),
    "twice": (lambda: Twice(own=False), flat(6)),
    "series": (
        lambda: nn.Sequential(
            nn.Conv1d(2, 4, 3, groups=2), nn.GroupNorm(2, 4), nn.Flatten(), nn.Linear(20, 3)
        ),
        flat(2, 7),
    ),
    "own": (lambda: Twice(own=True), flat(6)),
}
WAYS = [(BookKeeping, name) for name in WHOLE if name != "own"] + [
    (PrivateGradients, name) for name in ("cnn", "text without padding", "mlp", "series", "own")
]


def problem(name: str, seed: int, rows: int, views: int) -> tuple[nn.Module, Views]:
    torch.manual_seed(seed)
    make, draw = WHOLE[name]
    model, features = make(), draw(rows * views)
    return model, Views(features.view(rows, views, *features.shape[1:]), torch.randint(0, 3, (rows,)))


def filled(kind: Any, model: nn.Module, batch: Records, clip: float, most: int = 0) -> list[Tensor]:
    model = copy.deepcopy(model)
    kind(model, Classes(), clip, 0.0, most).fill(batch, 2.0, Stream(SeededKeys(1).key("noise")))
    return [p.grad for p in model.parameters() if p.requires_grad and p.grad is not None]


def one_at_a_time(model: nn.Module, batch: Views, clip: float) -> list[Tensor]:
    """The definition: of each record the mean of its views' gradients, clipped; their sum over the normaliser 2."""
    model = copy.deepcopy(model).double()
    features = batch.features.double() if batch.features.is_floating_point() else batch.features
    parameters = [p for p in model.parameters() if p.requires_grad]
    sums = [torch.zeros_like(p) for p in parameters]
    for views, target in zip(features, batch.targets, strict=True):
        each = [
            torch.autograd.grad(Classes().loss(model(view[None]), target[None]).sum(), parameters)
            for view in views
        ]
        mean = [torch.stack(parts).mean(0) for parts in zip(*each, strict=True)]
        length = math.sqrt(sum(float(g.square().sum()) for g in mean))
        sums = [s + g * min(1.0, clip / (length + 1e-6)) / 2.0 for s, g in zip(sums, mean, strict=True)]
    return sums


@pytest.mark.parametrize(("kind", "name"), WAYS, ids=[f"{kind.__name__}-{name}" for kind, name in WAYS])
@settings(max_examples=6)
@given(st.integers(0, 2**31), st.integers(1, 6), st.integers(2, 5), st.sampled_from([1e-2, 0.5, 1e3]))
def test_the_clipped_sum_with_views_is_that_of_one_record_at_a_time(
    kind: Any, name: str, seed: int, rows: int, views: int, clip: float
) -> None:
    model, batch = problem(name, seed, rows, views)
    assert bool(unknown(model)) == (name == "own")
    wanted = one_at_a_time(model, batch, clip)
    for most in (0, 2):
        for got, right in zip(filled(kind, model, batch, clip, most), wanted, strict=True):
            torch.testing.assert_close(got.double(), right, rtol=1e-5, atol=1e-5 * min(1.0, clip))


@settings(max_examples=120)
@given(layers(), st.integers(2, 4), st.sampled_from(["all", "weight", "bias"]))
def test_a_rule_adds_up_the_views_of_each_record(layer_and_inputs: Any, views: int, which: str) -> None:
    layer, inputs = layer_and_inputs
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(which in ("all", name))
    parameters = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    if not parameters:
        return
    seen = inputs.repeat_interleave(views, 0)
    if seen.is_floating_point():
        seen = seen + 0.1 * torch.randn_like(seen)
    gradient = torch.randn_like(layer(seen))
    a, g = (x.reshape(len(inputs), views, *x.shape[1:]) for x in (seen, gradient))
    each = [torch.autograd.grad(layer(a[i]), list(parameters.values()), g[i]) for i in range(len(inputs))]
    share = RULES[type(layer)](layer, Passed(a, g, views))
    lengths = torch.stack([torch.stack([x.double().square().sum() for x in one]).sum() for one in each])
    torch.testing.assert_close(share.squared, lengths, rtol=1e-4, atol=1e-7)
    places = {name: torch.full_like(p, math.nan) for name, p in parameters.items()}
    divisors = torch.rand(len(inputs)) + 0.5
    share.add_up(divisors, places.get("weight"), places.get("bias"))
    for place, *grads in zip(places.values(), *each, strict=True):
        wanted = sum(x.double() / d for x, d in zip(grads, divisors, strict=True))
        torch.testing.assert_close(place.double(), wanted, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("kind", "name"), WAYS, ids=[f"{kind.__name__}-{name}" for kind, name in WAYS])
def test_a_record_with_several_views_moves_the_sum_by_no_more(kind: Any, name: str) -> None:
    """By at most max_grad_norm; and by nearly that, where the views are alike: by neither K times nor a K-th of it."""
    model, batch = problem(name, 7, 5, 8)
    alike = Views(batch.features[:, :1].repeat_interleave(8, 1), batch.targets)
    for most, records in ((0.0, batch), (0.0099 / 2, alike)):
        fewer = Views(records.features[:-1], records.targets[:-1])
        pairs = zip(*(filled(kind, model, some, 0.01) for some in (records, fewer)), strict=True)
        moved = math.sqrt(sum(float((more - less).double().square().sum()) for more, less in pairs))
        assert most < moved <= 0.01 / 2 * (1 + 1e-4)


@pytest.mark.parametrize("kind", [BookKeeping, PrivateGradients])
@pytest.mark.parametrize("name", ["mlp", "cnn"])
def test_a_record_contributes_nothing_where_one_of_its_views_is_not_finite(kind: Any, name: str) -> None:
    model, batch = problem(name, 6, 5, 3)
    others = torch.tensor([0, 2, 4])
    without = filled(kind, model, Views(batch.features[others], batch.targets[others]), 0.3)
    batch.features[[1, 3], 2] = math.nan
    for got, wanted in zip(filled(kind, model, batch, 0.3), without, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_without_privacy_a_record_counts_by_the_mean_over_its_views() -> None:
    model, batch = problem("mlp", 3, 4, 3)
    PlainGradients(model, Classes(), 2).fill(batch, 2.0, Stream(bytes(32)))  # type: ignore[arg-type]
    wanted = one_at_a_time(model, batch, 1e9)
    for parameter, right in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad.double(), right, rtol=1e-5, atol=1e-6)  # type: ignore[union-attr]
