"""What the harness knows: exact metrics of any model, and the baselines."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from simulations.evaluate import Harness, site_mean
from tacit.tasks import Records
from tests.unit.small_federation import PRIVATE, TEXT, Federation


class WithBatchNorm:
    """A task of somebody's own."""

    metric_names = ("accuracy",)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(30, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))

    def read(self, path: Path, split: str) -> Records:
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if row.pop("split") == split]
        labels = [int(row.pop("diagnosis") == "malignant") for row in rows]
        features = torch.tensor([[float(cell) for cell in row.values()] for row in rows]).reshape(-1, 30)
        return Records(features.log1p() / 5, torch.tensor(labels))

    def loss(self, outputs: Tensor, targets: Tensor) -> Tensor:
        return nn.functional.cross_entropy(outputs, targets, reduction="none")

    def metrics(self, outputs: Tensor, targets: Tensor) -> dict[str, Tensor]:
        return {"accuracy": (outputs.argmax(-1) == targets).float()}


OWN = TEXT.replace("[task.model]\nhidden = [4]", '[task]\nkind = "tests.unit.test_evaluate:WithBatchNorm"')


@pytest.mark.parametrize("privacy", [(), (PRIVATE,)], ids=["not private", "private"])
def test_baselines_train_the_model_that_the_federation_trains(tmp_path: Path, privacy: Any) -> None:
    """A private run has GroupNorm where the task says BatchNorm, and so have the baselines beside it."""
    federation = Federation(tmp_path / "sites", "training.sampling_rate=1.0", *privacy, text=OWN)
    harness = Harness(federation.experiment, federation.sites)
    final = federation.run(tmp_path / "run")
    pooled, own = harness.pooled(), harness.local()
    assert set(final) == set(pooled) == set(own["site-1"])
    assert ("1.running_mean" in final) == (not privacy)
    for arrays in (final, pooled, own["site-1"]):
        accuracy = harness.overall(arrays)["accuracy"]
        assert accuracy is not None
        assert 0 <= accuracy <= 1
        assert set(harness.per_site(arrays)) == set(federation.labels)


def test_latency_is_of_one_record_at_a_time(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites", "training.rounds=1")
    harness, final, seen = (
        Harness(federation.experiment, federation.sites),
        federation.run(tmp_path / "run"),
        [],
    )
    harness._model.register_forward_hook(lambda model, inputs, outputs: seen.append(len(inputs[0])))
    found = harness.latency(final)
    assert 0 < found["prediction"] <= found["prediction_p95"] < 1
    assert seen == [1] * (1 + min(200, sum(site.test.num_rows for site in harness.sites)))


def test_a_site_without_a_value_takes_the_metric_out_of_the_mean_over_sites() -> None:
    sites = {"a": {"accuracy": 0.5, "auroc": 0.9}, "b": {"accuracy": 1.0, "auroc": None}}
    assert site_mean(sites) == {"accuracy": 0.75}
    assert site_mean({**sites, "c": {"auroc": 0.5}}) == {}
    assert site_mean({}) == {}


def test_the_majority_guesses_each_sites_most_frequent_training_class(tmp_path: Path) -> None:
    federation = Federation(tmp_path / "sites")
    harness = Harness(federation.experiment, federation.sites)
    for site in harness.sites:
        classes = site.train.targets.tolist()
        guess = max(sorted(set(classes)), key=classes.count)
        expected = sum(t == guess for t in site.test.targets.tolist()) / site.test.num_rows
        assert harness.majority()[site.label] == {"accuracy": pytest.approx(expected)}
