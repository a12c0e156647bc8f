"""Recurrent networks whose only parameters are those of Linear layers, so that each record has a gradient of its own.

torch's own GRU and LSTM run their steps inside one kernel, which keeps no gradient per record. Here the input goes
through one Linear layer for all steps at once, and the state through another one at each step.
"""

from __future__ import annotations

from abc import abstractmethod

import torch
from torch import Tensor, nn

from tacit import learning


class Recurrent(nn.Module):
    """A cell over time, then a Linear head on its last state beside the mean of all its states.

    Args:
        channels: inputs per step.
        hidden: width of the state.
        outputs: numbers per record.
        gates: blocks of `hidden` that a step computes.
        dropout: of what the head sees.
    """

    def __init__(self, channels: int, hidden: int, outputs: int, *, gates: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.hidden = hidden
        self.input = nn.Linear(channels, gates * hidden)
        self.state = nn.Linear(hidden, gates * hidden)
        self.head = nn.Linear(2 * hidden, outputs)
        self.dropout = nn.Dropout(dropout)

    def forward(self, series: Tensor) -> Tensor:
        """Outputs of shape (rows, outputs) for series of shape (rows, channels, time)."""
        inputs = self.input(series.mT)
        state, memory = inputs.new_zeros(2, len(series), self.hidden)
        states = []
        for step in range(inputs.shape[1]):
            state, memory = self.step(inputs[:, step], state, memory)
            states.append(state)
        mean = torch.stack(states).mean(0)
        outputs: Tensor = self.head(self.dropout(torch.cat([state, mean], dim=1)))
        return outputs

    @abstractmethod
    def step(self, inputs: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """The next state and memory, each (rows, hidden), from a step's (rows, gates * hidden) inputs."""


class RNN(Recurrent):
    """The plain recurrent network of Elman (1990), with tanh."""

    def step(self, inputs: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recurrent`; it has no memory beside its state."""
        return torch.tanh(inputs + self.state(state)), memory


class GRU(Recurrent):
    """Gated recurrent unit (Cho et al. 2014), with the reset gate after the product, as torch has it."""

    def step(self, inputs: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recurrent`; it has no memory beside its state."""
        reset_in, update_in, new_in = inputs.chunk(3, dim=1)
        reset_state, update_state, new_state = self.state(state).chunk(3, dim=1)
        update = torch.sigmoid(update_in + update_state)
        new = torch.tanh(new_in + torch.sigmoid(reset_in + reset_state) * new_state)
        return update * state + (1 - update) * new, memory


class LSTM(Recurrent):
    """Long short-term memory (Hochreiter and Schmidhuber 1997; forget gate of Gers et al. 2000)."""

    def step(self, inputs: Tensor, state: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        """See `Recurrent`."""
        entry, forget, new, exit_ = (inputs + self.state(state)).chunk(4, dim=1)
        memory = torch.sigmoid(forget) * memory + torch.sigmoid(entry) * torch.tanh(new)
        return torch.sigmoid(exit_) * torch.tanh(memory), memory


def rnn(model: learning.Model, channels: int, outputs: int) -> RNN:
    """A plain recurrent network with a state as wide as the last number in `model.hidden`."""
    return RNN(channels, model.hidden[-1], outputs, gates=1, dropout=model.dropout)


def gru(model: learning.Model, channels: int, outputs: int) -> GRU:
    """A GRU with a state as wide as the last number in `model.hidden`."""
    return GRU(channels, model.hidden[-1], outputs, gates=3, dropout=model.dropout)


def lstm(model: learning.Model, channels: int, outputs: int) -> LSTM:
    """An LSTM with a state as wide as the last number in `model.hidden`."""
    return LSTM(channels, model.hidden[-1], outputs, gates=4, dropout=model.dropout)
