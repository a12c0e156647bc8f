"""One round of local steps: what it computes, what moves with a record (nothing public), what a seed fixes."""

import random
from math import cos, pi

import numpy as np
import pytest
import torch
from torch import nn

from client.participant import keys_for
from client.schedule import learning_rate
from client.training import Job, LocalTrainer, poisson_batches
from tacit.errors import ConfigError
from tacit.learning import Training
from tacit.personal import first_arrays
from tacit.privacy.noise import SeededKeys, Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.privacy.streams import stream_of
from tacit.tasks import Records
from tacit.tasks.weights import initial_arrays, load_arrays, read_arrays
from tests.unit.client_sites import experiment
from tests.unit.test_client_gradients import Classify

KEYS = SeededKeys(5)
ROUND = 2


class Fixed:
    """Keys that are the operating system's in all but being fixed: no seed of a library makes them."""

    def key(self, purpose, *index):
        return SeededKeys(99).key(purpose, *index)


def small():
    return nn.Sequential(nn.Linear(6, 5), nn.Tanh(), nn.Linear(5, 3))


def records(n=30):
    rng = np.random.default_rng(n)
    x = rng.normal(size=(n, 6)).astype(np.float32)
    return Records(torch.from_numpy(x), torch.from_numpy(rng.integers(0, 3, n)))


def trainer(task=None, private=False, **changes):
    settings = experiment(private, **changes)
    return LocalTrainer(task or Classify(small), PrivacyPlan.of(settings), settings)


def start(task=None):
    return initial_arrays(task or Classify(small), private=False, seed=1)


def train(made, rows=None, *, arrays=None, declared=30, number=ROUND, keys=KEYS, site="north"):
    arrays = start(made.task) if arrays is None else arrays
    rows = records() if rows is None else rows
    return made.train(arrays, Job(site, rows, declared), number, keys)


def flat(arrays):
    return np.concatenate([a.reshape(-1) for a in arrays.values()])


OPTIMIZERS = {
    "sgd": (torch.optim.SGD, {"momentum": 0.5}),
    "adam": (torch.optim.Adam, {}),
    "adamw": (torch.optim.AdamW, {}),
    "rmsprop": (torch.optim.RMSprop, {"momentum": 0.5}),
    "adagrad": (torch.optim.Adagrad, {}),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
@pytest.mark.parametrize(("mu", "factors"), [(0.0, {}), (0.7, {}), (0.0, {"0.bias": 3.0, "0.*": 0.1})])
def test_a_round_is_the_loop_that_the_paper_has(name, mu, factors):
    """Poisson batches, sum over the public normaliser, FedProx's pull, any optimiser of torch, schedule by round."""
    kind, extra = OPTIMIZERS[name]
    changes = {"strategy": {"name": "fedprox", "proximal_mu": mu}} if mu else {}
    made = trainer(
        training__optimizer=name,
        training__momentum=0.5 if extra else 0.0,
        training__weight_decay=0.01,
        training__schedule="step",
        training__gamma=0.5,
        training__step_rounds=1,
        training__rate_factors=factors,
        **changes,
    )
    rows, model = records(), small()
    load_arrays(model, start())
    origin = [p.detach().clone() for p in model.parameters()]
    each = (0.1, 3.0, 1.0, 1.0) if factors else (1.0,) * 4
    groups = [{"params": [p], "lr": 0.25 * f} for p, f in zip(model.parameters(), each, strict=True)]
    optimizer = kind(groups, weight_decay=0.01, **extra)
    draws = stream_of(KEYS, "poisson", "north", ROUND).bernoulli(30 * 3, 0.5).reshape(30, 3)
    for chosen in draws.T:
        optimizer.zero_grad()
        loss = made.task.loss(model(rows.features[chosen]), rows.targets[chosen]).sum() / (0.5 * 30)
        pull = sum(((p - o) ** 2).sum() for p, o in zip(model.parameters(), origin, strict=True))
        (loss + mu / 2 * pull).backward()
        optimizer.step()
    trained = read_arrays(model)
    expected = np.concatenate([(trained[k] - v).reshape(-1) for k, v in start().items()])
    np.testing.assert_allclose(flat(train(made, rows)), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.8, 0.8, 0.8, 0.8]),
        ("cosine", [0.4 * (1 + cos(pi * k / 4)) for k in range(4)]),
        ("step", [0.8, 0.8, 0.2, 0.2]),
        ("exponential", [0.8, 0.4, 0.2, 0.1]),
    ],
)
def test_learning_rates_over_the_rounds(schedule, expected):
    settings = Training(rounds=4, learning_rate=0.8, schedule=schedule, gamma=0.25, step_rounds=2)
    assert [learning_rate(settings, n) for n in (1, 2, 3, 4)] == pytest.approx(expected, abs=1e-12)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({"schedule": "cosine"}, [0.4 * (1 + cos(pi * k / 8)) for k in range(8)]),
        ({"schedule": "exponential"}, [0.8 * 0.25 ** (k / 4) for k in range(8)]),
        ({"warmup_rounds": 2}, [0.2, 0.4, 0.6, 0.8, 0.8, 0.8, 0.8, 0.8]),
    ],
    ids=["cosine", "exponential", "warm-up"],
)
def test_learning_rates_over_the_steps_of_all_rounds(changes, expected):
    settings = Training(
        rounds=4, local_steps=2, learning_rate=0.8, schedule_by="step", gamma=0.25, step_rounds=2, **changes
    )
    rates = [learning_rate(settings, n, step) for n in (1, 2, 3, 4) for step in (0, 1)]
    assert rates == pytest.approx(expected, abs=1e-12)


