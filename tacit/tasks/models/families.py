"""Which model an experiment names, and which shape of record it takes."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Final

from torch import nn

from tacit import learning
from tacit.data.rows import Names, Number
from tacit.errors import ConfigError
from tacit.tasks.models.attention import text_transformer, transformer
from tacit.tasks.models.autoencoder import VAE, autoencoder
from tacit.tasks.models.convolution import cnn, cnn1d, resnet
from tacit.tasks.models.embedding import Embedding
from tacit.tasks.models.gan import GAN
from tacit.tasks.models.mlp import Classifier, logistic, mlp
from tacit.tasks.models.recurrent import gru, lstm, rnn

# Of records of any shape, which are made flat first.
FLAT: Final[Mapping[str, Callable[[learning.Model, int, int], Classifier]]] = {
    "mlp": mlp,
    "logistic": logistic,
}
# Of records that they give back, flat as well.
GIVES_BACK: Final[Mapping[str, Callable[[learning.Model, int], nn.Module]]] = {
    "autoencoder": autoencoder,
    "vae": VAE,
}
# Of rows that they make up.
MAKES_UP: Final = ("gan",)
# Of records with so many axes.
AXES: Final[Mapping[str, int]] = {
    "cnn": 3, "resnet": 3, "cnn1d": 2, "rnn": 2, "gru": 2, "lstm": 2, "transformer": 2,
}  # fmt: skip
# Of the tokens of a text.
TOKENS: Final[Mapping[str, Callable[[learning.Model, int, int], nn.Module]]] = {
    "embedding": Embedding,
    "transformer": text_transformer,
}
_MADE_BY: Final[Mapping[str, Callable[[learning.Model, int, int], nn.Module]]] = {
    "cnn": cnn,
    "resnet": resnet,
    "cnn1d": cnn1d,
    "rnn": rnn,
    "gru": gru,
    "lstm": lstm,
    "transformer": transformer,
}


def build(model: learning.Model, inputs: int, classes: int) -> Classifier:
    """A fresh model of table rows, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        inputs: features per record.
        classes: logits per record; a binary task has two.

    Raises:
        ConfigError: the family is for arrays, or gives records back.
    """
    if model.name in FLAT:
        return FLAT[model.name](model, inputs, classes)
    _check_predicts(model)
    raise ConfigError(
        f'"{model.name}" reads arrays; a table row takes {", ".join(FLAT)}', key="task.model.name"
    )


def build_for(model: learning.Model, shape: tuple[int, ...], outputs: int) -> nn.Module:
    """A fresh model of records of this shape, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        shape: of one record: (features,), (channels, time) or (channels, height, width). "mlp" and "logistic" take
            any, and get their records flat.
        outputs: numbers per record: a logit per class, or what is predicted.

    Raises:
        ConfigError: the family takes another number of axes, or gives records back.
    """
    if model.name in FLAT:
        return FLAT[model.name](model, math.prod(shape), outputs)
    _check_predicts(model)
    if len(shape) != AXES[model.name]:
        raise ConfigError(
            f'"{model.name}" takes records of {AXES[model.name]} axes, these have {len(shape)}: {shape}',
            key="task.model.name",
        )
    return _MADE_BY[model.name](model, shape[0], outputs)


def build_for_text(model: learning.Model, num_tokens: int, outputs: int) -> nn.Module:
    """A fresh model of tokens, of which there are so many, its weights drawn from torch's global generator.

    Raises:
        ConfigError: the family is for something else.
    """
    if model.name not in TOKENS:
        raise ConfigError(f'"{model.name}" reads no text; {", ".join(TOKENS)} do', key="task.model.name")
    return TOKENS[model.name](model, num_tokens, outputs)


def build_to_give_back(model: learning.Model, inputs: int) -> nn.Module:
    """A fresh model that gives records of so many numbers back, its weights from torch's global generator.

    Raises:
        ConfigError: the family predicts something else.
    """
    if model.name not in GIVES_BACK:
        raise ConfigError(
            f'"{model.name}" gives no record back; what looks for anomalies takes {", ".join(GIVES_BACK)}',
            key="task.model.name",
        )
    return GIVES_BACK[model.name](model, inputs)


def build_to_rank(model: learning.Model, features: int) -> Classifier:
    """A fresh model that scores each item of a list by its own features, its weights from torch's global generator.

    Raises:
        ConfigError: the family scores no items.
    """
    if model.name not in FLAT:
        raise ConfigError(
            f'"{model.name}" does not score items one by one; {", ".join(FLAT)} do', key="task.model.name"
        )
    return FLAT[model.name](model, features, 1)


def build_to_make_up(model: learning.Model, layout: Sequence[Number | Names], classes: int) -> GAN:
    """A fresh model that makes rows up, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        layout: of a row's features.
        classes: that a row can be of.

    Raises:
        ConfigError: the family makes nothing up.
    """
    if model.name not in MAKES_UP:
        raise ConfigError(
            f'"{model.name}" makes no rows up; {", ".join(MAKES_UP)} does', key="task.model.name"
        )
    return GAN(model, layout, classes)


def _check_predicts(model: learning.Model) -> None:
    if model.name in MAKES_UP:
        raise ConfigError(
            f'"{model.name}" makes rows up and predicts nothing: set task.kind to {" or ".join(learning.SYNTHESIS)}',
            key="task.model.name",
        )
    if model.name in TOKENS and model.name not in AXES:
        raise ConfigError(
            f'"{model.name}" reads text: set task.kind to {" or ".join(learning.TEXT)}', key="task.model.name"
        )
    if model.name in GIVES_BACK:
        raise ConfigError(
            f'"{model.name}" gives records back and predicts nothing: set task.kind to '
            f"{' or '.join(learning.ANOMALY)}",
            key="task.model.name",
        )
