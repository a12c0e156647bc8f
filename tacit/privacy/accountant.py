"""What releases cost together: a typed layer over dp-accounting, imported when a figure is asked for.

Neighbouring data sets differ in one record added or removed. Three figures, for three uses:

- `epsilon_pld`: privacy loss distributions, discretised pessimistically (Doroshenko et al., "Connect the
  dots", PETS 2022). The tight figure for events that are fixed before the first of them; what a run claims.
- `epsilon_rdp`: Renyi DP at the best order (Mironov, Talwar, Zhang 2019; conversion of Canonne, Kamath,
  Steinke 2020, Proposition 12). A second, looser upper bound for the same; what a ledger prints.
- `fits`: the filter for events that somebody chooses after seeing earlier results.

Guarantees:
    Each figure is an upper bound: discretisation and orders that do not converge only make it larger.
    An event of a kind that is not known here is refused, never charged as nothing.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

INTERVAL: Final = 1e-4  # grid of privacy losses that claims are computed with

# dp-accounting logs each fractional order whose series does not converge and leaves that order out, which can
# only raise an epsilon. The notice is for its developers.
logging.getLogger("absl").addFilter(lambda record: "_compute_log_a_frac" not in record.getMessage())


@dataclass(frozen=True)
class Event:
    """One release, as far as its cost goes.

    Attributes:
        kind: "gaussian" = a sum over all records with Gaussian noise; "poisson_gaussian" = a sum over records
            each drawn with probability `sampling_rate`.
        noise_multiplier: standard deviation of the noise over the most that one record can change the sum;
            0 = no noise, which costs an infinite epsilon.
        sampling_rate: q, in (0, 1]; 1 for "gaussian".
        steps: how often, one or more.
    """

    kind: str
    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1

    def __post_init__(self) -> None:
        if self.kind not in ("gaussian", "poisson_gaussian"):
            raise ValueError(f"unknown kind of event {self.kind!r}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"a noise multiplier is finite and not negative, not {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1 or (self.kind == "gaussian" and self.sampling_rate != 1):
            raise ValueError(f"{self.sampling_rate} is no sampling rate of a {self.kind!r} event")
        if self.steps < 1:
            raise ValueError(f"an event has one step or more, not {self.steps}")

    def repeated(self, times: int) -> Event:
        """The same release `times` as often."""
        return Event(self.kind, self.noise_multiplier, self.sampling_rate, self.steps * times)

    def to_dict(self) -> dict[str, str | float | int]:
        """The canonical form: equal events have equal dictionaries, and no other events have."""
        return {
            "kind": self.kind,
            "noise_multiplier": float(self.noise_multiplier),
            "sampling_rate": float(self.sampling_rate),
            "steps": self.steps,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Event:
        """The event that `to_dict` described; `ValueError` for any other dictionary."""
        try:
            event = cls(**fields)
        except TypeError as error:
            raise ValueError(f"not an event: {error}") from None
        if type(event.steps) is not int or event.to_dict() != dict(fields):
            raise ValueError("not an event in canonical form")
        return event

    def to_dp_event(self) -> DpEvent:
        """The same in dp-accounting's words."""
        import dp_accounting

        if self.noise_multiplier == 0:
            return dp_accounting.NonPrivateDpEvent()
        release = dp_accounting.GaussianDpEvent(self.noise_multiplier)
        if self.kind == "poisson_gaussian":
            release = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, release)
        elif self.kind != "gaussian":
            raise ValueError(f"unknown kind of event {self.kind!r}")
        return dp_accounting.SelfComposedDpEvent(release, self.steps)


def compose(*events: Event) -> tuple[Event, ...]:
    """The composition of events as a canonical tuple: equal releases merged, in a fixed order.

    The cost of a composition does not depend on the order, so two histories with the same releases are equal.
    """
    steps: Counter[tuple[str, float, float]] = Counter()
    for event in events:
        steps[event.kind, event.noise_multiplier, event.sampling_rate] += event.steps
    return tuple(Event(*release, steps=count) for release, count in sorted(steps.items()))


