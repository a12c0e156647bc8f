"""The built-in models: a multi-layer perceptron and logistic regression, of layers that DP-SGD can train."""

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


def build(model: config.Model, inputs: int, classes: int) -> Classifier:
    """A fresh model, its weights drawn from torch's global generator.

    Args:
        model: which one, and its size.
        inputs: features per record.
        classes: logits per record; a binary task has two.
    """
    if model.name == "logistic":
        return Classifier(nn.Linear(inputs, classes), inputs=inputs)
    layers: list[nn.Module] = []
    for size_in, size_out in pairwise((inputs, *model.hidden)):
        layers += [nn.Linear(size_in, size_out), ACTIVATIONS[model.activation]()]
    layers.append(nn.Linear((inputs, *model.hidden)[-1], classes))
    return Classifier(*layers, inputs=inputs)