def test_a_rate_that_warms_up_by_round_is_the_full_one_from_the_last_of_those_rounds():
    settings = Training(rounds=4, learning_rate=0.8, warmup_rounds=2)
    assert [learning_rate(settings, n, step=3) for n in (1, 2, 3, 4)] == pytest.approx([0.4, 0.8, 0.8, 0.8])


@pytest.mark.parametrize("by", ["round", "step"])
@pytest.mark.parametrize("private", [True, False])
def test_a_factor_acts_on_what_is_clipped_and_noised_already_on_the_step_and_on_no_records_gradient(
    private, by
):
    changes = {"training__local_steps": 1, "training__schedule_by": by}
    plain = train(trainer(private=private, **changes))
    apart = train(trainer(private=private, training__rate_factors={"2.*": 0.25, "0.bias": 8.0}, **changes))
    for name, factor in {"0.weight": 1.0, "0.bias": 8.0, "2.weight": 0.25, "2.bias": 0.25}.items():
        np.testing.assert_allclose(apart[name], factor * plain[name], rtol=1e-5, atol=1e-6)


def test_a_factor_of_parameters_that_are_not_there_is_refused_with_those_that_are():
    with pytest.raises(
        ConfigError, match=r"training\.rate_factors: '9\.\*' meets none of 0\.weight, 0\.bias"
    ):
        trainer(training__rate_factors={"9.*": 0.5})
    settings = experiment(False, training__rate_factors={"9.*": 0.5})
    with pytest.raises(ConfigError, match="meets none"):
        first_arrays(settings, Classify(small), private=False)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_nothing_of_an_optimiser_outlives_the_round(name):
    """A second round of the same trainer is that of a trainer that has just been made."""
    used, fresh = (trainer(training__optimizer=name, training__learning_rate=0.01) for _ in range(2))
    train(used, number=1)
    assert np.array_equal(flat(train(used)), flat(train(fresh)))


