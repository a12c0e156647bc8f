"""From the experiment to a Flower strategy."""

from __future__ import annotations

from collections import Counter
from typing import Any, Final

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp import strategy as flower
from flwr.serverapp.strategy import Strategy

from strategies.buffered import FedBuff
from strategies.scaffold import Scaffold
from tacit.config import Experiment

# Flower's class of each name, and what it calls our keys.
CLASSES: Final[dict[str, tuple[type[Strategy], dict[str, str]]]] = {
    "fedavg": (flower.FedAvg, {}),
    # The proximal term itself is added by the client, from the same experiment.
    "fedprox": (flower.FedProx, {"proximal_mu": "proximal_mu"}),
    "fedavgm": (
        flower.FedAvgM,
        {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"},
    ),
    "fedadagrad": (flower.FedAdagrad, {"eta": "server_learning_rate", "tau": "tau"}),
    "fedadam": (
        flower.FedAdam,
        {"eta": "server_learning_rate", "beta_1": "beta_1", "beta_2": "beta_2", "tau": "tau"},
    ),
    "fedyogi": (
        flower.FedYogi,
        {"eta": "server_learning_rate", "beta_1": "beta_1", "beta_2": "beta_2", "tau": "tau"},
    ),
    "fednova": (flower.FedAvg, {}),  # the sites normalise their updates: see `client.normalised`
    # What stays at the sites is not in the mean: see `client.participant`.
    "fedper": (flower.FedAvg, {}),
    "fedbn": (flower.FedAvg, {}),
    "ditto": (flower.FedAvg, {}),
    "scaffold": (Scaffold, {"server_learning_rate": "server_learning_rate"}),
    # Its noise is in the sum already: see `tacit.privacy.central`.
    "dp_ftrl": (
        flower.FedAvgM,
        {"server_learning_rate": "server_learning_rate", "server_momentum": "server_momentum"},
    ),
    "fedbuff": (
        FedBuff,
        {"cohorts_at_once": "cohorts_at_once", "server_learning_rate": "server_learning_rate"},
    ),
    "krum": (flower.Krum, {"num_malicious_nodes": "num_malicious"}),
    "multikrum": (
        flower.MultiKrum,
        {"num_malicious_nodes": "num_malicious", "num_nodes_to_select": "num_selected"},
    ),
    "fedmedian": (flower.FedMedian, {}),
    "fedtrimmedavg": (flower.FedTrimmedAvg, {"beta": "trimmed_share"}),
}


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that `[strategy] name` says; Flower's own classes.

    It samples from the cohort that it is shown, all of it, and never asks for an evaluation round: metrics of the
    model ride with the updates.
    """
    kind, names = CLASSES[experiment.strategy.name]
    own = {theirs: experiment.strategy.value(ours) for theirs, ours in names.items()}
    common: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_available_nodes": 1,
        "train_metrics_aggr_fn": summed,
    }
    if kind is Scaffold:
        own["total_weight"] = total_weight(experiment)
    return kind(**common, **own)


def total_weight(experiment: Experiment) -> float:
    """The public aggregation weights of all members together."""
    federation = experiment.federation
    if experiment.strategy.weights == "equal":
        return float(federation.num_members)
    return sum(federation.sizes) / max(federation.sizes)


def summed(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Sums over all sites of metric sums over their records: an update's weight is no weight of its records."""
    totals = Counter[str]()
    for content in contents:
        for record in content.metric_records.values():
            totals.update({name: value for name, value in record.items() if name != weighted_by_key})
    return MetricRecord(dict(totals))
