"""From a budget to mechanisms: epsilon and delta in, noise multipliers and accounting events out.

A plan is derived once from the experiment, at the server and at each site, and depends on nothing else: no
argument of anything here could carry a data set, so no number of it can move with a record.

Guarantees:
    All releases of a plan together (training, metrics, statistics) cost at most `epsilon` at `delta`.
    A plan whose noise does not keep its claim cannot be constructed.
    A run without privacy takes the same path with noise 0, and its epsilon is infinity.

A run may protect records, clients, or both. Each unit then has a figure of its own, and none is made of the two.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Final, Literal

from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.accountant import Event, epsilon_pld, grid
from tacit.privacy.calibration import calibrate
from tacit.privacy.client_plan import ClientPlan

RELATION: Final = "add or remove one record"
SUM: Final = "sum"  # purpose of a debit: the vector that goes into a round's sum, whatever is in it

_MAX_STEPS: Final = 2_000_000


@dataclass(frozen=True)
class PrivacyPlan:
    """Everything that a run releases, and what it costs. All but `client` is about records.

    Attributes:
        unit: what one neighbouring data set has more than the other: one row of one site; or, where only clients
            are protected, "client": then nothing is promised for records, and all noise of the plan is in `client`.
        relation: the neighbouring relation in words; "none" without privacy for records.
        epsilon: what the run claims for records, computed for all `debits`; infinity without privacy for them.
        target_epsilon: what was asked for; `epsilon` is just below it.
        delta: of the claim; 0 without.
        accountant: method behind `epsilon`; "none" without.
        sampling_rate: q; a record is in a step's batch with this probability.
        steps_per_round: noisy optimiser steps per round.
        rounds: rounds of the run.
        debits: rounds plus reserve for repeated attempts; what the noise for records is calibrated for.
        max_grad_norm: per-record clip norm of the gradient; None without privacy.
        noise_multiplier: standard deviation of a step's noise over `max_grad_norm`.
        metrics_noise_multiplier: the same for a round's metric sums over their per-record bound; None when
            no metrics are sent.
        statistics_noise_multiplier: the same for the one release of federated scaling; None without it.
        client: the promise for everything that one client has; None without.
    """

    unit: Literal["record", "client", "none"]
    relation: str
    epsilon: float
    target_epsilon: float
    delta: float
    accountant: Literal["PLD", "none"]
    sampling_rate: float
    steps_per_round: int
    rounds: int
    debits: int
    max_grad_norm: float | None
    noise_multiplier: float
    metrics_noise_multiplier: float | None = None
    statistics_noise_multiplier: float | None = None
    client: ClientPlan | None = None

    def __post_init__(self) -> None:
        if self.debits < self.rounds:
            raise ValueError(f"a plan for {self.debits} debits cannot pay for {self.rounds} rounds")
        if self.unit == ("client" if self.client is None else "none"):
            raise ValueError(f"the unit {self.unit!r} does not fit the plan for clients")
        if self.unit != "record":
            if self.epsilon != math.inf:
                raise ValueError("a run without privacy has an epsilon of infinity")
        elif epsilon_pld(self.events(self.debits), self.delta, grid(self.target_epsilon)) > self.epsilon:
            raise ValueError("the noise of this plan does not keep its epsilon")

    @classmethod
    def from_budget(
        cls,
        epsilon: float,
        delta: float,
        *,
        sampling_rate: float,
        steps_per_round: int,
        rounds: int,
        reserve: float = 0.1,
        max_grad_norm: float = 1.0,
        metrics_share: float = 0.0,
        statistics_share: float = 0.0,
    ) -> PrivacyPlan:
        """The plan of a record-level run with the least noise that keeps the budget.

        Metrics and statistics are calibrated to their shares of epsilon alone, at the same delta; training
        gets all that is left when the three are composed, which is more than one minus the shares.

        Args:
            epsilon: upper bound for the whole run.
            delta: of the same.
            sampling_rate: q, in (0, 1].
            steps_per_round: steps of one debit.
            rounds: rounds of the run.
            reserve: extra debits per round, for repeated attempts.
            max_grad_norm: clip norm of one record's gradient.
            metrics_share: share of epsilon for a metric release in each debit; 0 = none is made.
            statistics_share: share of epsilon for one release before training; 0 = none is made.

        Raises:
            ConfigError: no amount of noise keeps the budget, or there are too many steps to account for.
        """
        debits = rounds + math.ceil(round(reserve * rounds, 6))
        if (steps := debits * steps_per_round) > _MAX_STEPS:
            raise ConfigError(
                f"{steps} noisy steps are too many to account for; {_MAX_STEPS} is the limit",
                key="training.rounds",
            )
        training, metrics, statistics = _noise_multipliers(
            epsilon, delta, sampling_rate, steps_per_round, debits, metrics_share, statistics_share
        )
        events = _events(training, sampling_rate, steps_per_round, debits, metrics, statistics)
        return cls(
            unit="record",
            relation=RELATION,
            epsilon=epsilon_pld(events, delta, grid(epsilon)),
            target_epsilon=epsilon,
            delta=delta,
            accountant="PLD",
            sampling_rate=sampling_rate,
            steps_per_round=steps_per_round,
            rounds=rounds,
            debits=debits,
            max_grad_norm=max_grad_norm,
            noise_multiplier=training,
            metrics_noise_multiplier=metrics,
            statistics_noise_multiplier=statistics,
        )

    @classmethod
    def of(cls, experiment: Experiment) -> PrivacyPlan:
        """The plan of an experiment. Its own fields are all that the plan depends on.

        Raises:
            ConfigError: no noise keeps the budget, or the experiment does not say what pays for a release.
        """
        training, columns = experiment.training, experiment.data.columns
        metrics = experiment.evaluation.metrics
        statistics = columns is not None and columns.scaling == "federated"
        client = ClientPlan.of(experiment)
        record = experiment.privacy.record
        if record is None:
            return cls(
                unit="none" if client is None else "client",
                relation="none",
                epsilon=math.inf,
                target_epsilon=math.inf,
                delta=0.0,
                accountant="none",
                sampling_rate=training.sampling_rate,
                steps_per_round=training.local_steps,
                rounds=training.rounds,
                debits=training.rounds if client is None else max(training.rounds, client.debits),
                max_grad_norm=None,
                noise_multiplier=0.0,
                metrics_noise_multiplier=0.0 if metrics else None,
                statistics_noise_multiplier=0.0 if statistics else None,
                client=client,
            )
        if statistics and record.statistics_share == 0:
            raise ConfigError(
                "federated scaling in a private run must be paid for: set a share, e.g. 0.05",
                key="privacy.record.statistics_share",
            )
        plan = cls.from_budget(
            record.epsilon,
            record.delta,
            sampling_rate=training.sampling_rate,
            steps_per_round=training.local_steps,
            rounds=training.rounds,
            reserve=record.reserve,
            max_grad_norm=record.max_grad_norm,
            metrics_share=record.metrics_share if metrics else 0.0,
            statistics_share=record.statistics_share if statistics else 0.0,
        )
        return replace(plan, client=client)

    @property
    def is_private(self) -> bool:
        """Whether anything is promised."""
        return self.unit != "none"

    @property
    def sum_noise_multiplier(self) -> float:
        """z of the noise that clients add inside the secure sum; 0 where they add none."""
        distributed = self.client is not None and self.client.placement == "distributed"
        return self.client.noise_multiplier if self.client is not None and distributed else 0.0

    @property
    def central_noise_multiplier(self) -> float:
        """z of the noise that the server adds to a sum; 0 where it adds none."""
        central = self.client is not None and self.client.placement == "central"
        return self.client.noise_multiplier if self.client is not None and central else 0.0

    def delta_of(self, purpose: str) -> float:
        """Delta of the promise that a debit for `purpose` counts towards."""
        return self.client.delta if self.client is not None and purpose == SUM else self.delta

    def debits_of(self, purpose: str) -> int:
        """How many debits for `purpose` the plan pays for."""
        return self.client.debits if self.client is not None and purpose == SUM else self.debits

    def round_event(self) -> Event:
        """What one round of training releases: one debit."""
        return Event("poisson_gaussian", self.noise_multiplier, self.sampling_rate, self.steps_per_round)

    def metrics_event(self) -> Event | None:
        """What one round's metric sums release: one debit; None when none are sent."""
        noise = self.metrics_noise_multiplier
        return None if noise is None else Event("gaussian", noise)

    def statistics_event(self) -> Event | None:
        """What federated scaling releases, once before training; None without it."""
        noise = self.statistics_noise_multiplier
        return None if noise is None else Event("gaussian", noise)

    def releases(self, round_number: int) -> dict[str, Event]:
        """What one round releases, by purpose: the statistics in round 0, else training and any metrics.

        With a promise for clients there is also the sum that all of it goes through. `unit_of` says which unit an
        event belongs to.
        """
        events: dict[str, Event | None] = {}
        if round_number == 0:
            events["statistics"] = self.statistics_event()
        elif self.unit != "client":
            events |= {"training": self.round_event(), "metrics": self.metrics_event()}
        if self.client is not None:
            events[SUM] = self.client.event()
        return {purpose: event for purpose, event in events.items() if event is not None}

    def events(self, debits: int) -> tuple[Event, ...]:
        """All releases up to and with `debits` debits of training and metrics."""
        return _events(
            self.noise_multiplier,
            self.sampling_rate,
            self.steps_per_round,
            debits,
            self.metrics_noise_multiplier,
            self.statistics_noise_multiplier,
        )

    def epsilon_after(self, debits: int) -> float:
        """Epsilon of the first `debits` debits, at the plan's delta: information, for a curve over rounds.

        For records; for clients where only they are protected, and then of so many rounds. A grid ten times
        coarser than that of the claim keeps a point at some hundredths of a second, and the figure an upper bound.
        Up to `self.debits` it is never above `self.epsilon`.
        """
        if self.unit == "client" and self.client is not None:
            return self.client.epsilon_after(self.client.debits_in(debits))
        if self.unit == "none":
            return math.inf if self.events(debits) else 0.0
        epsilon = epsilon_pld(self.events(debits), self.delta, 10 * grid(self.target_epsilon))
        return min(epsilon, self.epsilon) if debits <= self.debits else epsilon


