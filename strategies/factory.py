"""From the experiment to a Flower strategy."""

from __future__ import annotations

from collections import Counter
from typing import Any

from flwr.app import MetricRecord, RecordDict
from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from tacit.config import Experiment


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that `[strategy] name` says; Flower's own classes.

    It samples from the cohort that it is shown, all of it, and never asks for an evaluation round: metrics of the
    model ride with the updates.
    """
    common: dict[str, Any] = {
        "fraction_evaluate": 0.0,
        "min_train_nodes": 1,
        "min_available_nodes": 1,
        "train_metrics_aggr_fn": summed,
    }
    if experiment.strategy.name == "fedprox":
        # The proximal term itself is added by the client, from the same experiment.
        return FedProx(**common, proximal_mu=experiment.strategy.proximal_mu)
    return FedAvg(**common)


def summed(contents: list[RecordDict], weighted_by_key: str) -> MetricRecord:
    """Sums over all sites of metric sums over their records: an update's weight is no weight of its records."""
    totals = Counter[str]()
    for content in contents:
        for record in content.metric_records.values():
            totals.update({name: value for name, value in record.items() if name != weighted_by_key})
    return MetricRecord(dict(totals))
