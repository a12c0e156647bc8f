"""The built-in model families, each of layers that DP-SGD can train, small unless told otherwise.

| name | for records of shape | module |
|---|---|---|
| mlp, logistic | (features,) | `mlp` |
| cnn | (channels, height, width) | `convolution` |
| cnn1d | (channels, time) | `convolution` |
| gru, lstm | (channels, time) | `recurrent` |
"""

from tacit.tasks.models.families import AXES, FLAT, build, build_for
from tacit.tasks.models.mlp import ACTIVATIONS, Classifier

__all__ = ["build", "build_for", "AXES", "FLAT", "ACTIVATIONS", "Classifier"]
