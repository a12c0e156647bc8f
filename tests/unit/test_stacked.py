"""A cohort trained at once: for each client what it gets alone, whatever the others have."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from client.bookkeeping import Passed
from client.training import Job, LocalTrainer
from simulations import stacked
from simulations.evaluate import SiteRecords
from simulations.source_schemas import breast_cancer
from simulations.stacked import StackedTrainer, train_ahead, unstackable
from tacit import config
from tacit.errors import ConfigError, RunFailed
from tacit.privacy.noise import SeededKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records
from tacit.tasks.models import Classifier
from tacit.tasks.tabular import TabularClassification
from tests.unit.client_sites import RECORD, experiment
from tests.unit.small_federation import PRIVATE as PRIVATE_RUN
from tests.unit.small_federation import Federation, ledger_entries
from tests.unit.test_client_gradients import Classify
from tests.unit.test_client_training import small, start

KEYS = SeededKeys(5)
SIZES = (30, 1, 7, 55)  # one record: some of its batches are empty
PRIVATE = {"privacy__record": {**RECORD, "max_grad_norm": 0.3}}
NONE = {"insecure_seeded_noise": True}


def jobs(sizes=SIZES, seed=0):
    rng = np.random.default_rng(seed)
    return [
        Job(
            f"site-{i}",
            Records(
                torch.from_numpy(rng.normal(size=(n, 6)).astype(np.float32) * (i + 1)),
                torch.from_numpy(rng.integers(0, 3, n)),
            ),
            declared_rows=20 + i,
        )
        for i, n in enumerate(sizes)
    ]


def pair(task=None, private=True, **changes):
    settings = experiment(private, **(PRIVATE if private else {}), **changes)
    serial = LocalTrainer(task or Classify(small), PrivacyPlan.of(settings), settings)
    return serial, StackedTrainer.of(serial)


def train(trainer, arrays, job, number=2):
    return trainer.train(arrays, job, number, KEYS)


def assert_same(serial, ahead, arrays, cohort, number=2):
    alone = [train(serial, arrays, job, number) for job in cohort]
    ahead.train_ahead(arrays, cohort, number, KEYS)
    assert len(ahead._ahead) == len(cohort)
    for job, expected in zip(cohort, alone, strict=True):
        delta = train(ahead, arrays, job, number)
        assert list(delta) == list(expected)
        for name, values in delta.items():
            assert values.dtype == np.float32
            np.testing.assert_allclose(
                values, expected[name], atol=1e-5, rtol=1e-5, err_msg=f"{job.site} {name}"
            )
    assert not ahead._ahead


def test_K1_nothing_that_holds_records_prints_them():
    records = Records(torch.full((2, 3), 40.5), torch.full((2,), 77))
    held = (
        Job("north", records, 2),
        Passed(records.features, records.features),
        SiteRecords("n", records, records),
    )
    text = repr((records, *held)) + f"{records} {held}"
    assert repr(records) == str(records) == "<Records: 2 rows>"
    assert not any(part in text for part in ("40.5", "77", "tensor"))


OPTIMIZERS = {
    "sgd": {},
    "sgd with momentum and decay": {"training__momentum": 0.9, "training__weight_decay": 0.1},
    "adam": {"training__optimizer": "adam", "training__learning_rate": 0.01},
    "adamw": {"training__optimizer": "adamw", "training__learning_rate": 0.01},
    "rmsprop": {"training__optimizer": "rmsprop", "training__learning_rate": 0.01},
    "adagrad": {"training__optimizer": "adagrad", "training__learning_rate": 0.1},
    "fedprox, cosine": {
        "strategy__name": "fedprox",
        "strategy__proximal_mu": 0.5,
        "training__schedule": "cosine",
    },
    "l1, cosine by step": {
        "training__l1": 0.02,
        "training__schedule": "cosine",
        "training__schedule_by": "step",
    },
    "adam, by step, warm-up": {
        "training__optimizer": "adam",
        "training__schedule": "exponential",
        "training__schedule_by": "step",
        "training__warmup_rounds": 3,
    },
}


@pytest.mark.parametrize("private", [True, False], ids=["private", "not private"])
@pytest.mark.parametrize("changes", [dict(v) for v in OPTIMIZERS.values()], ids=list(OPTIMIZERS))
def test_the_result_of_a_client_is_that_of_local_training(changes, private):
    """Up to rounding in float32; unequal data, empty batches, noise of each client's own stream."""
    serial, ahead = pair(private=private, **changes)
    assert_same(serial, ahead, start(), jobs())


