"""I7 and I8: attacks on one release, through the product's own path, against the accountant's figure for it.

The canary is the worst neighbour there is: a record (or a client) that pulls as hard as it may in one direction,
beside others that do not lie in it. The score is what was released, in that direction. A pilot sets the threshold;
the runs that are counted come after it.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import stats
from torch import nn

from client.bookkeeping import BookKeeping
from client.private_gradients import PrivateGradients
from client.training import Job, LocalTrainer
from simulations.stacked import StackedTrainer
from tacit import config
from tacit.privacy.accountant import Event, epsilon_pld
from tacit.privacy.audit_bounds import Counts, threshold_bound
from tacit.privacy.audit_estimates import mu_of
from tacit.privacy.central import CentralNoise
from tacit.privacy.discrete import add_noise
from tacit.privacy.noise import Keys, Stream, SystemKeys
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.client_encoder import ClientLevelEncoder
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.parameters import Rules
from tacit.tasks import Records
from tacit.update import EncodedUpdate, Layout, LocalUpdate

Z, DELTA = 1.0, 1e-5
CLAIM = epsilon_pld((Event("gaussian", Z),), DELTA)  # 4.377
PILOT = 1000
CI, SOAK = 10_000, 100_000
Scores = NDArray[np.float64]
# canary or not, keys, number of the first run, how many -> scores in units of the bound, shape (runs,)
Release = Callable[[bool, Keys, int, int], Scores]


class CountedKeys:
    """Keys that follow from what they are for, as `SeededKeys`, at a hundredth of the cost."""

    def key(self, purpose: str, *index: int | str) -> bytes:
        return hashlib.sha256(repr((purpose, *index)).encode()).digest()


class Pull:
    """A task whose gradient is the record itself: the loss is the output of a layer without a bias."""

    metric_names = ("nothing",)

    def model(self) -> nn.Module:
        return nn.Sequential(nn.Linear(2, 1, bias=False))

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        return outputs[:, 0]

    def metrics(self, outputs: torch.Tensor, targets: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"nothing": outputs[:, 0]}


CLIP = 0.5
OTHERS = torch.tensor([[0.0, 0.4], [0.0, -0.3]])
CANARY = torch.tensor([[1000 * CLIP, 0.0]])  # its gradient is a thousand times the clip norm
BATCHES = [Records(rows, torch.zeros(len(rows))) for rows in (OTHERS, torch.cat([OTHERS, CANARY]))]


def step_of_a_client(engine: type[BookKeeping] | type[PrivateGradients]) -> Release:
    """One step of DP-SGD, run after run."""
    model = Pull().model()
    step, weight = engine(model, Pull(), CLIP, Z), next(model.parameters())

    def release(present: bool, keys: Keys, first: int, runs: int) -> Scores:
        scores = np.zeros(runs)
        for number in range(runs):
            step.fill(BATCHES[present], 1.0, Stream(keys.key("noise", "site", first + number)))
            assert weight.grad is not None
            scores[number] = weight.grad[0, 0] / CLIP
        return scores

    return release


def steps_of_a_stack() -> Release:
    """The same step of many clients at once, as the simulation makes it; each client is a run."""
    training = {"rounds": 1, "local_steps": 1, "sampling_rate": 1.0, "learning_rate": 1.0}
    record = {"epsilon": CLAIM, "delta": DELTA, "reserve": 0.0, "max_grad_norm": CLIP}
    tables = {"training": training, "privacy": {"record": record}, "name": "pull"}
    experiment = config.parse(tables, source="")
    plan = PrivacyPlan.of(experiment)
    assert abs(plan.noise_multiplier - Z) < 0.005
    trainer = StackedTrainer.of(LocalTrainer(Pull(), plan, experiment))
    arrays = {"0.weight": np.zeros((1, 2), np.float32)}

    def release(present: bool, keys: Keys, first: int, runs: int) -> Scores:
        jobs = [Job(f"site-{first + i}", BATCHES[present], 1) for i in range(runs)]
        trainer.train_ahead(arrays, jobs, 1, keys)
        deltas = [trainer.train(arrays, job, 1, keys) for job in jobs]
        return np.array([-delta["0.weight"][0, 0] / CLIP for delta in deltas], dtype=np.float64)

    return release


def sum_of_clients(placement: str) -> Release:
    """A secure sum of vectors that are bounded, rounded and noised. The canary's is ten times the clip norm.

    Bounding knows no chance but rounding, and all coordinates of a vector get noise of their own: the vectors of many
    runs are noised side by side.
    """
    clients, clip, c_int = 3, 2.0, 1 << 12
    encoder = ClientLevelEncoder(Layout((("w", (2,)),), (), ""), clip, c_int, {}, 0.99)
    share = Rules(1, 0, c_int, Z).parameters(clients).noise_share * np.sqrt((clients - 1) / clients)
    zeros, pull, other = (np.array(v, np.float32) for v in ([0, 0], [10 * clip, 0], [0, clip / 3]))

    def release(present: bool, keys: Keys, first: int, runs: int) -> Scores:
        vectors = []
        for client, delta in enumerate((pull if present else zeros, other, other)):
            rounding = Stream(keys.key("rounding", client, first))
            values = encoder.encode(LocalUpdate({"w": delta}, 1.0, {}), rounding.uniform).values[:1]
            values = np.repeat(values, runs)
            if placement == "distributed":
                values = add_noise(values, share, Stream(keys.key("share", client, first)))
            vectors.append(EncodedUpdate(values, False))
        total = ideal_sum(vectors)
        if placement == "central":
            total = CentralNoise(Z * c_int, keys).added(total, first).total
        return total.values / c_int

    return release


RELEASES = {
    "bookkeeping": lambda: step_of_a_client(BookKeeping),
    "opacus": lambda: step_of_a_client(PrivateGradients),
    "stacked": steps_of_a_stack,
    "distributed": lambda: sum_of_clients("distributed"),
    "central": lambda: sum_of_clients("central"),
}


def scores_of(release: Release, keys: Keys, first: int, runs: int) -> tuple[Scores, Scores]:
    """With the canary and without it, shape (runs,) each; no key serves two runs."""
    return release(True, keys, first, runs), release(False, keys, first + runs, runs)


def best_threshold(present: Scores, absent: Scores, runs: int) -> float:
    """Where the bound is expected to be largest, for Gaussians with the moments of these scores."""
    low, high, spread = absent.mean(), present.mean(), max(absent.std(), present.std(), 1e-9)
    grid = np.linspace(low, high + 4 * spread, 60)

    def expected(threshold: float) -> float:
        hits, alarms = (stats.norm.sf((threshold - mean) / spread) for mean in (high, low))
        return threshold_bound(Counts(round(runs * hits), runs, round(runs * alarms), runs), DELTA)

    return float(max(grid, key=expected))


def audit(release: Release, keys: Keys, runs: int) -> tuple[float, float, float]:
    """Lower bound by counts at 95 %, estimate of mu, and its standard error."""
    threshold = best_threshold(*scores_of(release, keys, 0, PILOT), runs)
    present, absent = scores_of(release, keys, 2 * PILOT, runs)
    counts = Counts(int((present > threshold).sum()), runs, int((absent > threshold).sum()), runs)
    mu = mu_of(present, absent)
    return threshold_bound(counts, DELTA), mu.value, mu.error


@pytest.mark.parametrize("name", [name for name in RELEASES if name != "opacus"])
def test_I7_I8_no_attack_on_one_release_finds_more_than_is_claimed_nor_much_less(name: str) -> None:
    bound, mu, error = audit(RELEASES[name](), CountedKeys(), CI)
    assert 1.9 <= bound <= CLAIM, f"{name}: {bound:.3f} by counts"  # 2.20 is expected
    assert abs(mu - 1 / Z) < 0.06, f"{name}: mu {mu:.4f} +/- {error:.4f}"


def test_I8_in_short_for_the_step_that_opacus_makes() -> None:
    bound, mu, error = audit(RELEASES["opacus"](), CountedKeys(), 500)
    assert bound <= CLAIM
    assert abs(mu - 1 / Z) < 4 * error < 0.3


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("name", RELEASES)
def test_I7_I8_the_same_with_a_hundred_thousand_runs_and_keys_of_the_operating_system(name: str) -> None:
    bound, mu, error = audit(RELEASES[name](), SystemKeys(), SOAK)
    print(f"{name}: {bound:.3f} by counts, mu {mu:.4f} +/- {error:.4f}")
    assert 2.6 <= bound <= CLAIM, f"{name}: {bound:.3f} by counts"  # 2.81 is expected
    assert abs(mu - 1 / Z) < 0.025, f"{name}: mu {mu:.4f} +/- {error:.4f}"


def synthetic(mu: float, std: float) -> Release:
    """A mechanism as it would be with a fault: what the audit is worth."""
    rng = np.random.default_rng(11)
    return lambda present, keys, first, runs: mu * present + std * rng.standard_normal(runs)


@pytest.mark.parametrize(
    ("fault", "runs", "least"),
    [((1.0, 0.5), SOAK, 4.9), ((2.0, 1.0), SOAK, 4.9), ((1.0, 1e-9), 1000, 5.0)],
    ids=["noise halved", "sensitivity doubled", "no noise"],
)
def test_I7_sees_halved_noise_a_doubled_sensitivity_and_no_noise(
    fault: tuple[float, float], runs: int, least: float
) -> None:
    bound, _, _ = audit(synthetic(*fault), CountedKeys(), runs)
    print(f"{bound:.3f}")
    assert bound > least > CLAIM


def test_I8_sees_noise_that_is_ten_per_cent_low_and_I7_does_not() -> None:
    bound, mu, _ = audit(synthetic(1.0, 0.9), CountedKeys(), CI)
    assert bound < CLAIM
    assert math.isclose(mu, 1.11, abs_tol=0.06) and abs(mu - 1) > 0.06
