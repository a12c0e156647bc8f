"""Each rule, and whole models, against the gradients of one record at a time."""

from __future__ import annotations

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from opacus.layers import DPMultiheadAttention
from torch import Tensor, nn
from torch.nn import functional as F

from client import layer_rules
from client.bookkeeping import BookKeeping, unknown
from client.layer_rules import RULES, Passed
from client.private_gradients import PrivateGradients
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records


@st.composite
def images(draw: Any, dimensions: int) -> tuple[nn.Module, Tensor]:
    groups = draw(st.sampled_from([1, 1, 2]))
    channels = groups * draw(st.integers(1, 3)), groups * draw(st.integers(1, 3))
    kernel, dilation = draw(st.integers(1, 3)), draw(st.integers(1, 2))
    padding = draw(st.sampled_from([0, 1, 2, "same"]))
    stride = 1 if padding == "same" else draw(st.integers(1, 2))
    kernel = kernel | 1 if padding == "same" else kernel
    kind = nn.Conv1d if dimensions == 1 else nn.Conv2d
    layer = kind(
        *channels, kernel, stride, padding, dilation, groups,
        bias=draw(st.booleans()), padding_mode=draw(st.sampled_from(["zeros", "zeros", "circular", "reflect"])),
    )  # fmt: skip
    sizes = [draw(st.integers(6, 8)) for _ in range(dimensions)]
    return layer, torch.randn(draw(st.integers(1, 9)), channels[0], *sizes)


@st.composite
def layers(draw: Any) -> tuple[nn.Module, Tensor]:
    """A layer and inputs for it."""
    torch.manual_seed(draw(st.integers(0, 2**31)))
    rows, width, out = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 9))
    positions = draw(st.sampled_from([(), (1,), (5,), (2, 3), (40,)]))
    kind = draw(st.sampled_from(["linear", "embedding", "layer norm", "group norm", "1d", "2d"]))
    if kind == "linear":
        return nn.Linear(width, out, bias=draw(st.booleans())), torch.randn(rows, *positions, width)
    if kind == "embedding":
        layer = nn.Embedding(width, out, padding_idx=draw(st.sampled_from([None, 0, width - 1])))
        return layer, torch.randint(0, width, (rows, *draw(st.sampled_from([(), (1,), (7,), (2, 3), (90,)]))))
    if kind == "layer norm":
        shape = draw(st.sampled_from([(width + 1,), (2, width)]))
        layer = nn.LayerNorm(shape, bias=draw(st.booleans()))
        return layer, torch.randn(rows, *draw(st.sampled_from([(), (4,)])), *shape)
    if kind == "group norm":
        groups = draw(st.integers(1, 3))
        layer = nn.GroupNorm(groups, groups * width)
        return layer, torch.randn(rows, groups * width, *draw(st.sampled_from([(3,), (2, 3)])))
    return draw(images(1 if kind == "1d" else 2))


@settings(max_examples=250, deadline=None)
@given(layers(), st.sampled_from(["all", "weight", "bias"]))
def test_a_rule_gives_the_length_of_each_gradient_and_their_clipped_sum(problem: Any, which: str) -> None:
    check_rule(*problem, which)


WAYS = {  # that the draws above seldom or never take
    "one position": (lambda: nn.Linear(6, 5), (7, 1, 6)),
    "ghost norms": (lambda: nn.Linear(64, 48), (7, 5, 64)),
    "images in several chunks": (lambda: nn.Conv2d(2, 3, 3), (9, 2, 6, 6)),
    "series in several chunks": (lambda: nn.Conv1d(2, 3, 3), (9, 2, 8)),
}


@pytest.mark.parametrize("which", ["all", "weight", "bias"])
@pytest.mark.parametrize("way", WAYS)
def test_each_way_of_a_rule_gives_the_same(way: str, which: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer_rules, "CHUNK_FLOATS", 100)  # one image, or two series
    torch.manual_seed(1)
    make, shape = WAYS[way]
    check_rule(make(), torch.randn(shape), which)


