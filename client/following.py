"""The part of a model that no record trains: it follows the rest, after each step, at no cost.

What is computed from private weights alone is as private as they are (post-processing; Dwork and Roth 2014, proposition
2.1). For a generator and its discriminator: Xie et al. 2018 (DPGAN), Torkzadehmahani et al. 2019 (DP-CGAN).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import nn

from client.draws import generator_on
from client.schedule import set_rate
from tacit.tasks import Follows
from tacit.tasks.weights import Arrays, floats, load_arrays

MakeOptimizer = Callable[[Iterable[tuple[str, nn.Parameter]]], torch.optim.Optimizer]


class Following:
    """A model of its own, through which no record ever passes, and the steps of the part that follows.

    Args:
        task: says which part follows, and by which loss.
        model: of the same kind as the one that records train, with other tensors.
        every: steps of the others to each one of the part.

    Attributes:
        names: arrays of the part.

    Guarantees:
        Given the weights that records have trained, what follows depends on no record.
    """

    def __init__(self, task: Follows, model: nn.Module, every: int = 1) -> None:
        # Nothing in it draws from torch's own generator, whose place tells how many records a batch had.
        self.task, self.model = task, model.requires_grad_(False).eval()
        self.part, self.every = task.follower(model), every
        own = {id(parameter) for parameter in self.part.parameters()}
        self._named = [(name, p) for name, p in model.named_parameters() if id(p) in own]
        self._own = [parameter for _, parameter in self._named]
        self.names = {name for name, _ in self._named}

    def begin(self, arrays: Arrays, make_optimizer: MakeOptimizer, key: bytes) -> None:
        """A round's: the weights received, an optimiser of its own, and draws that nothing else reads from."""
        load_arrays(self.model, arrays)
        self.optimizer = make_optimizer(self._named) if self._named else None
        self.draws = generator_on(torch.device("cpu"), key)

    def step(self, model: nn.Module, number: int, rate: float) -> None:
        """Takes the trained weights out of `model`, makes a step if one is due, and puts the part into it.

        Args:
            model: that records have trained; whatever else a step did to the part is written over.
            number: of the step, from 0.
            rate: its learning rate.
        """
        theirs, ours = floats(model), floats(self.model)
        for name, tensor in ours.items():
            if name not in self.names:
                tensor.copy_(theirs[name])
        if self.optimizer is not None and (number + 1) % self.every == 0:
            self._move(self.optimizer, rate)
        for name in self.names:
            theirs[name].copy_(ours[name])

    def _move(self, optimizer: torch.optim.Optimizer, rate: float) -> None:
        self.part.requires_grad_(True)
        loss = self.task.follower_loss(self.model, self.draws)
        for parameter, gradient in zip(self._own, torch.autograd.grad(loss, self._own), strict=True):
            parameter.grad = gradient
        self.part.requires_grad_(False)
        set_rate(optimizer, rate)
        optimizer.step()
