"""Which model an experiment names, and which shape of record it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Final

from torch import nn

from tacit import config
from tacit.errors import ConfigError
from tacit.tasks.models.convolution import cnn, cnn1d
from tacit.tasks.models.mlp import Classifier, logistic, mlp
from tacit.tasks.models.recurrent import gru, lstm

# How many axes a record has. Of these two, any number: their records are made flat first.
FLAT: Final[Mapping[str, Callable[[config.Model, int, int], Classifier]]] = {"mlp": mlp, "logistic": logistic}
AXES: Final[Mapping[str, int]] = {"cnn": 3, "cnn1d": 2, "gru": 2, "lstm": 2}
_MADE_BY: Final[Mapping[str, Callable[[config.Model, int, int], nn.Module]]] = {
    "cnn": cnn,
    "cnn1d": cnn1d,
    "gru": gru,
    "lstm": lstm,
}


def build(model: config.Model, inputs: int, classes: int) -> Classifier:
    """A fresh model of table rows, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        inputs: features per record.
        classes: logits per record; a binary task has two.

    Raises:
        ConfigError: the family is for arrays.
    """
    if model.name not in FLAT:
        raise ConfigError(
            f'"{model.name}" reads arrays; a table row takes {", ".join(FLAT)}', key="task.model.name"
        )
    return FLAT[model.name](model, inputs, classes)


def build_for(model: config.Model, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A fresh model of records of this shape, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        shape: of one record: (features,), (channels, time) or (channels, height, width). "mlp" and "logistic" take
            any, and get their records flat.
        outputs: numbers per record: a logit per class, or what is predicted.

    Raises:
        ConfigError: the family takes another number of axes.
    """
    if model.name in FLAT:
        return FLAT[model.name](model, math.prod(shape), outputs)
    if len(shape) != AXES[model.name]:
        raise ConfigError(
            f'"{model.name}" takes records of {AXES[model.name]} axes, these have {len(shape)}: {shape}',
            key="task.model.name",
        )
    return _MADE_BY[model.name](model, shape[0], outputs)
