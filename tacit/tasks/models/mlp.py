"""A multi-layer perceptron and logistic (or linear) regression."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from tacit import learning
from tacit.errors import ConfigError

ACTIVATIONS: dict[learning.Activation, type[nn.Module]] = {
    "relu": nn.ReLU,
    "leaky_relu": nn.LeakyReLU,
    "elu": nn.ELU,
    "selu": nn.SELU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
    "softplus": nn.Softplus,
}


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


def mlp(model: learning.Model, inputs: int, outputs: int) -> Classifier:
    """Linear layers of the widths in `model.hidden`, with activations between them."""
    widths = (inputs, *model.hidden)
    return Classifier(*hidden_layers(model, widths), nn.Linear(widths[-1], outputs), inputs=inputs)


def logistic(model: learning.Model, inputs: int, outputs: int) -> Classifier:
    """One Linear layer."""
    return Classifier(nn.Linear(inputs, outputs), inputs=inputs)


def hidden_layers(model: learning.Model, widths: Sequence[int]) -> list[nn.Module]:
    """From each width to the next: Linear, activation, and dropout where the model has it."""
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise(widths):
        layers += [nn.Linear(size_in, size_out), ACTIVATIONS[model.activation](), *dropout(model)]
    return layers


def dropout(model: learning.Model) -> list[nn.Module]:
    """The layer, or none: a model without it has the same names for its arrays, and stacks."""
    return [nn.Dropout(model.dropout)] if model.dropout else []
