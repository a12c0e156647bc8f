"""Golden values of the accountant, and events in and out of their canonical form."""

from __future__ import annotations

import json
import math

import pytest

from tacit.privacy.accountant import (
    MAX_DIMENSION,
    Event,
    compose,
    epsilon_claimed,
    epsilon_pld,
    epsilon_rdp,
    fits,
    grid,
    method_of,
    tau,
)

OPACUS = Event("poisson_gaussian", 1.5, 0.04, 2250)


def summed(noise_multiplier: float, *, shares: int = 89, c_int: int = 2**16, steps: int = 1) -> Event:
    """Shares of noise that together have `noise_multiplier` times the bound c_int."""
    share = noise_multiplier * c_int / math.sqrt(shares)
    return Event("discrete_gaussian_sum", noise_multiplier, steps=steps, num_shares=shares, share_std=share)


GOLDENS = [
    (Event("gaussian", 1.0), 4.377, 4.729),
    (Event("gaussian", 2.0), 1.993, 2.166),
    (Event("gaussian", 4.0), 0.926, 1.013),
]


@pytest.mark.parametrize(("event", "pld", "rdp"), GOLDENS)
def test_I10_a_gaussian_release_costs_the_published_epsilon(event: Event, pld: float, rdp: float) -> None:
    assert epsilon_pld(event, 1e-5) == pytest.approx(pld, abs=0.0006)
    assert epsilon_rdp(event, 1e-5) == pytest.approx(rdp, abs=0.0006)


def test_I10_dp_sgd_costs_what_the_peers_compute() -> None:
    assert epsilon_rdp(OPACUS, 1e-5) == pytest.approx(7.3291, abs=0.001)
    assert epsilon_pld(OPACUS, 1e-5) == pytest.approx(6.769, abs=0.005)


def test_I10_opacus_agrees_on_the_same_steps() -> None:
    from opacus.accountants import GaussianAccountant, PRVAccountant, RDPAccountant

    with pytest.warns(UserWarning, match="can underestimate privacy"):
        accountants = RDPAccountant(), PRVAccountant(), GaussianAccountant()
    peers = {}
    for accountant in accountants:
        accountant.history = [(OPACUS.noise_multiplier, OPACUS.sampling_rate, OPACUS.steps)]
        peers[type(accountant).__name__] = accountant.get_epsilon(1e-5)
    assert peers["RDPAccountant"] == pytest.approx(epsilon_rdp(OPACUS, 1e-5), abs=0.001)
    assert peers["PRVAccountant"] == pytest.approx(6.779, abs=0.01)
    # The central limit (GDP): an approximation that is below the true cost here, so never a claim.
    assert peers["GaussianAccountant"] == pytest.approx(6.60, abs=0.01)
    assert peers["GaussianAccountant"] < epsilon_pld(OPACUS, 1e-5) - 0.1


@pytest.mark.parametrize(("z", "epsilon"), [(1.0, 4.729), (2.0, 2.166), (4.0, 1.013)])
@pytest.mark.parametrize("shares", [1, 3, 89])
def test_I14_summed_discrete_noise_costs_what_renyi_dp_says_of_a_gaussian(
    z: float, epsilon: float, shares: int
) -> None:
    event = summed(z, shares=shares)
    assert epsilon_claimed(event, 1e-5) == epsilon_rdp(event, 1e-5) == pytest.approx(epsilon, abs=0.0006)


@pytest.mark.parametrize("c_int", [2**12, 2**16])
def test_I14_a_hundred_rounds(c_int: int) -> None:
    event = summed(1.0, c_int=c_int, steps=100)
    assert epsilon_rdp(event, 1e-5) == pytest.approx(96.04, abs=0.005)
    assert epsilon_rdp(event, 1e-5) == pytest.approx(
        epsilon_rdp(Event("gaussian", 1.0, steps=100), 1e-5), abs=1e-3
    )


def test_I14_coarse_noise_costs_the_divergence_between_its_sum_and_a_discrete_gaussian() -> None:
    """Proposition 14, term by term, for shares so small that it counts."""
    shares, std = 7, 1.25
    terms = [math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, shares)]
    assert tau(shares, std) == pytest.approx(10 * sum(terms), rel=1e-12) and tau(1, std) == 0
    event = Event("discrete_gaussian_sum", 2.0, num_shares=shares, share_std=std)
    slope = 1 / 2.0 + 10 * sum(terms) * math.sqrt(MAX_DIMENSION)
    assert 1 / event.gaussian_equivalent == pytest.approx(slope, rel=1e-12)
    assert epsilon_rdp(event, 1e-5) > 1.02 * epsilon_rdp(summed(2.0), 1e-5)
    assert epsilon_rdp(event, 1e-5) == pytest.approx(epsilon_rdp(Event("gaussian", 1 / slope), 1e-5))


def test_tau_of_many_shares_is_an_upper_bound() -> None:
    std, shares = 0.6, 5000
    exact = 10 * math.fsum(math.exp(-2 * math.pi**2 * std**2 * k / (k + 1)) for k in range(1, shares))
    assert exact <= tau(shares, std) <= 1.01 * exact


def test_I23_summed_discrete_noise_is_never_given_the_figure_of_a_continuous_gaussian() -> None:
    event = summed(1.0)
    assert epsilon_claimed(event, 1e-5) > epsilon_pld(Event("gaussian", 1.0), 1e-5) + 0.3
    assert method_of([OPACUS]) == "PLD" and method_of([OPACUS, event]) == "RDP"
    for events in (event, [OPACUS, event]):
        assert epsilon_claimed(events, 1e-5) == epsilon_rdp(events, 1e-5)
        with pytest.raises(ValueError, match="sum of discrete Gaussians"):
            epsilon_pld(events, 1e-5)
    assert epsilon_claimed(OPACUS, 1e-5) == epsilon_pld(OPACUS, 1e-5)


