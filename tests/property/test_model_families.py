"""Every model family, over shapes, sizes, activations and losses: clipped sums are those of one record at a time."""

import copy
import math
from typing import Any

import hypothesis.strategies as st
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

from client.bookkeeping import BookKeeping, unknown
from client.private_gradients import PrivateGradients
from tacit import learning
from tacit.data.rows import Names, Number
from tacit.data.schema import Schema
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records
from tacit.tasks.anomaly import Anomalies, with_labels
from tacit.tasks.classification import Classification
from tacit.tasks.models import (
    ACTIVATIONS,
    AXES,
    GIVES_BACK,
    MAKES_UP,
    build_for,
    build_for_text,
    build_to_give_back,
    build_to_make_up,
    build_to_rank,
)
from tacit.tasks.models.autoencoder import VAE
from tacit.tasks.models.gan import GAN
from tacit.tasks.ranking import Ranking
from tacit.tasks.regression import Regression
from tacit.tasks.synthesis import TabularSynthesis

TEXT = {"embedding": "embedding", "transformer of text": "transformer"}
NAMES = learning.Model.model_fields["name"].annotation.__args__  # type: ignore[union-attr]
LISTS = {"logistic of lists": "logistic", "mlp of lists": "mlp"}
FAMILIES = (*(name for name in NAMES if name not in TEXT), *TEXT, *LISTS)
SIZES = st.integers(1, 4)
COLUMN = st.one_of(
    st.builds(Number, st.just(-1.0), st.just(2.0), st.just(0.5), st.booleans(), st.booleans()),
    st.builds(Names, SIZES, st.booleans()),
)
LAYOUTS = st.lists(COLUMN, min_size=1, max_size=4)
LOSSES = [
    {},
    {"class_weights": (0.5, 1.0, 4.0)},
    {"label_smoothing": 0.2},
    {"loss": "focal", "class_weights": (2.0, 1.0, 1.0)},
    *({"loss": name, "kind": "array_regression"} for name in ("squared", "absolute", "huber")),
]


@st.composite
def problems(draw: Any, name: str) -> tuple[nn.Module, Any, Records]:
    """A model, a loss and records for them, in float64: what differs then is no rounding."""
    task: Any
    torch.manual_seed(draw(st.integers(0, 2**31)))
    heads = draw(st.integers(1, 2))
    hidden = (*draw(st.lists(SIZES, max_size=2)), heads * draw(SIZES))
    channels = tuple(draw(st.lists(st.integers(2, 5), min_size=1, max_size=3)))
    activation = draw(st.sampled_from(list(ACTIVATIONS)))
    layers = draw(st.integers(1, 2))
    sizes = {
        "hidden": hidden,
        "channels": channels,
        "activation": activation,
        "layers": layers,
        "heads": heads,
    }
    family = {**TEXT, **LISTS}.get(name, name)
    own = {key: value for key, value in sizes.items() if key in learning.MODEL_KEYS[family]}
    model = learning.Model.model_validate({"name": family, **own})
    rows, axes = draw(st.integers(1, 7)), AXES.get(name, 1)
    if name in TEXT:  # token 0 fills up: some texts are short, some empty
        tokens, used = torch.randint(1, 6, (rows, 7)), torch.randint(0, 8, (rows, 1))
        tokens = torch.where(torch.arange(7) < used, tokens, 0)
        made = build_for_text(model, 6, 3).double()
        return made, Classification(), Records(tokens, torch.randint(0, 3, (rows,)))
    if name in LISTS:  # some have an item fewer, or none
        size_in, items = draw(SIZES), draw(SIZES)
        lists = torch.randn(rows, items, size_in).double() * draw(st.sampled_from([0.1, 1.0, 10.0]))
        return (
            build_to_rank(model, size_in).double(),
            Ranking(),
            Records(lists, torch.randint(-1, 4, (rows, items))),
        )
    shape = (draw(SIZES), *(draw(st.integers(3, 9)) for _ in range(axes - 1)))
    features = torch.randn(rows, *shape).double() * draw(st.sampled_from([0.1, 1.0, 10.0]))
    if name in GIVES_BACK:
        return (
            build_to_give_back(model, shape[0]).double(),
            Anomalies(),
            Records(features, with_labels(features, torch.arange(rows))),
        )
    if name in MAKES_UP:
        gan = build_to_make_up(model, draw(LAYOUTS), 3).double()
        classes = torch.randint(0, 3, (rows,))
        features = torch.randn(rows, gan.features).double() * draw(st.sampled_from([0.1, 1.0, 10.0]))
        task = TabularSynthesis(Schema(label="y", classes=("a", "b", "c")), model)
        return gan, task, Records(torch.cat([features, torch.eye(3)[classes]], 1), classes)
    made, chosen = (
        build_for(model, shape, 3).double(),
        learning.Task.model_validate(draw(st.sampled_from(LOSSES))),
    )
    task = Regression() if chosen.kind == "array_regression" else Classification()
    task.settings = chosen
    targets = torch.randn(rows, 3).double() if isinstance(task, Regression) else torch.randint(0, 3, (rows,))
    return made, task, Records(features, targets)


