"""Which models book-keeping knows, and what it does with records that have no finite gradient."""

from __future__ import annotations

import copy
import math
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from client.bookkeeping import BookKeeping, NoRule, supports, unknown
from client.choice import Watched, private_gradients
from client.noised import STEPS_AHEAD, NoisedSum
from client.private_gradients import PrivateGradients
from client.training import Job, LocalTrainer, check_alone
from tacit import config
from tacit.errors import ConfigError
from tacit.privacy.noise import SeededKeys, Stream
from tacit.privacy.normals import BLOCK
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records
from tacit.tasks.models import Classifier
from tacit.tasks.weights import read_arrays


class Classes:
    """Cross-entropy of each record, with a model that the test chooses."""

    metric_names = ("loss",)

    def __init__(self, network: nn.Module | None = None) -> None:
        self.network = network

    def model(self) -> nn.Module:
        return copy.deepcopy(self.network)

    def read(self, path: Path, split: str) -> Records:
        raise NotImplementedError

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return F.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": self.loss(outputs, targets)}


class Doubled(nn.Sequential):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(features)


def tied() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    return model


def frozen() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))
    model[0].weight.requires_grad_(False)
    return model


def with_own_parameter() -> nn.Sequential:
    model = nn.Sequential(nn.Linear(4, 2))
    model.register_parameter("temperature", nn.Parameter(torch.ones(())))
    return model