def check_rule(layer: nn.Module, inputs: Tensor, which: str) -> None:
    """A rule against one record at a time; only the parameters of that name are trained."""
    names = [name for name, _ in layer.named_parameters() if which in ("all", name)]
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(name in names)
    if not names:
        return
    outputs = layer(inputs)
    gradient = torch.randn_like(outputs)
    parameters = [p for p in layer.parameters() if p.requires_grad]
    each = [
        torch.autograd.grad(layer(inputs[i : i + 1]), parameters, gradient[i : i + 1])
        for i in range(len(inputs))
    ]
    divisors = torch.rand(len(inputs)) + 0.5
    share = RULES[type(layer)](layer, Passed(inputs, gradient))
    lengths = torch.stack([torch.stack([g.double().square().sum() for g in one]).sum() for one in each])
    torch.testing.assert_close(share.squared, lengths, rtol=1e-4, atol=1e-8)
    places = {name: torch.full_like(p, math.nan) for name, p in layer.named_parameters() if p.requires_grad}
    share.add_up(divisors, places.get("weight"), places.get("bias"))
    for place, *grads in zip([places[name] for name in names], *each, strict=True):
        wanted = sum(g.double() / d for g, d in zip(grads, divisors, strict=True))
        torch.testing.assert_close(place.double(), wanted, rtol=1e-4, atol=1e-5)


class Text(nn.Module):
    """Indices, attention, mean over positions."""

    def __init__(self, padding_idx: int | None = 0) -> None:
        super().__init__()
        self.table = nn.Embedding(11, 8, padding_idx)
        self.attention = DPMultiheadAttention(8, 2, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, indices: Tensor) -> Tensor:
        x = self.table(indices)
        return self.head(self.norm(x + self.attention(x, x, x)[0]).mean(1))