@pytest.mark.parametrize("private", [True, False])
def test_l1_pulls_each_weight_towards_zero_and_looks_at_no_record(private):
    """No record, no noise: the step is -rate * l1 * sign(w), as many times as there are steps."""
    made = trainer(private=private, training__l1=0.01, training__learning_rate=0.1)
    if private:
        made.gradients.noise_multiplier = 0.0
    weights = flat(start())
    moved = flat(train(made, records(0)))
    stays_on_its_side = np.abs(weights) > 3 * 0.1 * 0.01
    np.testing.assert_allclose(
        moved[stays_on_its_side], -3 * 0.1 * 0.01 * np.sign(weights)[stays_on_its_side], atol=1e-6
    )
    assert (np.abs(weights + moved) <= np.abs(weights) + 0.1 * 0.01).all()
    assert stays_on_its_side.sum() > 40


class Spy:
    """Sees what a step is given."""

    def __init__(self, inner):
        self.inner, self.steps = inner, []

    def fill(self, batch, normaliser, noise):
        self.steps.append((batch.num_rows, normaliser))
        self.inner.fill(batch, normaliser, noise)


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("rows", [0, 1, 29, 30, 31, 300])
def test_I22_sampling_rate_number_of_steps_and_normaliser_come_from_the_plan_and_the_declared_size(
    private, rows
):
    """None of them changes when a record is added."""
    made = trainer(private=private)
    spy = made.gradients = Spy(made.gradients)
    train(made, records(rows), declared=30)
    assert [normaliser for _, normaliser in spy.steps] == [0.5 * 30] * 3
    draws = stream_of(KEYS, "poisson", "north", ROUND).bernoulli(rows * 3, 0.5).reshape(rows, 3)
    assert [n for n, _ in spy.steps] == draws.sum(0).tolist()


def test_G5_expected_batch_above_the_rows_and_no_rows_at_all_make_the_same_number_of_steps():
    made = trainer(private=True, training__sampling_rate=1.0)
    spy = made.gradients = Spy(made.gradients)
    nothing = train(made, records(0), declared=1000)
    assert [n for n, _ in spy.steps] == [0, 0, 0]
    assert np.isfinite(flat(nothing)).all() and np.abs(flat(nothing)).max() > 0  # noise alone


@pytest.mark.parametrize("mu", [0.0, 0.5])
def test_an_empty_batch_without_privacy_is_a_step_too(mu):
    """Weight decay and momentum act in it, whatever the steps before it were: in this process or in another."""
    changes = {"strategy": {"name": "fedprox", "proximal_mu": mu}} if mu else {}
    fresh = trainer(training__weight_decay=0.1, **changes)
    used = trainer(training__weight_decay=0.1, **changes)
    train(used)
    first, second = (train(made, records(0)) for made in (fresh, used))
    assert np.array_equal(flat(first), flat(second))
    assert np.abs(flat(first)).max() > 0


class Dropping(Classify):
    def model(self):
        return nn.Sequential(nn.Linear(6, 5), nn.Dropout(0.5), nn.Linear(5, 3))


@pytest.mark.parametrize("task", [Classify(small), Dropping()], ids=["plain", "dropout"])
def test_G10_without_privacy_the_same_seed_gives_the_same_update(task):
    def update(torch_seed, keys=KEYS, site="north"):
        torch.manual_seed(torch_seed)
        return flat(train(trainer(task), keys=keys, site=site))

    assert np.array_equal(update(0), update(1))
    assert not np.array_equal(update(0), update(0, keys=SeededKeys(6)))
    assert not np.array_equal(update(0), update(0, site="south"))


def test_training_leaves_the_callers_generators_as_they_were():
    made = trainer(Dropping(), private=True)
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    expected = torch.rand(1), random.random(), np.random.rand()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    train(made)
    assert (torch.rand(1), random.random(), np.random.rand()) == expected


def test_noise_and_poisson_draws_of_a_private_run_come_from_the_keys_no_seed_of_torch_numpy_or_random_changes_them():
    """With the keys fixed nothing else changes them; with the operating system's no two rounds are alike."""

    def update(seed, keys, rows=30):
        torch.manual_seed(seed)
        np.random.seed(seed)
        random.seed(seed)
        return flat(train(trainer(Dropping(), private=True), records(rows), keys=keys))

    def drawn(keys):
        made = trainer(private=True, training__local_steps=20)
        spy = made.gradients = Spy(made.gradients)
        train(made, records(300), keys=keys)
        return [n for n, _ in spy.steps]

    assert np.array_equal(update(0, Fixed()), update(1, Fixed()))
    # No record, no batch: noise alone. Sizes of 20 batches: draws alone.
    assert not np.array_equal(update(0, SystemKeys(), rows=0), update(0, SystemKeys(), rows=0))
    assert drawn(SystemKeys()) != drawn(SystemKeys())