linear = nn.Linear(4, 4)
KNOWN = {
    "logistic regression": nn.Sequential(nn.Linear(4, 2)),
    "built-in": Classifier(nn.Linear(4, 3), nn.ReLU(), nn.Linear(3, 2), inputs=4),
    "flattened images": nn.Sequential(nn.Flatten(), nn.Linear(4, 2)),
    "dropout": nn.Sequential(nn.Linear(4, 3), nn.Dropout(0.5), nn.GELU(), nn.Linear(3, 2, bias=False)),
}
RULED = {  # by hooks
    "a layer by itself": nn.Linear(4, 2),
    "another forward": Doubled(nn.Linear(4, 2)),
    "normalisation": nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2)),
    "in place": nn.Sequential(nn.Linear(4, 3), nn.ReLU(inplace=True), nn.Linear(3, 2)),
    "one layer twice": nn.Sequential(linear, nn.Tanh(), linear, nn.Linear(4, 2)),
    "frozen weights": frozen(),
    "nested": nn.Sequential(nn.Sequential(nn.Linear(4, 3)), nn.Linear(3, 2)),
}
UNKNOWN = {
    "nothing to train": nn.Sequential(nn.ReLU()),
    "shared weights": tied(),
    "a parameter beside the layers": with_own_parameter(),
    "a slope that is trained": nn.Sequential(nn.Linear(4, 2), nn.PReLU()),
    "weight norm": nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 2))),
    "a table scaled by its use": nn.Sequential(nn.Embedding(4, 2, scale_grad_by_freq=True), nn.Flatten()),
    "a table renormed by its use": nn.Sequential(nn.Embedding(4, 2, max_norm=1.0), nn.Flatten()),
    "a normalisation that mixes records": nn.Sequential(nn.BatchNorm1d(4, affine=False), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("name", KNOWN)
def test_plain_stacks_are_supported(name: str) -> None:
    assert supports(KNOWN[name]) and not unknown(KNOWN[name])


@pytest.mark.parametrize("name", RULED)
def test_a_rule_for_each_layer_is_enough(name: str) -> None:
    assert not supports(RULED[name]) and not unknown(RULED[name])
    BookKeeping(RULED[name], Classes(), 1.0, 1.0).fill(records(), 1.0, Stream(bytes(32)))


@pytest.mark.parametrize("name", UNKNOWN)
def test_anything_else_is_left_to_opacus(name: str) -> None:
    assert unknown(UNKNOWN[name]) and not supports(UNKNOWN[name])
    with pytest.raises(ValueError, match=r"no rule|nothing is trained|share|mixes"):
        BookKeeping(UNKNOWN[name], Classes(), 1.0, 1.0)


class PastItsLayer(nn.Module):
    """Uses a layer's weight also where the layer is not called."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(4, 3), nn.Linear(3, 2)

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return self.outer(self.inner(features)) + 0.1 * self.inner.weight.sum()


class NoGradient(PastItsLayer):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        with torch.no_grad():
            inner = self.inner(features)
        return self.outer(inner)


class WrittenOver(PastItsLayer):
    def forward(self, features: torch.Tensor) -> torch.Tensor:
        features = features.clone()
        inner = self.inner(features)
        with torch.no_grad():
            features.zero_()
        return self.outer(inner.tanh())


class Transposed(PastItsLayer):
    """Its layers meet positions first, records second."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        several = features.unsqueeze(0).expand(3, -1, -1)
        return self.outer(self.inner(several)).sum(0)


@pytest.mark.parametrize(
    ("network", "reason"),
    [
        (PastItsLayer(), "past the layer"),
        (NoGradient(), "without a gradient"),
        (Transposed(), "one entry for each record"),
    ],
)
def test_what_the_forward_pass_does_beside_the_rules_is_noticed(network: nn.Module, reason: str) -> None:
    assert not unknown(network)
    with pytest.raises(NoRule, match=reason):
        BookKeeping(network, Classes(), 1.0, 1.0).fill(records(), 1.0, Stream(bytes(32)))
    assert all(not layer._forward_hooks for layer in network.modules())


def test_an_input_that_is_written_over_never_makes_a_gradient() -> None:
    """Autograd itself refuses to go back through it where it needs the input; book-keeping does in any case."""
    with pytest.raises((NoRule, RuntimeError), match=r"written over|modified by an inplace operation"):
        BookKeeping(WrittenOver(), Classes(), 1.0, 1.0).fill(records(), 1.0, Stream(bytes(32)))


def test_opacus_takes_over_where_the_forward_pass_has_no_rule(caplog: pytest.LogCaptureFixture) -> None:
    model = NoGradient()
    wanted = sums(PrivateGradients, model, records())
    with caplog.at_level("INFO", logger="client.choice"):
        step = private_gradients(model, Classes(), 1.0, 0.0)
        step.fill(records(), 1.0, Stream(bytes(32)))
    assert "gradients: per record by book-keeping" in caplog.text
    assert (
        "gradients: per record by opacus: a Linear is called with keywords, or without a gradient"
        in caplog.text
    )
    for parameter, g in zip(model.parameters(), wanted, strict=True):
        torch.testing.assert_close(parameter.grad, g)


def trainer(network: nn.Module, *, private: bool = True) -> LocalTrainer:
    budget = {"record": {"epsilon": 3.0, "delta": 1e-5}} if private else {}
    tables = {"name": "t", "task": {"kind": "my:Task"}, "privacy": budget, "training": {"rounds": 2}}
    experiment = config.parse(tables, source="")
    return LocalTrainer(Classes(network), PrivacyPlan.of(experiment), experiment)


def test_the_trainer_takes_book_keeping_where_it_can() -> None:
    assert isinstance(trainer(KNOWN["built-in"]).gradients, BookKeeping)
    assert isinstance(trainer(RULED["normalisation"]).gradients, Watched)
    assert isinstance(trainer(nn.Sequential(nn.Linear(4, 2), nn.RMSNorm(2))).gradients, PrivateGradients)


class Centred(nn.Module):
    """Has no parameter that a rule could be missing for."""

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features - features.mean(0)


def test_a_model_or_a_loss_that_ties_records_together_is_refused() -> None:
    class Relative(Classes):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            losses = super().loss(outputs, targets)
            return losses / losses.mean()

    tied_model, tied_loss = trainer(nn.Sequential(nn.Linear(4, 4), Centred())), trainer(KNOWN["built-in"])
    tied_loss.task = Relative()
    for one in (tied_model, tied_loss):
        job = Job("site", records(), 8)
        with pytest.raises(ConfigError, match="the loss of a record depends on the others of its batch"):
            one.train(read_arrays(one.model), job, 1, SeededKeys(1))


def test_it_is_tried_on_records_that_differ_and_torchs_random_numbers_tie_nothing() -> None:
    class Shaken(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.own = torch.Generator().manual_seed(1)

        def forward(self, features: torch.Tensor) -> torch.Tensor:
            return features + torch.randn(features.shape, generator=self.own)

    several = records()
    empty = Records(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    alike = Records(several.features[:1].repeat(3, 1), several.targets[:1].repeat(3))
    centred = nn.Sequential(nn.Linear(4, 4), Centred())
    assert not check_alone(centred, Classes(), alike) and not check_alone(centred, Classes(), empty)
    last_is_first = Records(several.features[[0, 1, 0]], several.targets[[0, 1, 0]])
    with pytest.raises(ConfigError, match="depends on the others"):
        check_alone(centred, Classes(), last_is_first)
    assert check_alone(nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5)).train(), Classes(), several)
    with pytest.raises(ConfigError, match="cannot be tried"):
        check_alone(nn.Sequential(nn.Linear(4, 4), Shaken()), Classes(), several)
    one = trainer(nn.Sequential(nn.Linear(4, 4), Centred()))
    one.train(read_arrays(one.model), Job("site", alike, 8), 1, SeededKeys(1))
    with pytest.raises(ConfigError, match="depends on the others"):  # at the next site of the same process
        one.train(read_arrays(one.model), Job("other", several, 8), 1, SeededKeys(1))


def test_a_client_with_a_plain_model_does_not_load_opacus() -> None:
    script = "import sys, client.choice, client.training; sys.exit('opacus' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", script], check=False).returncode == 0


def records(**changes: float) -> Records:
    """Six records; `x3=value` writes over the first feature of record 3."""
    features = torch.randn(6, 4, generator=torch.Generator().manual_seed(0))
    for place, value in changes.items():
        features[int(place[1:]), 0] = value
    return Records(features, torch.arange(6) % 2)