def grid(epsilon: float) -> float:
    """Grid width of a claim near `epsilon`: finer for small ones, wider for large ones (losses spread)."""
    return INTERVAL * max(min(epsilon, 1.0), epsilon / 10)


def epsilon_pld(event: Event | Iterable[Event], delta: float, discretization: float = INTERVAL) -> float:
    """Epsilon at `delta` by privacy loss distributions.

    Args:
        event: one event, or several composed; their parameters must not depend on earlier results.
        delta: in (0, 1).
        discretization: width of the grid of privacy losses. A wider one is faster and never gives less.

    Returns:
        Upper bound; 0 for no event, infinity when a release has no noise.
    """
    return _pld(_composed(event), _probability(delta), discretization)


def epsilon_rdp(event: Event | Iterable[Event], delta: float) -> float:
    """Epsilon at `delta` by Renyi DP at the best of dp-accounting's default orders. Arguments as above."""
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    return _best(_composed(event), tuple(DEFAULT_RDP_ORDERS), _probability(delta))


def fits(event: Event | Iterable[Event], ceiling: float, delta: float) -> bool:
    """Whether releases stay within (ceiling, delta) although each may have been chosen after seeing the last.

    A Renyi filter stops before the sum of divergences at an order passes a bound, and the order must be
    fixed in advance (Feldman and Zrnic, "Individual privacy accounting via a Renyi filter", NeurIPS 2021).
    So two orders are fixed by `ceiling` and `delta` alone, each with half of delta: one near the best for
    much noise, one half as far above 1 for little noise on small samples. A history is admitted while one
    of them admits it; it is then also a history of that order's own filter, so the deltas add up to `delta`.

    Guarantees:
        A site that releases only while `fits` is true is (ceiling, delta)-DP, for events chosen adaptively.
    """
    if ceiling == math.inf:
        return True
    half = _probability(delta) / 2
    log = math.log(1 / half)
    # The order that minimises (ceiling - log / (order - 1)) / order, the room left to a Gaussian's slope.
    order = (ceiling + log + math.sqrt(log * (ceiling + log))) / ceiling
    orders = (
        _tidy(1 + 0.9 * (order - 1)),
        _tidy(max(2.0, 1 + 0.55 * (order - 1))),
    )  # below 2 series may diverge
    return _best(_composed(event), orders, half) <= ceiling


def _tidy(order: float) -> float:
    """Large orders as integers, for which the sampled Gaussian has a closed form."""
    return float(round(order)) if order > 8 else order


def _composed(event: Event | Iterable[Event]) -> tuple[Event, ...]:
    return compose(event) if isinstance(event, Event) else compose(*event)


def _probability(delta: float) -> float:
    if not 0 < delta < 1:
        raise ValueError(f"delta is within (0, 1), not {delta}")
    return delta


@lru_cache(maxsize=4096)
def _pld(events: tuple[Event, ...], delta: float, interval: float) -> float:
    if not events:
        return 0.0
    if any(event.noise_multiplier == 0 for event in events):
        return math.inf
    import numpy as np

    total, *others = [
        _one_step(event.noise_multiplier, event.sampling_rate, interval).self_compose(event.steps)
        for event in events
    ]
    for other in others:
        total = total.compose(other)
    with np.errstate(over="ignore"):  # an infinite ratio of masses answers the comparison it is made for
        return float(total.get_epsilon_for_delta(delta))


@lru_cache(maxsize=8)
def _one_step(noise_multiplier: float, sampling_rate: float, interval: float) -> PrivacyLossDistribution:
    """Losses of one step, for a record added and for one removed. A Gaussian is sampled at rate 1."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        noise_multiplier, value_discretization_interval=interval, sampling_prob=sampling_rate
    )


@lru_cache(maxsize=1024)
def _best(events: tuple[Event, ...], orders: tuple[float, ...], delta: float) -> float:
    """The least epsilon that one of `orders` gives."""
    from dp_accounting.rdp import RdpAccountant

    accountant = RdpAccountant(orders)
    for event in events:
        accountant.compose(event.to_dp_event())
    return float(accountant.get_epsilon(delta)) if events else 0.0