MODELS = {
    "one layer": lambda: nn.Sequential(nn.Linear(6, 3)),
    "no bias": lambda: nn.Sequential(nn.Linear(6, 4, bias=False), nn.ReLU(), nn.Linear(4, 3, bias=False)),
    "activation first": lambda: nn.Sequential(
        nn.Tanh(), nn.Linear(6, 4), nn.GELU(), nn.Linear(4, 3), nn.ELU()
    ),
}


@pytest.mark.parametrize("private", [True, False], ids=["private", "not private"])
@pytest.mark.parametrize("make", MODELS.values(), ids=list(MODELS))
def test_it_is_so_for_every_stack_of_linear_layers(make, private):
    task = Classify(make)
    assert_same(*pair(task, private), start(task), jobs())


def test_a_record_whose_gradient_is_no_number_adds_nothing_to_its_client_and_to_no_other():
    cohort = jobs()
    cohort[0].records.features[:20] = torch.inf
    serial, ahead = pair()
    assert_same(serial, ahead, start(), cohort)
    ahead.train_ahead(start(), cohort, 2, KEYS)
    assert all(np.isfinite(values).all() for job in cohort for values in train(ahead, start(), job).values())


def test_no_row_that_stands_in_for_a_missing_record_reaches_a_sum():
    class Diverges(Classify):
        def loss(self, outputs, targets):
            # No gradient is finite where the features are zeros: as a row that stands in is.
            return super().loss(outputs, targets) + outputs.square().sum(1).sqrt()

    task = Diverges(MODELS["no bias"])
    assert_same(*pair(task, private=False), start(task), jobs())


