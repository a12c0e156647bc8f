"""`scaling = "federated"`: center and scale from sums over all sites, through the same sum as the updates."""

import json

import numpy as np
import pytest

from simulations.run import simulate
from simulations.sources import load_source
from tacit import config
from tacit.data.readers import read_table
from tacit.data.statistics import constants_from, sum_statistics
from tacit.inference.predictor import Predictor
from tacit.inference.trained import Trained

BASE = """
name = "scaling"
[partition]
num_clients = 4
[training]
rounds = 2
[simulation]
baselines = false
"""


def experiment(*settings):
    bare = config.loads(BASE, overrides=settings)
    _, schema = load_source(bare.data)
    columns = schema.model_copy(update={"scaling": "federated"})
    return bare.with_tables(data=bare.data.model_copy(update={"columns": columns}))


def exact_constants(run, out):
    schema = config.load(out / "sites" / "experiment.toml").data.columns
    sums = [sum_statistics(read_table(p, schema), schema) for p in sorted(out.glob("sites/*/data.csv"))]
    return constants_from(np.sum(sums, axis=0), schema), schema


@pytest.mark.parametrize(
    "settings",
    [(), ("secure_aggregation.engine=ideal",), ("secure_aggregation.enabled=false",)],
    ids=["secure", "ideal", "plain"],
)
def test_without_privacy_the_constants_are_those_of_the_pooled_rows(tmp_path, settings):
    record = simulate(experiment(*settings), tmp_path / "run")
    learned = json.loads((tmp_path / "run" / "server" / "scaling.json").read_text())
    exact, schema = exact_constants(record, tmp_path / "run")
    for name, (center, scale) in exact.items():
        half = schema.columns[name].range_affine()[1]
        assert learned[name][0] == pytest.approx(center, abs=0.01 * half)
        assert learned[name][1] == pytest.approx(scale, abs=0.02 * half)
    assert record.final.metrics["auroc"] > 0.9
    # The run's folder has all that rebuilds the model: asked with raw rows it is as good as the report says.
    model = Predictor(Trained.open(tmp_path / "run"))
    right = []
    for path in sorted((tmp_path / "run").glob("sites/*/data.csv")):
        raw, targets = model.reader.read(path)  # a simulated site has rows held out
        right += (model.numbers(raw).argmax(-1) == targets.numpy()).tolist()
    assert np.mean(right) == pytest.approx(record.final.metrics["accuracy"])


def test_no_exact_local_statistic_leaves_a_site_in_a_private_run(tmp_path):
    """The statistics are noised at the site, debited once, and inside the plan's epsilon."""
    private = ("privacy.record={epsilon=50.0, delta=1e-5, statistics_share=0.5}",)
    record = simulate(experiment(*private), tmp_path / "run")
    learned = json.loads((tmp_path / "run" / "server" / "scaling.json").read_text())
    exact, schema = exact_constants(record, tmp_path / "run")
    halves = {name: schema.columns[name].range_affine()[1] for name in exact}
    off = [abs(learned[name][0] - exact[name][0]) / half for name, half in halves.items()]
    # Rounding moves a center by 0.0003 of half its range; noise has a standard deviation of 0.011 or more, so that it
    # stays below 0.005 in all 30 columns with a chance below 1e-13, and is above 0.2 in one below 1e-30. The declared
    # ranges, which are taken where noise is too much, are off by 0.8.
    assert 0.005 < max(off) < 0.2
    for ledger in (tmp_path / "run").glob("sites/*/ledger/ledger.jsonl"):
        purposes = [json.loads(line)["purpose"] for line in ledger.read_text().splitlines()]
        assert purposes == ["statistics", "training", "training"]
    assert record.privacy[0].epsilon <= 50.0


def test_a_resumed_run_keeps_the_constants_and_pays_for_them_once(tmp_path):
    private = ("privacy.record={epsilon=50.0, delta=1e-5}",)
    simulate(experiment(*private), tmp_path / "run")
    scaling = (tmp_path / "run" / "server" / "scaling.json").read_text()
    simulate(experiment(*private), tmp_path / "run", resume=True)
    assert (tmp_path / "run" / "server" / "scaling.json").read_text() == scaling
    ledger = tmp_path / "run" / "sites" / "0" / "ledger" / "ledger.jsonl"
    purposes = [json.loads(line)["purpose"] for line in ledger.read_text().splitlines()]
    assert purposes.count("statistics") == 1
