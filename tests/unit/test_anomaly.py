"""Tasks that look for anomalies: what they read, what they learn from, and what says how good they are."""

from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.metrics import roc_auc_score

from client.training import Job, LocalTrainer
from tacit import config, learning
from tacit.privacy.noise import SeededKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.tasks import Records, Summarises, Task, load_task
from tacit.tasks.anomaly import Anomalies, errors, with_labels
from tacit.tasks.models.autoencoder import VAE
from tacit.tasks.weights import initial_arrays

TEXT = """
name = "odd"
device = "cpu"
[task]
kind = "array_anomaly"
model = {name = "autoencoder", hidden = [4, 2], activation = "tanh"}
[data]
source = "npz"
path = "unused.npz"
[data.arrays]
shape = [2, 3]
classes = ["ordinary", "odd", "odder"]
[training]
rounds = 300
sampling_rate = 0.5
learning_rate = 0.05
optimizer = "adam"
"""


def made(*overrides: str) -> tuple[config.Experiment, Task]:
    experiment = config.loads(TEXT, overrides=overrides)
    return experiment, load_task(experiment)


def records(rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Ordinary ones lie near a plane, odd ones anywhere."""
    rng = np.random.default_rng(5)
    y = rng.integers(0, 40, rows) // 37
    plane = rng.normal(size=(rows, 2)) @ rng.normal(size=(2, 6))
    x = np.where(y[:, None] > 0, rng.normal(size=(rows, 6)) * 2, plane + rng.normal(size=(rows, 6)) * 0.1)
    return x.reshape(rows, 2, 3).astype(np.float32), y


def test_a_table_and_an_archive_are_read_as_records_that_are_their_own_targets(tmp_path: Path) -> None:
    x, _ = records(8)
    np.savez(tmp_path / "data.npz", x=x, y=np.array([0, 1, 2, 0, 0, 0, 0, 0]))
    _, task = made()
    assert isinstance(task, Task) and isinstance(task, Summarises)
    got = task.read(tmp_path / "data.npz", "train")
    assert torch.equal(got.features, torch.from_numpy(x.reshape(8, 6)))
    assert torch.equal(got.targets[:, :-1], got.features)
    assert got.targets[:, -1].tolist() == [0, 1, 1, 0, 0, 0, 0, 0]
    table = (
        'name = "x"\n[task]\nkind = "tabular_anomaly"\nmodel = {name = "vae"}\n[data.schema]\nlabel = "y"\n'
    )
    task = load_task(config.loads(table + 'columns.a = {kind = "numeric", range = [0, 10]}'))
    (tmp_path / "data.csv").write_text("a,y\n5,0\n10,1\n")
    assert task.read(tmp_path / "data.csv", "train").targets.tolist() == [[0, 0], [1, 1]]
    assert task.model()(torch.zeros(3, 1)).shape == (3, 1 + 2 * 16)


@pytest.mark.parametrize("code", [0, 2])
def test_a_label_reaches_the_summary_alone(code: int) -> None:
    """Neither loss nor metrics nor their gradients change with it."""
    torch.manual_seed(1)
    features, task = torch.randn(5, 3), Anomalies()
    outputs = torch.randn(5, 3 + 2 * code, requires_grad=True)
    seen = []
    for labels in (torch.zeros(5), torch.tensor([0, 1, 0, 1, 1])):
        targets = with_labels(features, labels)
        loss = task.loss(outputs, targets)
        (gradient,) = torch.autograd.grad(loss.sum(), outputs)
        seen.append((loss, task.metrics(outputs, targets)["error"], gradient))
    assert all(torch.equal(a, b) for a, b in zip(*seen, strict=True))


def test_anomaly_metrics_lie_in_0_1_for_each_record_whatever_the_outputs() -> None:
    outputs = torch.tensor([[0.0, 0.0], [1e30, 0.0], [float("nan"), 0.0], [float("-inf"), 1.0]])
    targets = with_labels(torch.zeros(4, 2), torch.tensor([0, 1, 0, 1]))
    assert Anomalies().metrics(outputs, targets)["error"].tolist() == [0.0, 1.0, 1.0, 1.0]
    assert all(np.isfinite(value) for value in Anomalies().summary(outputs, targets).values())


def test_the_loss_of_a_variational_autoencoder_is_the_evidence_bound() -> None:
    torch.manual_seed(2)
    features, decoded, mean, log_variance = (torch.randn(4, n) for n in (3, 3, 2, 2))
    code = torch.distributions.Normal(mean, (log_variance / 2).exp())
    divergence = torch.distributions.kl_divergence(code, torch.distributions.Normal(0.0, 1.0)).sum(1)
    likelihood = torch.distributions.Normal(decoded, 1.0).log_prob(features).sum(1)
    constant = torch.distributions.Normal(0.0, 1.0).log_prob(torch.zeros(3)).sum()
    wanted = -2 / 3 * (likelihood - constant - divergence)
    targets = with_labels(features, torch.zeros(4))
    got = Anomalies().loss(torch.cat([decoded, mean, log_variance], 1), targets)
    torch.testing.assert_close(got, wanted)


def test_a_variational_autoencoder_draws_in_training_and_gives_the_mean_back_after_it() -> None:
    model = VAE(learning.Model(name="vae", hidden=(5, 2)), 3)
    x = torch.randn(4, 3)
    first, second = model(x), model(x)
    assert not torch.equal(first[:, :3], second[:, :3]) and torch.equal(first[:, 3:], second[:, 3:])
    model.eval()
    torch.testing.assert_close(model(x)[:, :3], model.decoder(model(x)[:, 3:5]))
    assert model(x * 1e30)[:, 5:].abs().max() <= 10


def test_summary_ranks_errors_against_labels_and_is_silent_where_there_is_one_kind() -> None:
    torch.manual_seed(3)
    targets = with_labels(torch.randn(30, 3), torch.arange(30) % 3)
    outputs = torch.randn(30, 7)
    summary = Anomalies().summary(outputs, targets)
    assert summary["auroc"] == pytest.approx(roc_auc_score(targets[:, -1], errors(outputs, targets)))
    assert "auroc" not in Anomalies().summary(outputs[:1], targets[:1])
    assert Anomalies().summary(outputs[:0], targets[:0]) == {}


@pytest.mark.parametrize("name", ["autoencoder", "vae"])
def test_what_is_not_like_the_others_has_the_larger_error(name: str) -> None:
    experiment, task = made(f"task.model.name={name}")
    x, y = records()
    features = torch.from_numpy(x.reshape(len(x), 6))
    rows = Records(features, with_labels(features, torch.from_numpy(y)))
    trainer = LocalTrainer(task, PrivacyPlan.of(experiment), experiment)
    arrays = initial_arrays(task, private=False, seed=1)

    def auroc() -> float:
        trainer.model.eval()
        with torch.no_grad():
            return task.summary(trainer.model(features), rows.targets)["auroc"]

    trainer.model.load_state_dict({key: torch.from_numpy(array) for key, array in arrays.items()})
    before = auroc()
    for number in range(1, 31):
        delta = trainer.train(arrays, Job("north", rows, 400), number, SeededKeys(1))
        arrays = {key: arrays[key] + delta[key] for key in arrays}
    assert auroc() > before + 0.1