class Encoder(nn.Module):
    """One layer of torch's Transformer, with Opacus' attention in its place."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.inner.self_attn = DPMultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, features: Tensor) -> Tensor:
        return self.head(self.inner(features).mean(1))


def cnn(inplace: bool = False) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.GroupNorm(2, 4), nn.ReLU(inplace), nn.MaxPool2d(2),
        nn.Conv2d(4, 6, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(24, 3),
    )  # fmt: skip


MODELS = {
    "cnn": (cnn, lambda rows: torch.randn(rows, 1, 8, 8)),
    "cnn in place": (lambda: cnn(inplace=True), lambda rows: torch.randn(rows, 1, 8, 8)),
    "text": (Text, lambda rows: torch.randint(0, 11, (rows, 7))),
    "long text": (Text, lambda rows: torch.randint(0, 11, (rows, 70))),
    "text without padding": (lambda: Text(None), lambda rows: torch.randint(0, 11, (rows, 7))),
    "encoder": (Encoder, lambda rows: torch.randn(rows, 5, 8)),
}


class Classes:
    """Cross-entropy of each record."""

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")


def problem(name: str, seed: int, rows: int) -> tuple[nn.Module, Records]:
    torch.manual_seed(seed)
    make, draw = MODELS[name]
    return make(), Records(draw(rows), torch.randint(0, 3, (rows,)))


def filled(kind: Any, model: nn.Module, records: Records, clip: float, noise: float = 0.0) -> list[Tensor]:
    model = copy.deepcopy(model)
    kind(model, Classes(), clip, noise).fill(records, 2.0, Stream(SeededKeys(1).key("noise")))
    return [parameter.grad for parameter in model.parameters()]


def one_at_a_time(model: nn.Module, records: Records, clip: float) -> list[Tensor]:
    model = copy.deepcopy(model).double()
    features = records.features.double() if records.features.is_floating_point() else records.features
    sums = [torch.zeros_like(parameter) for parameter in model.parameters()]
    for i in range(records.num_rows):
        loss = Classes().loss(model(features[i : i + 1]), records.targets[i : i + 1]).sum()
        gradient = torch.autograd.grad(loss, list(model.parameters()))
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        sums = [s + g * min(1.0, clip / (length + 1e-6)) / 2.0 for s, g in zip(sums, gradient, strict=True)]
    return sums


@pytest.mark.parametrize("name", MODELS)
@settings(max_examples=12, deadline=None)
@given(st.integers(0, 2**31), st.integers(1, 12), st.sampled_from([1e-2, 0.5, 1e3]))
def test_clipped_sums_of_whole_models_are_those_of_one_record_at_a_time(
    name: str, seed: int, rows: int, clip: float
) -> None:
    model, records = problem(name, seed, rows)
    assert not unknown(model)
    for got, wanted in zip(
        filled(BookKeeping, model, records, clip), one_at_a_time(model, records, clip), strict=True
    ):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-5 * min(1.0, clip))


# Not "text": Opacus counts the row of padding into a record's gradient, which autograd leaves out.
@pytest.mark.parametrize("name", ["cnn", "text without padding", "encoder"])
@pytest.mark.parametrize("rows", [0, 1, 6])
def test_whole_models_have_the_gradients_of_private_gradients_noise_included(name: str, rows: int) -> None:
    model, records = problem(name, 5, rows)
    pairs = zip(
        *(filled(kind, model, records, 0.3, 1.2) for kind in (BookKeeping, PrivateGradients)), strict=True
    )
    for got, wanted in pairs:
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", ["cnn", "encoder"])
@pytest.mark.parametrize("value", [math.nan, math.inf, 3e38])
def test_a_record_contributes_nothing_to_a_whole_model_where_its_gradient_is_not_finite(
    name: str, value: float
) -> None:
    model, records = problem(name, 6, 7)
    others = torch.tensor([0, 1, 3, 4, 5])
    without = filled(BookKeeping, model, Records(records.features[others], records.targets[others]), 0.3)
    records.features[[2, 6]] = value
    for got, wanted in zip(filled(BookKeeping, model, records, 0.3), without, strict=True):
        assert got.isfinite().all()
        if not math.isfinite(value):
            torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", MODELS)
def test_adding_one_record_moves_the_sum_of_a_whole_model_by_at_most_max_grad_norm(name: str) -> None:
    model, records = problem(name, 7, 8)
    fewer = Records(records.features[:-1], records.targets[:-1])
    pairs = zip(*(filled(BookKeeping, model, batch, 0.01) for batch in (records, fewer)), strict=True)
    moved = math.sqrt(sum(float((more - less).double().square().sum()) for more, less in pairs))
    assert 0.0099 / 2 < moved <= 0.01 / 2 * (1 + 1e-4)


def test_positions_that_cancel_do_not_pass_for_a_short_gradient() -> None:
    """The parts of a record add up to nothing, and each has 1e9 times the clip norm: float32 leaves a rest of them."""
    torch.manual_seed(0)
    huge, one = 2.0**30 * torch.ones(1, 1, 16), torch.full((1, 1, 16), 64.0)
    g = torch.cat([huge, one, -huge, -one], 1)  # exact in float64
    same = torch.randn(1, 1, 8).expand(1, 4, 8).contiguous()
    indices = torch.zeros(1, 4, dtype=torch.int64)
    for layer, inputs in ((nn.Linear(8, 16, bias=False), same), (nn.Embedding(3, 16), indices)):
        share = RULES[type(layer)](layer, Passed(inputs, g))
        place = torch.empty_like(layer.weight)
        share.add_up(share.squared.sqrt().float().clamp(min=1.0), place, None)
        assert place.norm() < 0.1
    g = torch.tensor([[[3.0], [-1.0]]])  # and an ordinary record is as long as it is
    share = RULES[nn.Linear](nn.Linear(2, 1, bias=False), Passed(torch.tensor([[[1.0, 0.0], [1.0, 0.0]]]), g))
    assert share.squared.item() == 4.0