def test_many_clients_are_trained_in_parts_that_fit_in_memory(monkeypatch):
    serial, ahead = pair()
    whole = ahead._clients_at_once(jobs())
    assert whole > len(SIZES)
    monkeypatch.setattr(stacked, "_BYTES", stacked._BYTES * 3 // whole)
    assert 1 <= ahead._clients_at_once(jobs()) <= 3
    assert_same(serial, ahead, start(), jobs())


def test_what_was_trained_from_other_weights_or_for_another_round_is_not_handed_over():
    serial, ahead = pair()
    job, other = jobs()[0], {name: a + 1 for name, a in start().items()}
    for arrays, number in ((other, 2), (start(), 3)):
        ahead.train_ahead(start(), [job], 2, KEYS)
        for name, values in train(ahead, arrays, job, number).items():
            np.testing.assert_array_equal(values, train(serial, arrays, job, number)[name])


def test_models_that_do_not_stack_are_named():
    assert unstackable(small()) == ""
    assert "draws random numbers" in unstackable(nn.Sequential(nn.Linear(2, 2), nn.Dropout(0.5)))
    assert "shape" in unstackable(nn.Sequential(nn.Flatten(), nn.Linear(2, 2)))
    assert "plain stack" in unstackable(nn.Sequential(nn.Conv1d(1, 1, 1)))


ENGINES = {
    "protocol": (),
    "ideal sum": ("secure_aggregation.engine=ideal",),
    "single updates": ("secure_aggregation.enabled=false",),
}


@pytest.mark.parametrize("engine", list(ENGINES.values()), ids=list(ENGINES))
@pytest.mark.parametrize("privacy", [(), (PRIVATE_RUN, "insecure_seeded_noise=true")], ids=["none", "record"])
def test_a_run_gives_the_model_that_it_gives_serially(tmp_path: Path, engine, privacy, caplog):
    federation = Federation(tmp_path, *engine, *privacy)
    serial = federation.run(tmp_path / "serial")
    caplog.set_level("INFO", logger="simulations.stacked")
    ahead = federation.run(tmp_path / "stacked", ahead=train_ahead)
    assert "executor stacked: 6 clients at once" in caplog.text
    assert "failed" not in caplog.text
    for name, values in ahead.items():
        np.testing.assert_allclose(values, serial[name], atol=1e-5)


def test_a_client_that_refuses_still_refuses_and_pays_nothing(tmp_path: Path):
    federation = Federation(tmp_path, PRIVATE_RUN, "secure_aggregation.engine=ideal")
    policy = federation.sites / "2" / "policy.toml"
    policy.write_text(policy.read_text() + "epsilon_ceiling = 0.01\ndelta = 1e-5\n")
    with federation.rounds(tmp_path / "run", ahead=train_ahead) as rounds:
        rounds.run(federation.initial())
        assert rounds.grid.facts.refusals == {"budget": 1}
    assert ledger_entries(federation.sites / "2") == 0
    assert ledger_entries(federation.sites / "1") == 3


def test_stacking_can_be_demanded(tmp_path: Path):
    federation = Federation(
        tmp_path, "task.kind=tests.unit.test_stacked:WithDropout", "simulation.executor=stacked"
    )
    with pytest.raises(ConfigError, match=r"simulation.executor.*draws random numbers"):
        federation.run(tmp_path / "run", ahead=train_ahead)


def test_a_task_that_fails_gives_the_reason_that_it_gives_serially(tmp_path: Path, caplog):
    federation = Federation(tmp_path, "task.kind=tests.unit.test_stacked:MeanLoss")
    for ahead in (train_ahead, lambda cohort: None):
        with pytest.raises(RunFailed, match="unavailable"):
            federation.run(tmp_path / f"run-{ahead is train_ahead}", ahead=ahead)
    # Never in silence: the next one may be a fault of the stack itself.
    assert "executor serial: training all clients at once failed (ConfigError)" in caplog.text


@pytest.mark.parametrize("privacy", [(), (PRIVATE_RUN,)], ids=["none", "record"])
def test_G6_records_of_another_width_are_named_when_clients_are_trained_at_once(
    tmp_path: Path, privacy, caplog
):
    federation = Federation(tmp_path, "task.kind=tests.unit.test_stacked:Narrow", *privacy)
    with pytest.raises(RunFailed, match="unavailable"):
        federation.run(tmp_path / "run", ahead=train_ahead)
    assert "task.model: the model takes 29 features, the records have 30" in caplog.text


@pytest.mark.parametrize("secure", ["true", "false"])
def test_a_parameter_without_dimensions_is_trained_like_any_other(tmp_path: Path, secure):
    federation = Federation(
        tmp_path,
        "task.kind=tests.unit.test_stacked:Tempered",
        "training.rounds=2",
        f"secure_aggregation.enabled={secure}",
    )
    temperature = federation.run(tmp_path / "run")["temperature"]
    assert temperature.shape == ()
    assert temperature != 1.0


class WithDropout(TabularClassification):
    """The built-in task with a model that draws."""

    def __init__(self):
        experiment = config.loads('name = "x"')
        super().__init__(breast_cancer(), experiment.task.model)

    def model(self):
        return nn.Sequential(nn.Linear(self.num_features, 2), nn.Dropout(0.5))


class MeanLoss(WithDropout):
    """A loss that mixes records."""

    def model(self):
        return nn.Sequential(nn.Linear(self.num_features, 2))

    def loss(self, outputs, targets):
        return super().loss(outputs, targets).mean()


class Narrow(WithDropout):
    """A model for records with a feature less."""

    def model(self):
        return Classifier(nn.Linear(self.num_features - 1, 2), inputs=self.num_features - 1)


class Tempered(WithDropout):
    """A model that has a parameter without dimensions, and so does not stack."""

    def model(self):
        model = nn.Sequential(nn.Linear(self.num_features, 2))
        model.register_parameter("temperature", nn.Parameter(torch.ones(())))
        model.forward = lambda x: model.temperature * model[0](x)
        return model
