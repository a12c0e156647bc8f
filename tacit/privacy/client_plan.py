"""The promise for everything that one client has: noise on the sum of a round's vectors.

Two vectors count as neighbours when one client's is replaced by zeros; the clipped vector has a norm of at most C, so
the sum moves by at most C. Which clients a round draws is public, so that drawing some of them amplifies nothing.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import Final, Literal

from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.accountant import Event, epsilon_claimed
from tacit.privacy.banded import column_norm
from tacit.privacy.calibration import calibrate
from tacit.privacy.discrete import MAX_STD

RELATION: Final = "replace one client's vector by zeros"

_LEAST_SHARE: Final = 0.5  # scale below which Proposition 14 of Kairouz, Liu, Steinke 2021 says nothing


@dataclass(frozen=True)
class ClientPlan:
    """What a run releases about clients, and what it costs.

    Attributes:
        epsilon: what the run claims, for all `debits`.
        epsilon_replaced: the same where a neighbour has another vector instead of none: 2 C instead of C.
        target_epsilon: what was asked for; `epsilon` is just below it.
        delta: of both.
        rounds: that one client can take part in: all of the run, or where members take turns one in `separation`.
        debits: these plus reserve for repeated attempts; what the noise is calibrated for.
        placement: who adds the noise: each client its share ("distributed"), or the server ("central").
        noise_multiplier: z; the noise of the sum over C; with `dp_ftrl` over what C becomes in all rounds together.
        num_shares: how many shares of noise are sure to be in a sum: n - D - c of a full cohort; 1 of a server.
        share_std: scale of one share, in integer units. In a smaller cohort there are fewer and larger ones, whose
            sum costs no more.
        separation: rounds from one that a client takes part in to its next, at least.

    Guarantees:
        All sums of a run together cost at most `epsilon` at `delta`.
        A plan for clients whose noise does not keep its claim cannot be constructed.
    """

    epsilon: float
    epsilon_replaced: float
    target_epsilon: float
    delta: float
    rounds: int
    debits: int
    placement: Literal["distributed", "central"]
    noise_multiplier: float
    num_shares: int
    share_std: float
    separation: int = 1

    def __post_init__(self) -> None:
        if self.debits < self.rounds:
            raise ValueError(f"a plan for {self.debits} debits cannot pay for {self.rounds} rounds")
        event = self.event().repeated(self.debits)
        bounds = (event, self.epsilon), (event.doubled(), self.epsilon_replaced)
        if any(epsilon_claimed(releases, self.delta) > epsilon for releases, epsilon in bounds):
            raise ValueError("the noise of this plan does not keep its epsilon")

    @classmethod
    def of(cls, experiment: Experiment) -> ClientPlan | None:
        """The plan of an experiment; None where it has no `[privacy.client]`.

        Raises:
            ConfigError: the members are not declared yet, or no noise keeps the budget.
        """
        budget, secure = experiment.privacy.client, experiment.secure_aggregation
        if budget is None:
            return None
        if not experiment.federation.num_members:
            raise ConfigError("the noise of [privacy.client] follows from the cohort", key="federation.sites")
        strategy, norm = experiment.strategy, float(2**secure.precision_bits)
        rounds = math.ceil(experiment.training.rounds / strategy.separation)
        shares = experiment.cohort_size - secure.max_dropouts - secure.max_corrupt
        if strategy.name == "dp_ftrl":  # one vector moves C times the sums by this, in all rounds together
            norm *= column_norm(int(strategy.value("bands")), strategy.value("server_momentum"))
        plan = cls.from_budget(
            budget.epsilon,
            budget.delta,
            rounds=rounds,
            debits=rounds + math.ceil(round(budget.reserve * rounds, 6)),
            placement=budget.noise,
            num_shares=shares if budget.noise == "distributed" else 1,
            norm=norm,
            separation=strategy.separation,
        )
        if plan.share_std > MAX_STD:
            excess = math.ceil(math.log2(plan.share_std / MAX_STD))
            raise ConfigError(
                f"so much noise cannot be drawn in units so small: {secure.precision_bits - excess} is the most",
                key="secure_aggregation.precision_bits",
            )
        return plan

    @classmethod
    def from_budget(
        cls,
        epsilon: float,
        delta: float,
        *,
        rounds: int,
        debits: int,
        placement: Literal["distributed", "central"],
        num_shares: int,
        norm: float,
        separation: int = 1,
    ) -> ClientPlan:
        """The plan with the least noise that keeps the budget.

        Args:
            epsilon: upper bound for the whole run.
            delta: of the same.
            rounds: how many rounds one client can take part in.
            debits: sums that have to be paid for.
            placement: who adds the noise.
            num_shares: shares of noise in a sum.
            norm: the most that one client's vector can change, in the integer units of the noise.
            separation: rounds from one that a client takes part in to its next, at least.

        Raises:
            ConfigError: no amount of noise keeps the budget.
        """
        noise = _noise_multiplier(epsilon, delta, debits, num_shares, norm)
        event = _event(noise, num_shares, norm).repeated(debits)
        return cls(
            epsilon=epsilon_claimed(event, delta),
            epsilon_replaced=epsilon_claimed(event.doubled(), delta),
            target_epsilon=epsilon,
            delta=delta,
            rounds=rounds,
            debits=debits,
            placement=placement,
            noise_multiplier=noise,
            num_shares=num_shares,
            share_std=event.share_std,
            separation=separation,
        )

    def event(self) -> Event:
        """What one sum releases: one debit."""
        return Event(
            "discrete_gaussian_sum",
            self.noise_multiplier,
            num_shares=self.num_shares,
            share_std=self.share_std,
        )

    def epsilon_after(self, debits: int) -> float:
        """Epsilon of the first `debits` debits, at the plan's delta: information, for a curve over rounds."""
        return epsilon_claimed(self.event().repeated(debits), self.delta) if debits else 0.0

    def debits_in(self, rounds: int) -> int:
        """The most debits that one client can have made in the first `rounds` rounds, each at the first attempt."""
        return math.ceil(rounds / self.separation)


def _event(noise_multiplier: float, num_shares: int, norm: float) -> Event:
    # Only the search for a noise multiplier goes below the least share; there, a sum costs more than any budget has.
    share = max(_LEAST_SHARE, noise_multiplier * norm / math.sqrt(num_shares))
    return Event("discrete_gaussian_sum", noise_multiplier, num_shares=num_shares, share_std=share)


@lru_cache(maxsize=64)
def _noise_multiplier(epsilon: float, delta: float, debits: int, num_shares: int, norm: float) -> float:
    return calibrate(lambda z: (_event(z, num_shares, norm).repeated(debits),), epsilon, delta)