def unit_of(purpose: str) -> Literal["record", "client"]:
    """The unit of privacy that a debit for `purpose` counts towards."""
    return "client" if purpose == SUM else "record"


def _events(
    training: float,
    sampling_rate: float,
    steps_per_round: int,
    debits: int,
    metrics: float | None,
    statistics: float | None,
) -> tuple[Event, ...]:
    events = []
    if statistics is not None:
        events.append(Event("gaussian", statistics))
    if debits:
        events.append(Event("poisson_gaussian", training, sampling_rate, steps_per_round * debits))
    if debits and metrics is not None:
        events.append(Event("gaussian", metrics, steps=debits))
    return tuple(events)


@lru_cache(maxsize=64)
def _noise_multipliers(
    epsilon: float,
    delta: float,
    sampling_rate: float,
    steps: int,
    debits: int,
    metrics_share: float,
    statistics_share: float,
) -> tuple[float, float | None, float | None]:
    """Noise multipliers of training, metrics and statistics."""
    metrics = statistics = None
    if metrics_share:
        metrics = calibrate(lambda z: (Event("gaussian", z, steps=debits),), metrics_share * epsilon, delta)
    if statistics_share:
        statistics = calibrate(lambda z: (Event("gaussian", z),), statistics_share * epsilon, delta)
    training = calibrate(
        lambda z: _events(z, sampling_rate, steps, debits, metrics, statistics), epsilon, delta
    )
    return training, metrics, statistics