def filled(kind: Any, model: nn.Module, task: Any, records: Records, clip: float) -> list[Tensor]:
    model = copy.deepcopy(model)
    kind(model, task, clip, 0.0).fill(records, 2.0, Stream(SeededKeys(1).key("noise")))
    return [parameter.grad for parameter in model.parameters() if parameter.grad is not None]


def one_at_a_time(model: nn.Module, task: Any, records: Records, clip: float) -> list[Tensor]:
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sums = [torch.zeros_like(parameter) for parameter in trained]
    for x, y in zip(records.features, records.targets, strict=True):
        loss = task.loss(model(x[None]), y[None]).sum()
        gradient = torch.autograd.grad(loss, trained)
        length = math.sqrt(sum(float(g.square().sum()) for g in gradient))
        sums = [s + g * min(1.0, clip / (length + 1e-6)) / 2.0 for s, g in zip(sums, gradient, strict=True)]
    return sums


@pytest.fixture(autouse=True)
def drawn_alike(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a model draws for a record is the same, whoever is in the batch with it."""
    monkeypatch.setattr(VAE, "draw", lambda self, mean: (9 * mean.detach()).sin())

    def rows(self: GAN, classes: Tensor) -> Tensor:
        with torch.no_grad():
            return torch.cat([self.generator(c[None], torch.Generator().manual_seed(0)) for c in classes])

    monkeypatch.setattr(GAN, "draw", rows)


@pytest.mark.parametrize("name", FAMILIES)
def test_clipped_sums_of_a_family_are_those_of_one_record_at_a_time(name: str) -> None:
    @settings(max_examples=12)
    @given(problems(name), st.sampled_from([1e-2, 0.5, 1e3]))
    def check(problem: tuple[nn.Module, Any, Records], clip: float) -> None:
        model, task, records = problem
        assert unknown(model) == ""
        wanted = one_at_a_time(model, task, records, clip)
        for kind in (BookKeeping, PrivateGradients):
            for got, expected in zip(filled(kind, model, task, records, clip), wanted, strict=True):
                torch.testing.assert_close(got, expected, rtol=1e-5, atol=1e-5 * min(1.0, clip))

    check()


@pytest.mark.parametrize("name", FAMILIES)
def test_a_record_more_moves_the_sum_of_a_family_by_no_more_than_max_grad_norm(name: str) -> None:
    @settings(max_examples=5)
    @given(problems(name))
    def check(problem: tuple[nn.Module, Any, Records]) -> None:
        model, task, records = problem
        fewer = Records(records.features[:-1], records.targets[:-1])
        with_it, without = (filled(BookKeeping, model, task, some, 0.01) for some in (records, fewer))
        moved = math.sqrt(
            sum(float((more - less).square().sum()) for more, less in zip(with_it, without, strict=True))
        )
        assert moved <= 0.01 / 2 * (1 + 1e-6)

    check()
