"""Which arrays of a model never leave a site: FedPer (Arivazhagan et al. 2019) and FedBN (Li et al. 2021)."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.tasks.transfer import rate_factors
from tacit.tasks.weights import array_shapes, build_model, initial_arrays

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import nn

    from tacit.tasks import Task


def personal_names(experiment: Experiment, model: nn.Module) -> frozenset[str]:
    """Names of the arrays that stay at each site, as the strategy says; empty where all of them travel.

    Raises:
        ConfigError: the model has no such array, or no other.
    """
    everything, strategy = list(array_shapes(model)), experiment.strategy
    if strategy.name == "fedper":
        for pattern in strategy.personal:
            if not any(fnmatchcase(name, pattern) for name in everything):
                raise ConfigError(
                    f"no array of the model is called like {pattern!r}; it has {', '.join(everything)}",
                    key="strategy.personal",
                )
        names = {n for n in everything if any(fnmatchcase(n, pattern) for pattern in strategy.personal)}
    elif strategy.name == "fedbn":
        names = _of_batchnorm(model, everything)
        if not names:
            raise ConfigError(
                "keeps BatchNorm layers at the sites, and the model has none", key="strategy.name"
            )
    else:
        return frozenset()
    if len(names) == len(everything):
        raise ConfigError("leaves nothing of the model to train together", key="strategy.personal")
    return frozenset(names)


def _of_batchnorm(model: nn.Module, everything: list[str]) -> set[str]:
    """Weights, biases and running statistics."""
    from torch.nn.modules.batchnorm import _BatchNorm

    layers = [name for name, layer in model.named_modules() if isinstance(layer, _BatchNorm)]
    return {name for name in everything if name.rpartition(".")[0] in layers}


def travelling_shapes(experiment: Experiment, model: nn.Module) -> dict[str, tuple[int, ...]]:
    """Name and shape of every array of a model that the server has."""
    own = personal_names(experiment, model)
    return {name: shape for name, shape in array_shapes(model).items() if name not in own}


def first_arrays(
    experiment: Experiment, task: Task, *, private: bool
) -> tuple[dict[str, NDArray[np.float32]], dict[str, NDArray[np.float32]]]:
    """The weights that round 1 starts from: those that travel, and those that each site begins with by itself.

    Args:
        experiment: its seed and its strategy.
        task: of the model.
        private: whether the model is that of a run with privacy for records.

    Raises:
        ConfigError: see `personal_names` and `rate_factors`.
    """
    arrays = initial_arrays(task, private=private, seed=experiment.seed)
    model = build_model(task, private=private)
    own = personal_names(experiment, model)
    rate_factors(
        model, experiment.training.rate_factors
    )  # a pattern that meets nothing is found here, not at a site
    return (
        {name: array for name, array in arrays.items() if name not in own},
        {name: array for name, array in arrays.items() if name in own},
    )