def test_a_neighbour_with_another_vector_instead_of_none_costs_as_half_the_noise() -> None:
    assert epsilon_rdp(summed(2.0).doubled(), 1e-5) == pytest.approx(4.729, abs=0.0006)
    assert epsilon_pld(Event("gaussian", 1.0).doubled(), 1e-5) == pytest.approx(9.997, abs=0.001)


def test_I10_many_gaussians_cost_as_one_with_their_noise_combined() -> None:
    many = Event("gaussian", 12.0, steps=36)
    assert epsilon_pld(many, 1e-5) == pytest.approx(epsilon_pld(Event("gaussian", 2.0), 1e-5), abs=1e-4)
    assert epsilon_rdp(many, 1e-5) == pytest.approx(epsilon_rdp(Event("gaussian", 2.0), 1e-5), abs=1e-9)


def test_sampling_everything_is_no_sampling() -> None:
    sampled, plain = Event("poisson_gaussian", 3.0, 1.0, 7), Event("gaussian", 3.0, steps=7)
    assert epsilon_pld(sampled, 1e-5) == pytest.approx(epsilon_pld(plain, 1e-5), abs=1e-9)


def test_a_release_without_noise_costs_infinity_in_any_company() -> None:
    events = (OPACUS, Event("gaussian", 0.0))
    assert epsilon_pld(events, 1e-5) == epsilon_rdp(events, 1e-5) == math.inf
    assert not fits(events, 1e6, 1e-5) and fits(events, math.inf, 1e-5)


def test_nothing_costs_nothing() -> None:
    assert epsilon_pld((), 1e-5) == epsilon_rdp((), 1e-5) == 0 and fits((), 1e-3, 1e-5)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5, math.nan])
def test_delta_is_a_probability(delta: float) -> None:
    for figure in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ValueError, match="delta"):
            figure(OPACUS, delta)
    with pytest.raises(ValueError, match="delta"):
        fits(OPACUS, 1.0, delta)


@pytest.mark.parametrize(
    "events",
    [
        (Event("gaussian", 10.0, steps=20),),
        (Event("poisson_gaussian", 1.0, 0.01, 500),),
        (OPACUS, Event("gaussian", 30.0, steps=90)),
    ],
)
@pytest.mark.parametrize("delta", [1e-4, 1e-6])
def test_what_fits_costs_no_more_than_the_ceiling_and_little_less(
    events: tuple[Event, ...], delta: float
) -> None:
    """The filter holds for events chosen adaptively, so it is stricter than the figure for fixed ones."""
    cost = epsilon_rdp(events, delta)
    assert not fits(events, 0.999 * epsilon_rdp(events, delta / 2), delta)  # each order has half of delta
    assert fits(events, 1.5 * cost, delta)
    assert fits((), 1.5 * cost, delta)


def test_compose_does_not_depend_on_order_or_grouping() -> None:
    a, b = Event("gaussian", 2.0), OPACUS
    assert compose(a, b, a) == compose(a.repeated(2), b) == compose(b, *compose(a, a))
    assert compose() == ()


def test_wider_grids_never_cost_less() -> None:
    costs = [epsilon_pld(OPACUS, 1e-5, width) for width in (1e-4, 1e-3, 1e-2, 1e-1)]
    assert costs == sorted(costs)
    assert grid(0.01) < grid(1.0) == grid(10.0) == 1e-4 < grid(100.0)


@pytest.mark.parametrize(
    "event", [OPACUS, Event("gaussian", 0.0), Event("gaussian", 3), summed(1.5, steps=4)]
)
def test_an_event_survives_json(event: Event) -> None:
    assert Event.from_dict(json.loads(json.dumps(event.to_dict()))) == event


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "laplace"},
        {"noise_multiplier": -1.0},
        {"noise_multiplier": math.nan},
        {"noise_multiplier": math.inf},
        {"noise_multiplier": "1"},
        {"sampling_rate": 0.0},
        {"sampling_rate": 1.5},
        {"steps": 0},
        {"steps": 1.5},
        {"steps": True},
        {"extra": 1},
    ],
)
def test_an_event_that_is_not_known_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"event|noise multiplier|sampling rate"):
        Event.from_dict({**OPACUS.to_dict(), **change})
    with pytest.raises(ValueError, match="event"):
        Event.from_dict({"kind": "gaussian"})


@pytest.mark.parametrize(
    "change",
    [
        {"num_shares": 0},
        {"num_shares": 2.0},
        {"share_std": 0.4},
        {"share_std": math.nan},
        {"share_std": math.inf},
        {"sampling_rate": 0.5},
        {"kind": "gaussian"},
    ],
)
def test_noise_of_shares_that_are_none_is_refused(change: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=r"event"):
        Event.from_dict({**summed(1.0).to_dict(), **change})


def test_a_sampled_rate_belongs_to_a_sampled_event() -> None:
    with pytest.raises(ValueError, match="sampling rate"):
        Event("gaussian", 1.0, 0.5)


def test_an_event_of_an_unknown_kind_is_never_charged_as_nothing() -> None:
    event = Event("gaussian", 1.0)
    object.__setattr__(event, "kind", "laplace")
    with pytest.raises(ValueError, match="unknown kind"):
        event.to_dp_event()
    for figure in (epsilon_pld, epsilon_rdp):
        with pytest.raises(ValueError, match="unknown kind"):
            figure(event, 1e-5)
