"""What releases cost together: a typed layer over dp-accounting, imported when a figure is asked for.

Neighbouring data sets differ in one record added or removed, or in one client's vector replaced by zeros. The figures:

- `epsilon_pld`: privacy loss distributions, discretised pessimistically (Doroshenko et al., "Connect the
  dots", PETS 2022). The tight figure for events that are fixed before the first of them.
- `epsilon_rdp`: Renyi DP at the best order (Mironov, Talwar, Zhang 2019; conversion of Canonne, Kamath,
  Steinke 2020, Proposition 12). A second, looser upper bound for the same; what a ledger prints.
- `epsilon_claimed`: what a run claims, by the method that `method_of` names: the first where it is proven for all
  events, else the second.
- `fits`: the filter for events that somebody chooses after seeing earlier results.

Guarantees:
    Each figure is an upper bound: discretisation and orders that do not converge only make it larger.
    An event of a kind that is not known here is refused, never charged as nothing.
    Summed discrete noise is never given the figure that privacy loss distributions give a continuous Gaussian.
"""

from __future__ import annotations

import logging
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import astuple, dataclass, replace
from functools import lru_cache
from typing import TYPE_CHECKING, Any, Final, Literal

if TYPE_CHECKING:
    from dp_accounting import DpEvent
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

INTERVAL: Final = 1e-4  # grid of privacy losses that claims are computed with
MAX_DIMENSION: Final = 2**32  # coordinates of a vector with summed discrete noise

KINDS: Final = ("gaussian", "poisson_gaussian", "discrete_gaussian_sum")

# dp-accounting logs each fractional order whose series does not converge and leaves that order out, which can
# only raise an epsilon. The notice is for its developers.
logging.getLogger("absl").addFilter(lambda record: "_compute_log_a_frac" not in record.getMessage())


@dataclass(frozen=True)
class Event:
    """One release, as far as its cost goes.

    Attributes:
        kind: "gaussian" = a sum over all records with Gaussian noise; "poisson_gaussian" = a sum over records
            each drawn with probability `sampling_rate`; "discrete_gaussian_sum" = a sum of integer vectors, one of
            each client, with the noise of several clients in it.
        noise_multiplier: standard deviation of the noise over the most that one record (or client) can change the
            sum; 0 = no noise, which costs an infinite epsilon.
        sampling_rate: q, in (0, 1]; 1 but for "poisson_gaussian".
        steps: how often, one or more.
        num_shares: how many independent discrete Gaussians the noise is the sum of. (As the next one only of
            "discrete_gaussian_sum".)
        share_std: scale of each of them, in the integers' unit; at least 1/2.
    """

    kind: str
    noise_multiplier: float
    sampling_rate: float = 1.0
    steps: int = 1
    num_shares: int = 0
    share_std: float = 0.0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of event {self.kind!r}")
        if not 0 <= self.noise_multiplier < math.inf:
            raise ValueError(f"a noise multiplier is finite and not negative, not {self.noise_multiplier}")
        if not 0 < self.sampling_rate <= 1 or (self.kind != "poisson_gaussian" and self.sampling_rate != 1):
            raise ValueError(f"{self.sampling_rate} is no sampling rate of a {self.kind!r} event")
        if self.steps < 1:
            raise ValueError(f"an event has one step or more, not {self.steps}")
        if self.is_discrete:
            if not (self.num_shares >= 1 and 0.5 <= self.share_std < math.inf):
                raise ValueError(f"an event of {self.num_shares} shares of scale {self.share_std}")
        elif (self.num_shares, self.share_std) != (0, 0):
            raise ValueError(f"a {self.kind!r} event has no shares of noise")

    @property
    def is_discrete(self) -> bool:
        """Whether the noise is a sum of discrete Gaussians."""
        return self.kind == "discrete_gaussian_sum"

    def repeated(self, times: int) -> Event:
        """The same release `times` as often."""
        return replace(self, steps=self.steps * times)

    def doubled(self) -> Event:
        """The same release where a neighbour differs by twice as much: two clients zeroed, or one replaced."""
        return replace(self, noise_multiplier=self.noise_multiplier / 2)

    @property
    def gaussian_equivalent(self) -> float:
        """Noise multiplier of a continuous Gaussian that has no smaller Renyi divergences of any order.

        A sum of m discrete Gaussians is none itself. Kairouz, Liu and Steinke ("The distributed discrete Gaussian
        mechanism", ICML 2021, Proposition 14) bound the divergence of order a, for scale s >= 1/2 of a share,
        sensitivity D and d coordinates, by a/2 (D / (sqrt(m) s) + tau sqrt(d))^2 with
        tau = 10 sum over k = 1 .. m - 1 of exp(-2 pi^2 s^2 k / (k + 1)). With one share tau is 0 and the bound that of
        Canonne, Kamath and Steinke for one discrete Gaussian. d is taken as `MAX_DIMENSION`.
        """
        if not self.is_discrete or self.noise_multiplier == 0:
            return self.noise_multiplier
        excess = tau(self.num_shares, self.share_std) * math.sqrt(MAX_DIMENSION)
        return 1 / (1 / self.noise_multiplier + excess)

    def to_dict(self) -> dict[str, str | float | int]:
        """The canonical form: equal events have equal dictionaries, and no other events have."""
        fields: dict[str, str | float | int] = {
            "kind": self.kind,
            "noise_multiplier": float(self.noise_multiplier),
            "sampling_rate": float(self.sampling_rate),
            "steps": self.steps,
        }
        if self.is_discrete:
            fields |= {"num_shares": self.num_shares, "share_std": float(self.share_std)}
        return fields

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Event:
        """The event that `to_dict` described; `ValueError` for any other dictionary."""
        try:
            event = cls(**fields)
        except TypeError as error:
            raise ValueError(f"not an event: {error}") from None
        whole = type(event.steps) is int and type(event.num_shares) is int
        if not whole or event.to_dict() != dict(fields):
            raise ValueError("not an event in canonical form")
        return event

    def to_dp_event(self) -> DpEvent:
        """The same in dp-accounting's words, for Renyi DP: see `gaussian_equivalent`."""
        import dp_accounting

        if self.noise_multiplier == 0:
            return dp_accounting.NonPrivateDpEvent()
        if self.kind not in KINDS:
            raise ValueError(f"unknown kind of event {self.kind!r}")
        release = dp_accounting.GaussianDpEvent(self.gaussian_equivalent)
        if self.kind == "poisson_gaussian":
            release = dp_accounting.PoissonSampledDpEvent(self.sampling_rate, release)
        return dp_accounting.SelfComposedDpEvent(release, self.steps)


