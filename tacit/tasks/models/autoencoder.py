"""Models that give a record back through a narrow code: what they give back badly is out of the ordinary."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from tacit import learning
from tacit.tasks.models.mlp import Classifier, hidden_layers

_LOG_VARIANCE = 10.0  # of a code's coordinate, at most; at least minus this


def autoencoder(model: learning.Model, inputs: int) -> Classifier:
    """Linear layers of the widths in `model.hidden` down to the code, and the same way back."""
    widths = (inputs, *model.hidden, *model.hidden[-2::-1])
    return Classifier(*hidden_layers(model, widths), nn.Linear(widths[-1], inputs), inputs=inputs)


class VAE(nn.Module):
    """A variational autoencoder (Kingma and Welling 2014) with a Gaussian code of width `model.hidden[-1]`.

    Args:
        model: widths down to the code, activation, dropout.
        inputs: numbers per record.
    """

    def __init__(self, model: learning.Model, inputs: int) -> None:
        super().__init__()
        *between, code = model.hidden
        down, up = (inputs, *between), (code, *between[::-1])
        self.encoder = nn.Sequential(*hidden_layers(model, down))
        self.mean, self.log_variance = nn.Linear(down[-1], code), nn.Linear(down[-1], code)
        self.decoder = nn.Sequential(*hidden_layers(model, up), nn.Linear(up[-1], inputs))

    def forward(self, features: Tensor) -> Tensor:
        """The record, then mean and log-variance of its code, shape (rows, inputs + 2 * code).

        In training it is given back from a draw of the code, else from the mean.
        """
        hidden = self.encoder(features)
        mean = self.mean(hidden)
        log_variance = self.log_variance(hidden).clamp(-_LOG_VARIANCE, _LOG_VARIANCE)
        code = mean + torch.exp(log_variance / 2) * self.draw(mean) if self.training else mean
        return torch.cat([self.decoder(code), mean, log_variance], dim=-1)

    def draw(self, mean: Tensor) -> Tensor:
        """Standard normal numbers of that shape, from torch's generator: each record's are its own."""
        return torch.randn_like(mean)
