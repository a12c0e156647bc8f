"""The optimiser, and its learning rate over rounds and steps."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any, Final

import torch
from torch import nn

from tacit.learning import Training

KINDS: Final[dict[str, type[torch.optim.Optimizer]]] = {
    "sgd": torch.optim.SGD,
    "adam": torch.optim.Adam,
    "adamw": torch.optim.AdamW,
    "rmsprop": torch.optim.RMSprop,
    "adagrad": torch.optim.Adagrad,
}


def learning_rate(settings: Training, round_number: int, step: int = 0) -> float:
    """The rate of a step of a round: a public function of round and step alone.

    Args:
        settings: constant; cosine to zero after the last round; by `gamma` after each `step_rounds` rounds, or little
            by little. Below `warmup_rounds` it is in proportion to the rounds, or steps, begun.
        round_number: from 1.
        step: from 0; counts where the schedule goes by step.
    """
    s, unit = settings, 1 if settings.schedule_by == "round" else 1 / settings.local_steps
    done = round_number - 1 + (step * unit if s.schedule_by == "step" else 0)
    rate = s.learning_rate
    if s.warmup_rounds:
        rate *= min(1.0, (done + unit) / s.warmup_rounds)
    if s.schedule == "cosine":
        rate *= 0.5 * (1 + math.cos(math.pi * done / s.rounds))
    elif s.schedule == "step":
        rate *= s.gamma ** (done // s.step_rounds)
    elif s.schedule == "exponential":
        rate *= s.gamma ** (done / s.step_rounds)
    return rate


def make_optimizer(
    settings: Training, named: Iterable[tuple[str, nn.Parameter]], factors: Mapping[str, float], rate: float
) -> torch.optim.Optimizer:
    """A fresh one; what it does to a coordinate, no other one changes.

    Args:
        settings: which, and its constants.
        named: what it moves, by name.
        factors: of the learning rate, by name; 1 without.
        rate: of the first step, see `learning_rate`.

    Guarantees:
        A factor acts on what is clipped and noised already: on the step, and on no record's gradient.
    """
    common: dict[str, Any] = {"lr": rate, "weight_decay": settings.weight_decay}
    if settings.optimizer in ("sgd", "rmsprop"):
        common["momentum"] = settings.momentum
    groups: dict[float, list[nn.Parameter]] = {}
    for name, parameter in named:
        groups.setdefault(factors.get(name, 1.0), []).append(parameter)
    parts = [{"params": own, "lr": rate * factor, "factor": factor} for factor, own in groups.items()]
    return KINDS[settings.optimizer](parts, **common)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of the steps from here on, times each group's factor."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group["factor"]