def sums(kind: type, model: nn.Module, batch: Records) -> list[torch.Tensor]:
    model = copy.deepcopy(model)
    kind(model, Classes(), 1.0, 0.0).fill(batch, 1.0, Stream(SeededKeys(1).key("noise")))
    return [parameter.grad for parameter in model.parameters()]


@pytest.mark.parametrize("activation", [nn.ReLU(), nn.Tanh(), nn.Sigmoid()])
@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 3e38, -3e38, 1e25, 1e-45])
def test_a_record_contributes_nothing_where_its_gradient_or_its_norm_is_not_finite(
    activation: nn.Module, value: float
) -> None:
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(4, 3), activation, nn.Linear(3, 2))
    batch = records(x2=value, x5=value)
    by_bookkeeping, by_opacus = (sums(kind, model, batch) for kind in (BookKeeping, PrivateGradients))
    others = torch.tensor([0, 1, 3, 4])
    without = sums(BookKeeping, model, Records(batch.features[others], batch.targets[others]))
    for got, wanted, without_them in zip(by_bookkeeping, by_opacus, without, strict=True):
        assert got.isfinite().all()
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)
        if not math.isfinite(value):
            torch.testing.assert_close(got, without_them, rtol=1e-5, atol=1e-6)


def test_a_long_gradient_does_not_pass_for_a_short_one() -> None:
    """The layer's input squared overflows float32 and its gradient squared vanishes there; their product is 1e7."""

    class Steep(Classes):
        def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
            return outputs[:, 0] * 1e-23

    model = nn.Sequential(nn.Linear(1, 1, bias=False))
    batch = Records(torch.full((1, 1), 1e30), torch.zeros(1, dtype=torch.int64))
    BookKeeping(model, Steep(), 1.0, 0.0).fill(batch, 1.0, Stream(SeededKeys(1).key("noise")))
    assert model[0].weight.grad.norm() == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize("kind", [BookKeeping, PrivateGradients])
def test_an_empty_batch_is_a_step_of_noise_alone(kind: type) -> None:
    def unreachable(features: torch.Tensor) -> torch.Tensor:
        raise AssertionError("the forward pass of an empty batch")

    model = nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))
    gradients = kind(model, Classes(), 2.0, 1.5)
    gradients.fill(records(), 4.0, Stream(SeededKeys(4).key("noise")))  # of which nothing may stay
    model[1].forward = unreachable
    empty = Records(torch.zeros(0, 4), torch.zeros(0, dtype=torch.int64))
    gradients.fill(empty, 4.0, Stream(SeededKeys(5).key("noise")))
    noise = Stream(SeededKeys(5).key("noise")).gaussian(4 * 3 + 3 + 3 * 2 + 2, 3.0) / 4.0
    got = torch.cat([parameter.grad.flatten() for parameter in model.parameters()])
    torch.testing.assert_close(got, torch.from_numpy(noise).float(), rtol=1e-6, atol=0)


def test_dropout_draws_what_it_draws_under_opacus() -> None:
    results = []
    for kind in (BookKeeping, PrivateGradients):
        torch.manual_seed(11)
        results.append(sums(kind, KNOWN["dropout"], records()))
    for got, wanted in zip(*results, strict=True):
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-6)


def test_G6_records_of_another_width_than_the_model_takes_are_named() -> None:
    step = BookKeeping(KNOWN["built-in"], Classes(), 1.0, 1.0)
    records = Records(torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64))
    with pytest.raises(ConfigError, match="the model takes 4 features, the records have 5"):
        step.fill(records, 1.0, Stream(bytes(32)))


def test_noise_drawn_for_several_steps_at_a_time_is_what_single_draws_give_and_none_is_used_twice():
    for size in (5, BLOCK - 1, BLOCK + 3):
        parameter = torch.nn.Parameter(torch.zeros(size, dtype=torch.float64))
        total, ahead, single = NoisedSum([parameter]), Stream(bytes(32)), Stream(bytes(32))
        for _ in range(STEPS_AHEAD + 2):
            total.fill(ahead, 2.0, 1.0)
            assert np.array_equal(parameter.grad.numpy(), single.gaussian(size, 2.0))
    total.fill(other := Stream(bytes([1]) * 32), 2.0, 1.0)
    assert np.array_equal(parameter.grad.numpy(), Stream(bytes([1]) * 32).gaussian(size, 2.0))
    total.fill(other, 0.0, 1.0)
    assert not parameter.grad.any()


def test_I15_noise_that_was_drawn_ahead_is_not_used_after_a_fork() -> None:
    program = """
import os
import torch
from client.noised import NoisedSum
from tacit.privacy.noise import Stream
torch.set_num_threads(1)
total, stream = NoisedSum([torch.nn.Parameter(torch.zeros(5))]), Stream(bytes(32))
total.fill(stream, 1.0, 1.0)
child = os.fork()
if child == 0:
    try:
        total.fill(stream, 1.0, 1.0)
    except RuntimeError:
        os._exit(7)
    os._exit(0)
assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
total.fill(stream, 1.0, 1.0)
"""
    subprocess.run([sys.executable, "-c", program], check=True)
