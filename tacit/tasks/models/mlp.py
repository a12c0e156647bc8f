"""A multi-layer perceptron and logistic (or linear) regression."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor, nn

from tacit import config
from tacit.errors import ConfigError

ACTIVATIONS: dict[str, type[nn.Module]] = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "elu": nn.ELU}


class Classifier(nn.Sequential):
    """A plain stack of layers that says so when records have another size than it was built for."""

    def __init__(self, *layers: nn.Module, inputs: int) -> None:
        super().__init__(*layers)
        self.inputs = inputs

    def forward(self, features: Tensor) -> Tensor:
        """Logits of shape (..., classes) for features of shape (..., inputs)."""
        self.check_width(features)
        for layer in self:
            features = layer(features)
        return features

    def check_width(self, features: Tensor) -> None:
        """Raises `ConfigError` with both widths; whoever passes the layers one by one calls it first."""
        width = features.shape[-1] if features.ndim else 0
        if width != self.inputs:
            raise ConfigError(
                f"the model takes {self.inputs} features, the records have {width}", key="task.model"
            )


def mlp(model: config.Model, inputs: int, outputs: int) -> Classifier:
    """Linear layers of the widths in `model.hidden`, with activations between them."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((inputs, *model.hidden)):
        layers += [nn.Linear(size_in, size_out), ACTIVATIONS[model.activation]()]
    layers.append(nn.Linear((inputs, *model.hidden)[-1], outputs))
    return Classifier(*layers, inputs=inputs)


def logistic(model: config.Model, inputs: int, outputs: int) -> Classifier:
    """One Linear layer."""
    return Classifier(nn.Linear(inputs, outputs), inputs=inputs)
