"""One step's private gradient against the slow definition: one record at a time.

Both ways to get it are held to the same tests: book-keeping for plain stacks, and Opacus for everything.
"""

import random

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from client.bookkeeping import BookKeeping, supports
from client.private_gradients import PrivateGradients
from client.training import LocalTrainer, PlainGradients
from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records
from tacit.tasks.groupnorm import replace_batchnorm
from tacit.tasks.weights import build_model, read_arrays
from tests.unit.client_sites import experiment

KEY = bytes(range(32))
CLIP = 0.7


class Classify:
    """A task that consists of its loss."""

    metric_names = ()

    def __init__(self, make=None):
        self.make = make

    def model(self):
        return self.make()

    def loss(self, outputs, targets):
        return cross_entropy(outputs, targets, reduction="none")


class Flat(Classify):
    """A loss whose gradient is zero."""

    def loss(self, outputs, targets):
        return outputs.sum(dim=1) * 0.0


class Scaled(nn.Module):
    """Parameters of its own, one of them without dimensions: through functorch in Opacus."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(6, 3) * 0.5)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, x):
        return self.scale * (x @ self.weight)


class Partly(nn.Module):
    """Has a layer that the loss does not depend on."""

    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Linear(6, 3), nn.Linear(2, 2)

    def forward(self, x):
        return self.used(x)


class Bypassing(nn.Module):
    """Uses a layer's weight without calling the layer, so that Opacus never sees it."""

    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(6, 3), nn.Linear(6, 3)

    def forward(self, x):
        return self.head(x) + x @ self.layer.weight.T


class Recurrent(nn.Module):
    def __init__(self, kind):
        super().__init__()
        self.memory, self.head = kind(6, 4, batch_first=True), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.memory(x[:, None])[0][:, 0])


def conv():
    layers = nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(24, 3)
    return replace_batchnorm(nn.Sequential(nn.Unflatten(1, (1, 2, 3)), *layers))


MODELS = {
    "logistic": lambda: nn.Sequential(nn.Linear(6, 3)),
    "mlp": lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)),
    "conv": conv,
    "norm1d": lambda: replace_batchnorm(nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3))),
    "own": Scaled,
    "partly": Partly,
    "tanh": lambda: nn.Sequential(nn.Linear(6, 5, bias=False), nn.Tanh(), nn.Dropout(0.0), nn.Linear(5, 3)),
    "frozen": lambda: nn.Sequential(nn.Linear(6, 6).requires_grad_(False), nn.Tanh(), nn.Linear(6, 3)),
}
ENGINES = [(PrivateGradients, name) for name in MODELS] + [
    (BookKeeping, name) for name in MODELS if supports(MODELS[name]())
]
with_both = pytest.mark.parametrize(
    ("engine", "name"), ENGINES, ids=[f"{engine.__name__}-{name}" for engine, name in ENGINES]
)


def test_book_keeping_knows_the_plain_stacks():
    assert [name for engine, name in ENGINES if engine is BookKeeping] == ["logistic", "mlp", "tanh"]


def made(name):
    torch.manual_seed(4)
    return MODELS[name]()


def batch(n, scale=1.0):
    rng = torch.Generator().manual_seed(n)
    return Records(torch.randn(n, 6, generator=rng) * scale, torch.randint(0, 3, (n,), generator=rng))


def flat(model):
    return torch.cat([p.grad.reshape(-1) for p in model.parameters() if p.requires_grad])


def filled(model, records, engine=PrivateGradients, *, normaliser=1.0, noise=0.0, task=None, gradients=None):
    gradients = gradients or engine(model, task or Classify(), CLIP, noise)
    gradients.fill(records, normaliser, Stream(KEY))
    return flat(model).clone()


def one_at_a_time(model, records):
    """The definition: each record's gradient by itself, cut at CLIP, added up in float64."""
    total = torch.zeros(sum(p.numel() for p in model.parameters() if p.requires_grad), dtype=torch.float64)
    for i in range(records.num_rows):
        loss = cross_entropy(model(records.features[i : i + 1]), records.targets[i : i + 1])
        trained = [p for p in model.parameters() if p.requires_grad]
        parts = torch.autograd.grad(loss, trained, allow_unused=True)
        whole = [torch.zeros_like(p) if g is None else g for p, g in zip(trained, parts, strict=True)]
        gradient = torch.cat([g.reshape(-1) for g in whole]).double()
        total += gradient * min(1.0, CLIP / (float(gradient.norm()) + 1e-6))
    return total


