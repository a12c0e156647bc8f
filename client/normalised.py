"""Updates of sites that take different numbers of steps, made comparable: FedNova (Wang et al. 2020).

FedAvg weighs a site by how many steps it takes, and so ends at the optimum of another objective (Theorem 1).
FedNova divides each update by its own accumulated step (eq. 7) and multiplies the mean by an effective number of
steps. Steps and weights are public here, so that the site multiplies by both and the sum stays a weighted mean.

The factor is a constant of the experiment. Under a promise for records it is post-processing of a private update;
under one for clients the update is clipped after it.
"""

from __future__ import annotations

from collections.abc import Mapping

from tacit.config import Experiment


def accumulated(steps: int, momentum: float) -> float:
    """The norm of a_i of Wang et al. 2020, section 4: how often each local gradient counts, summed over the steps.

    With momentum m the gradient of step k of n counts (1 - m^(n - k)) / (1 - m) times; without, once.
    """
    return sum((1 - momentum**left) / (1 - momentum) for left in range(1, steps + 1))


def factors(experiment: Experiment) -> Mapping[str, float]:
    """What each site's update is multiplied by, by label; empty where all count as they are.

    tau_eff / |a_i|, where tau_eff is the weighted mean of the |a_i| of all that are declared. The paper has that of the
    round's cohort: with all of them the factor is known before anybody is missing.
    """
    sites, training = experiment.federation.sites, experiment.training
    if experiment.strategy.name != "fednova" or not sites:
        return {}
    weights = [1.0 if experiment.strategy.weights == "equal" else site.rows for site in sites]
    sums = [accumulated(site.steps or training.local_steps, training.momentum) for site in sites]
    effective = sum(w * a for w, a in zip(weights, sums, strict=True)) / sum(weights)
    return {site.label: effective / a for site, a in zip(sites, sums, strict=True)}