def test_seed_never_touches_the_noise_or_the_poisson_draws_of_a_private_run():
    private, open_run = experiment(), experiment(private=False)
    assert isinstance(keys_for(private, PrivacyPlan.of(private)), SystemKeys)
    seeded = keys_for(open_run, PrivacyPlan.of(open_run))
    assert seeded == SeededKeys(open_run.seed)
    asked_for = private.model_copy(update={"insecure_seeded_noise": True})
    assert keys_for(asked_for, PrivacyPlan.of(asked_for)) == SeededKeys(private.seed)


class Keeping(nn.Module):
    """Keeps a running mean of what passes, as a normalising layer of a user's own might."""

    def __init__(self, kept):
        super().__init__()
        self.kept = kept
        if kept == "buffer":
            self.register_buffer("mean", torch.zeros(6))
        elif kept == "hidden buffer":
            self.register_buffer("mean", torch.zeros(6), persistent=False)
        else:
            self.mean = nn.Parameter(torch.zeros(6), requires_grad=False)

    def forward(self, x):
        if self.training:
            self.mean.mul_(0.9).add_(0.1 * x.detach().mean(0))
        return x - self.mean


@pytest.mark.parametrize("kept", ["buffer", "hidden buffer", "frozen parameter"])
def test_records_reach_the_model_by_noised_gradients_alone(kept):
    """A buffer that training changes would leave with the update, or steer later steps: exact, and not accounted."""
    task = Classify(lambda: nn.Sequential(Keeping(kept), nn.Linear(6, 3)))
    with pytest.raises(ConfigError, match=r"'0\.mean' changed in training"):
        train(trainer(task, private=True))
    assert np.isfinite(flat(train(trainer(task)))).all()  # a run without privacy may


def test_arrays_without_dimensions_and_read_only_ones_travel():
    class Scalar(Classify):
        def model(self):
            model = small()
            model.register_parameter("scale", nn.Parameter(torch.tensor(2.0)))
            return model

    arrays = start(Scalar())
    for array in arrays.values():
        array.setflags(write=False)
    delta = train(trainer(Scalar()), arrays=arrays)
    assert {name: (type(a), a.shape, a.dtype) for name, a in delta.items()} == {
        name: (np.ndarray, a.shape, np.dtype("float32")) for name, a in arrays.items()
    }


@pytest.mark.parametrize("rate", [0.0, 0.3, 1.0])
def test_a_poisson_batch_holds_whole_records_in_order(rate):
    rows = records(50)
    stream = Stream(bytes(32))
    chosen = stream.bernoulli(50, rate)
    (batch,) = poisson_batches(rows, rate, 1, Stream(bytes(32)))
    assert torch.equal(batch.features, rows.features[chosen]) and torch.equal(
        batch.targets, rows.targets[chosen]
    )
    assert batch.num_rows == {0.0: 0, 1.0: 50}.get(rate, int(chosen.sum()))


def test_a_row_at_the_end_leaves_the_draws_of_the_others_as_they_are():
    fewer = Stream(bytes(32)).bernoulli(50, 0.3)
    more = Stream(bytes(32)).bernoulli(51, 0.3)
    assert np.array_equal(fewer, more[:50])


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device here")
def test_a_private_round_on_the_gpu_equals_the_cpus():
    on_cpu, on_gpu = (trainer(private=True, device=device) for device in ("cpu", "cuda"))
    np.testing.assert_allclose(flat(train(on_gpu)), flat(train(on_cpu)), rtol=0, atol=1e-4)
