"""A ranking from a user's own table to what leaves the run: it learns under a promise, and orders items as it did."""

from pathlib import Path

import numpy as np
import pytest
import torch

from simulations.auditing.inversion import audit_inversion
from simulations.run import simulate
from tacit import config
from tacit.inference.export import export_torch
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained
from tacit.tasks.ranking import Ranking

EXPERIMENT = """
name = "offers"
[task]
kind = "array_ranking"
[task.model]
hidden = [8]
[data]
source = "csv"
path = "{path}"
[data.arrays]
shape = [3, 6]
grades = 3
[data.arrays.lists]
id = "customer"
features = ["price", "fit", "noise"]
relevance = "relevance"
[partition]
num_clients = 3
[training]
rounds = 10
sampling_rate = 0.2
learning_rate = 0.1
optimizer = "adam"
[privacy.record]
epsilon = 8.0
delta = 1e-4
[secure_aggregation]
engine = "ideal"
[simulation]
baselines = false
"""


@pytest.fixture(scope="module")
def offers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """600 customers with two to six offers each; what fits and is cheap is relevant."""
    folder, rng = tmp_path_factory.mktemp("offers"), np.random.default_rng(3)
    lines = ["customer,price,fit,noise,relevance"]
    for customer in range(600):
        for price, fit, noise in rng.normal(size=(int(rng.integers(2, 7)), 3)).round(3):
            relevance = int(np.clip(np.round(1 + fit - price), 0, 3))
            lines.append(f"c{customer},{price},{fit},{noise},{relevance}")
    (folder / "offers.csv").write_text("\n".join(lines), encoding="utf-8")
    return folder


def test_lists_of_a_table_are_ranked_under_a_promise_better_than_at_random(offers: Path) -> None:
    record = simulate(config.loads(EXPERIMENT.format(path=offers / "offers.csv")), offers / "run")
    found = record.final.metrics
    assert set(found) == {"ndcg", "map"}
    trained = Trained.open(offers / "run")
    records = trained.task.read(
        offers / "offers.csv", "train"
    )  # whoever is trained on: here it is about the order
    random = Ranking().summary(torch.rand(*records.targets.shape, 1), records.targets)
    assert random["ndcg"] < 0.8 and found["ndcg"] is not None and found["ndcg"] > 0.9
    assert found["map"] is not None and found["map"] > random["map"] + 0.05
    card = (offers / "run" / "model-card.md").read_text(encoding="utf-8")
    assert "a score for each item, learned from relevances of 0 to 3" in card
    assert "one whole list of one site" in (offers / "run" / "privacy-statement.md").read_text(
        encoding="utf-8"
    )

    predictor = Predictor(trained)
    raw, targets = predictor.reader.read(offers / "offers.csv")
    scores = predictor.predict(raw)["scores"]
    with torch.no_grad():
        wanted = trained.model(records.features).squeeze(-1).numpy()
    np.testing.assert_allclose(scores, wanted, atol=1e-5)
    assert predictor.score(scores, targets) == ("ndcg", pytest.approx(found["ndcg"], abs=0.05))
    assert export_torch(predictor, offers / "model.pt2") < 1e-4


def test_a_list_is_searched_for_by_an_attacker_because_no_ratio_of_gradients_is_all_of_its_items(
    offers: Path, tmp_path: Path
) -> None:
    experiment = config.loads(EXPERIMENT.format(path=offers / "offers.csv"))
    found = audit_inversion(experiment, tmp_path, seed=1)
    assert found.attack == "search for the features"
    assert all(len(image.values) == 18 for image in found.images)
