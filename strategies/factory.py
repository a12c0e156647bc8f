"""From the experiment to a Flower strategy."""

from __future__ import annotations

from flwr.serverapp.strategy import FedAvg, FedProx, Strategy

from tacit.config import Experiment


def make_strategy(experiment: Experiment) -> Strategy:
    """The strategy that `[strategy] name` says; Flower's own classes.

    It samples from the cohort that it is shown, all of it, and never asks for an evaluation round: metrics of the
    model ride with the updates.
    """
    if experiment.strategy.name == "fedprox":
        # The proximal term itself is added by the client, from the same experiment.
        mu = experiment.strategy.proximal_mu
        return FedProx(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1, proximal_mu=mu)
    return FedAvg(fraction_evaluate=0.0, min_train_nodes=1, min_available_nodes=1)