@with_both
@pytest.mark.parametrize(("n", "scale"), [(1, 1.0), (17, 1.0), (17, 50.0), (17, 1e-4)])
def test_clipped_sums_equal_the_one_record_at_a_time_loop(engine, name, n, scale):
    records = batch(n, scale)
    expected = one_at_a_time(made(name), records)
    torch.testing.assert_close(filled(made(name), records, engine).double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
@pytest.mark.parametrize("normaliser", [1.0, 2.5, 400.0])
def test_the_normaliser_divides_the_sum_and_nothing_else_does(engine, normaliser):
    records = batch(9)
    expected = one_at_a_time(made("mlp"), records) / normaliser
    got = filled(made("mlp"), records, engine, normaliser=normaliser).double()
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


# A model that squashes what is finite, or infinite, gives such a record an ordinary gradient.
SQUASHED = {"conv": (1e38, 1e25), "tanh": (1e38, 1e25), "frozen": (1e38, 1e25, float("inf"))}


@pytest.mark.parametrize(
    ("engine", "name", "bad"),
    [
        pytest.param(engine, name, bad, id=f"{engine.__name__}-{name}-{bad}")
        for engine, name in ENGINES
        for bad in (float("nan"), float("inf"), 1e38, 1e25)
        if bad not in SQUASHED.get(name, ())
    ],
)
def test_a_record_with_a_gradient_beyond_all_bounds_contributes_nothing(engine, name, bad):
    records = batch(8)
    features = records.features.clone()
    features[3, 0] = bad  # the rest of the record is in order: it must not count either
    others = [i for i in range(8) if i != 3]
    with_it = filled(made(name), Records(features, records.targets), engine)
    without = filled(made(name), Records(records.features[others], records.targets[others]), engine)
    assert torch.isfinite(with_it).all()
    torch.testing.assert_close(with_it, without, rtol=0, atol=1e-5)


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
def test_a_record_that_is_finite_in_one_layer_only_contributes_to_none(engine):
    """Infinite in the first layer's gradient alone, while that of the second is in order."""
    records, model = batch(5), made("mlp")
    gradients = engine(model, Classify(), CLIP, 0.0)
    whole = filled(model, records, gradients=gradients)
    features = records.features.clone()
    features[2] = float("inf")
    handle = model[0].register_forward_hook(lambda layer, x, y: y.where(torch.isfinite(y), 0.3))
    got = filled(model, Records(features, records.targets), gradients=gradients)
    handle.remove()
    others = [0, 1, 3, 4]
    expected = filled(model, Records(records.features[others], records.targets[others]), gradients=gradients)
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert (whole - got).norm() > 0.01


@with_both
@pytest.mark.parametrize("extra", [1.0, 1e3, 1e18, float("nan"), float("inf"), 0.0])
def test_adding_or_removing_one_record_moves_the_gradient_sum_before_noise_by_at_most_max_grad_norm(
    engine, name, extra
):
    records = batch(12)
    features = torch.cat([records.features, torch.full((1, 6), extra)])
    targets = torch.cat([records.targets, torch.tensor([2])])
    moved = filled(made(name), Records(features, targets), engine) - filled(made(name), records, engine)
    assert float(moved.double().norm()) <= CLIP + 1e-5


@with_both
def test_G5_an_empty_batch_is_a_step_of_noise_alone(engine, name):
    """The forward pass is not run: layers that cannot take zero rows never see them."""
    model = made(name)
    gradients = engine(model, Classify(), CLIP, 0.0)
    for layer in model.modules():
        layer.register_forward_pre_hook(lambda *_: pytest.fail("the model was called"))
    assert not filled(model, batch(0), gradients=gradients).any()
    noise = filled(made(name), batch(0), engine, noise=2.0, normaliser=4.0)
    drawn = Stream(KEY).gaussian(noise.numel(), 2.0 * CLIP) / 4.0
    torch.testing.assert_close(noise, torch.from_numpy(drawn).float(), rtol=0, atol=1e-6)


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
def test_an_empty_batch_after_a_full_one_has_nothing_left_of_it(engine):
    model = made("mlp")
    gradients = engine(model, Classify(), CLIP, 0.0)
    assert filled(model, batch(9), gradients=gradients).norm() > 0.1
    assert not filled(model, batch(0), gradients=gradients).any()


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
def test_I15_no_seed_of_torch_numpy_or_random_changes_the_noise(engine):
    def noise(seed):
        random.seed(seed)
        np.random.seed(seed)
        torch.manual_seed(seed)
        return filled(nn.Sequential(nn.Linear(6, 3)), batch(4), engine, noise=1.0, task=Flat())

    assert torch.equal(noise(0), noise(1))
    assert noise(0).norm() > 1.0


REFUSED = {
    "an LSTM": (lambda: Recurrent(nn.LSTM), "'memory' (LSTM)"),
    "a GRU": (lambda: Recurrent(nn.GRU), "'memory' (GRU)"),
    "an RNN, which Opacus overlooks": (lambda: Recurrent(nn.RNN), "'memory' (RNN)"),
    "attention, deep inside": (
        lambda: nn.Sequential(nn.Linear(6, 6), nn.TransformerEncoderLayer(6, 2, 8, batch_first=True)),
        "'1.self_attn' (MultiheadAttention)",
    ),
    "BatchNorm": (lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4)), "'1' (BatchNorm1d)"),
    "BatchNorm that does not train": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.BatchNorm1d(4, affine=False)),
        "'1' (BatchNorm1d)",
    ),
    "statistics kept": (
        lambda: nn.Sequential(nn.Linear(6, 4), nn.InstanceNorm1d(4, track_running_stats=True)),
        "'1' (InstanceNorm1d)",
    ),
    "a buffer beside parameters": (
        lambda: nn.Sequential(torch.nn.utils.parametrizations.spectral_norm(nn.Linear(6, 3))),
        "'0' (ParametrizedLinear)",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_made_private_is_refused_with_the_layers_name(case):
    make, layer = REFUSED[case]
    with pytest.raises(ConfigError) as error:
        PrivateGradients(make(), Classify(), 1.0, 1.0)
    assert f"layer {layer}" in str(error.value)


def test_a_frozen_lstm_has_no_gradient_and_is_taken():
    model = Recurrent(nn.LSTM)
    model.memory.requires_grad_(False)
    assert filled(model, batch(4)).norm() > 0


def test_a_parameter_used_past_its_layer_is_refused_by_name_and_not_trained_wrongly():
    with pytest.raises(ConfigError, match=r"'layer\.weight' has no gradient per record"):
        filled(Bypassing(), batch(4))


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping, PlainGradients])
@pytest.mark.parametrize("reduce", [torch.mean, torch.sum, lambda x: x[:, None]])
def test_a_loss_that_is_not_one_number_per_record_is_refused(engine, reduce):
    """A mean scales every record's gradient by how many others there are: the clip bounds that no more."""

    class Reduced(Classify):
        def loss(self, outputs, targets):
            return reduce(super().loss(outputs, targets))

    bounds = () if engine is PlainGradients else (CLIP, 0.0)
    gradients = engine(made("mlp"), Reduced(), *bounds)
    with pytest.raises(ConfigError, match="one number per record"):
        gradients.fill(batch(4), 1.0, Stream(KEY))