def compose(*events: Event) -> tuple[Event, ...]:
    """The composition of events as a canonical tuple: equal releases merged, in a fixed order.

    The cost of a composition does not depend on the order, so two histories with the same releases are equal.
    """
    steps: Counter[Event] = Counter()
    for event in events:
        steps[replace(event, steps=1)] += event.steps
    return tuple(release.repeated(steps[release]) for release in sorted(steps, key=astuple))


@lru_cache(maxsize=64)
def tau(num_shares: int, share_std: float) -> float:
    """How far a sum of discrete Gaussians is from one, as `Event.gaussian_equivalent` needs it; an upper bound.

    The terms fall with k towards exp(-2 pi^2 s^2); from the thousandth on each is counted like that one.
    """
    exponent = -2 * math.pi**2 * share_std**2
    first = math.fsum(math.exp(exponent * k / (k + 1)) for k in range(1, min(num_shares, 1000)))
    rest = max(0, num_shares - 1000) * math.exp(exponent * 1000 / 1001)
    return 10 * (first + rest)


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

    Raises:
        ValueError: an event's noise is a sum of discrete Gaussians; this figure would be another noise's.
    """
    return _pld(_composed(event), _probability(delta), discretization)


def epsilon_rdp(event: Event | Iterable[Event], delta: float) -> float:
    """Epsilon at `delta` by Renyi DP at the best of many orders. Arguments as above."""
    events = _composed(event)
    return _best(events, rdp_orders(events), _probability(delta))


def rdp_orders(events: Iterable[Event]) -> tuple[float, ...]:
    """Orders to look for the best one among.

    They are dp-accounting's own and, where nothing is sampled and each order is one product, finer ones below 2, which
    is where much privacy loss is cheapest.
    """
    from dp_accounting.rdp.rdp_privacy_accountant import DEFAULT_RDP_ORDERS

    orders = tuple(DEFAULT_RDP_ORDERS)
    if all(event.kind != "poisson_gaussian" for event in events):
        orders = tuple(1 + i / 100 for i in range(1, 100)) + orders
    return orders


def method_of(events: Iterable[Event]) -> Literal["PLD", "RDP"]:
    """How a run may claim the cost of these events: by Renyi DP as soon as one has summed discrete noise."""
    return "RDP" if any(event.is_discrete for event in events) else "PLD"


def epsilon_claimed(event: Event | Iterable[Event], delta: float, discretization: float = INTERVAL) -> float:
    """Epsilon at `delta` by the method that `method_of` names. Arguments as for `epsilon_pld`."""
    events = _composed(event)
    return (
        epsilon_rdp(events, delta)
        if method_of(events) == "RDP"
        else epsilon_pld(events, delta, discretization)
    )


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
    if any(event.is_discrete for event in events):
        raise ValueError("no privacy loss distribution is known here for a sum of discrete Gaussians")
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
