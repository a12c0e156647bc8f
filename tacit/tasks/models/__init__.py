"""The built-in model families, each of layers that DP-SGD can train, small unless told otherwise.

| name | for records of shape | module |
|---|---|---|
| mlp, logistic | (features,), or (items, features) to rank | `mlp` |
| autoencoder, vae | (features,) | `autoencoder` |
| cnn, resnet | (channels, height, width) | `convolution` |
| cnn1d | (channels, time) | `convolution` |
| rnn, gru, lstm | (channels, time) | `recurrent` |
| transformer | (channels, time), or tokens | `attention` |
| embedding | tokens | `embedding` |
| gan | rows that it makes up, with a class | `gan` |
"""

from tacit.tasks.models.families import (
    AXES,
    FLAT,
    GIVES_BACK,
    MAKES_UP,
    build,
    build_for,
    build_for_text,
    build_to_give_back,
    build_to_make_up,
    build_to_rank,
)
from tacit.tasks.models.mlp import ACTIVATIONS, Classifier

__all__ = [
    "build",
    "build_for",
    "build_for_text",
    "build_to_give_back",
    "build_to_make_up",
    "build_to_rank",
    "AXES",
    "FLAT",
    "GIVES_BACK",
    "MAKES_UP",
    "ACTIVATIONS",
    "Classifier",
]