@pytest.mark.parametrize(
    ("layers", "groups"),
    [
        ((nn.Linear(6, 8), nn.BatchNorm1d(8)), 1),  # a group of one number would always be zero
        ((nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8)), 4),
        ((nn.Conv2d(1, 96, 3), nn.BatchNorm2d(96, eps=0.1)), 32),
        ((nn.Conv2d(1, 7, 3), nn.BatchNorm2d(7, affine=False)), 1),
    ],
)
def test_batchnorm_becomes_groupnorm_with_the_same_arrays_at_server_and_client(layers, groups):
    def make():
        return nn.Sequential(nn.Identity(), nn.Sequential(*layers))

    task = Classify(make)
    at_server, at_client = (build_model(task, private=True) for _ in range(2))
    norm = at_client[1][1]
    assert isinstance(norm, nn.GroupNorm) and norm.num_groups == groups and norm.eps == layers[1].eps
    assert {k: v.shape for k, v in read_arrays(at_server).items()} == {
        k: v.shape for k, v in read_arrays(at_client).items()
    }
    assert not any("running" in name for name in read_arrays(at_client))


def test_a_replaced_batchnorm_still_lets_through_what_the_layer_before_it_says():
    """With as many groups as channels a record of single numbers would come out as zeros."""
    torch.manual_seed(1)
    norm = build_model(Classify(MODELS["norm1d"]), private=True)[1]
    assert float(norm(torch.randn(50, 8)).abs().mean().detach()) > 0.5


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
@with_both
@pytest.mark.parametrize("n", [0, 17])
def test_a_private_step_on_the_gpu_equals_the_cpus(engine, name, n):
    """With the same noise, drawn on the CPU and moved to the device."""
    records = batch(n)
    on_gpu = Records(records.features.cuda(), records.targets.cuda())
    expected = filled(made(name), records, engine, noise=1.3, normaliser=5.0)
    got = filled(made(name).cuda(), on_gpu, engine, noise=1.3, normaliser=5.0)
    torch.testing.assert_close(got.cpu(), expected, rtol=0, atol=1e-4)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device here")
def test_G9_a_gpu_that_is_not_there_is_one_line_of_error():
    settings = experiment(private=False, device="cuda")
    with pytest.raises(ConfigError, match="no CUDA device"):
        LocalTrainer(Classify(MODELS["mlp"]), PrivacyPlan.of(settings), settings)
    assert LocalTrainer(
        Classify(MODELS["mlp"]), PrivacyPlan.of(settings), settings.model_copy(update={"device": "auto"})
    ).device == torch.device("cpu")
