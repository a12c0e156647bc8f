"""The learning rate over rounds and steps."""

from __future__ import annotations

import math

import torch

from tacit.learning import Training


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


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Of the steps from here on."""
    for group in optimizer.param_groups:
        group["lr"] = rate
