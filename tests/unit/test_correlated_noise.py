"""Noise that is taken back: a function of C x + z exactly, one release per round, and the claim against a formula."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

from server.noise import FILE, NoiseFile, forget
from tacit import config
from tacit.errors import ConfigError, StorageError
from tacit.privacy.banded import UNIT, coefficients, column_norm
from tacit.privacy.central import CentralNoise, CorrelatedNoise, NoiseMemory
from tacit.privacy.discrete import discrete_gaussian
from tacit.privacy.noise import SeededKeys, Stream, SystemKeys
from tacit.privacy.plan import SUM, PrivacyPlan
from tacit.update import Aggregate
from tests.unit.test_banded import dense, moved, patterns

RUN = "a run"
SITES = "".join(f'[[federation.sites]]\nlabel = "s{i}"\nrows = 50\n' for i in range(12))
FTRL = """name = "ftrl"
[strategy]
name = "dp_ftrl"
[privacy.client]
epsilon = 2.0
delta = 1e-3
noise = "central"
[training]
rounds = 14
[secure_aggregation]
precision_bits = 10
"""


def made(*overrides: str, memory: NoiseMemory | None = None) -> CorrelatedNoise:
    experiment = config.loads(FTRL + SITES, overrides=overrides)
    noise = CentralNoise.of(experiment, PrivacyPlan.of(experiment), lambda: memory or NoiseMemory())
    assert isinstance(noise, CorrelatedNoise)
    return noise


def rounds_of(noise: CorrelatedNoise, sums: np.ndarray) -> np.ndarray:
    """What the server releases, round after round, shape as the sums."""
    out = []
    for number, values in enumerate(sums, start=1):
        released = noise.added(Aggregate(values, 3), number)
        noise.keep(released)
        out.append(released.total.values)
    return np.array(out)


@pytest.mark.parametrize("bands", [1, 2, 4])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_what_is_released_is_a_function_of_C_times_the_sums_plus_discrete_gaussians_exactly(
    bands: int, momentum: float
) -> None:
    noise = made(
        f"strategy.bands={bands}", f"strategy.server_momentum={momentum}", "insecure_seeded_noise=true"
    )
    sums = np.random.default_rng(1).integers(-3000, 3000, size=(14, 300))
    released = rounds_of(noise, sums)
    c, keys = coefficients(bands, momentum), SeededKeys(7)
    z = np.array(
        [discrete_gaussian(Stream(keys.key("correlated", t)), 300, noise.scale) for t in range(1, 15)]
    )
    y = dense(c, 14).astype(np.int64) @ sums + z  # the mechanism, which the accounting is of
    made_of_y = np.zeros_like(released)
    for t in range(14):
        left = y[t] - sum((c[k] * made_of_y[t - k] for k in range(1, min(t, bands - 1) + 1)), np.int64(0))
        made_of_y[t] = np.floor(left / UNIT + 0.5)
    assert (released == made_of_y).all()
    # And the noise is C^-1 z, but for half a unit of rounding in each round.
    off = dense(c, 14) @ (released - sums) - z
    assert np.abs(off).max() <= UNIT / 2 and np.abs(z).max() > 100 * UNIT


def test_no_noise_is_in_two_sums_and_no_round_releases_two_over_attempts_restarts_and_resumed_runs(
    tmp_path: Path,
) -> None:
    sums = np.random.default_rng(2).integers(-3000, 3000, size=(6, 400))
    noise = made(memory=NoiseFile(tmp_path / FILE, RUN))
    assert isinstance(noise.keys, SystemKeys)
    earlier = rounds_of(noise, sums[:3])
    # An attempt of which nothing was used, with another sum next: other noise.
    dropped = noise.added(Aggregate(sums[3], 3), 4).total.values - sums[3]
    kept = noise.added(Aggregate(sums[4], 3), 4)
    released = kept.total
    assert (released.values - sums[4] != dropped).mean() > 0.9
    noise.keep(kept)
    for process in (noise, made(memory=NoiseFile(tmp_path / FILE, RUN))):
        assert process.released(4, 400) is not None, "and nobody need be asked"
        late = process.added(Aggregate(sums[5], 2), 4)
        process.keep(late)
        again = late.total
        assert (again.values == released.values).all() and again.num_clients == released.num_clients
    # What a process that knows the first four rounds releases in the fifth is what one that made them would have.
    restarted = made("insecure_seeded_noise=true", memory=NoiseFile(tmp_path / FILE, RUN))
    fifth = restarted.added(Aggregate(sums[5], 3), 5).total.values - sums[5]
    z = discrete_gaussian(Stream(SeededKeys(7).key("correlated", 5)), 400, restarted.scale)
    c = restarted.c
    history = [released.values - sums[4], earlier[2] - sums[2], earlier[1] - sums[1]]
    owed = sum(c[k] * history[k - 1] for k in (1, 2, 3))
    assert (fifth == np.floor((z - owed) / UNIT + 0.5)).all()


def test_a_round_whose_noise_does_not_follow_is_refused_before_anybody_is_asked(tmp_path: Path) -> None:
    path = tmp_path / FILE
    noise = made(memory=NoiseFile(path, RUN))
    for wrong in (2, 5):
        with pytest.raises(
            StorageError, match=f"the noise is that of round 0, and round {wrong} was to be next"
        ):
            noise.released(wrong, 8)
    rounds_of(noise, np.zeros((3, 8), dtype=np.int64))
    for number, fits in ((2, False), (3, True), (4, True), (5, False)):
        if fits:
            assert (made(memory=NoiseFile(path, RUN)).released(number, 8) is None) == (number == 4)
            with pytest.raises(StorageError, match="vectors of 8 numbers, and the model's have 9"):
                made(memory=NoiseFile(path, RUN)).released(number, 9)
        else:
            with pytest.raises(StorageError, match="put back the newest copy"):
                made(memory=NoiseFile(path, RUN)).released(number, 8)
    with pytest.raises(StorageError, match="the noise of another run"):
        NoiseFile(path, "another")


def test_K2_what_a_round_has_released_is_on_the_disk_before_it_is_used_for_this_user_alone_and_whole(
    tmp_path: Path,
) -> None:
    path = tmp_path / FILE
    noise = made(memory=NoiseFile(path, RUN))
    released = replace(noise.added(Aggregate(np.arange(20), 3), 1), facts='{"é": 1}', proof="p")
    total = released.total
    assert not path.exists(), "nothing was used yet, and the sum may be spoilt"
    noise.keep(released)
    assert path.stat().st_mode & 0o777 == 0o600
    kept = NoiseFile(path, RUN).last
    assert (kept.facts, kept.proof) == (released.facts, released.proof)
    assert kept.round == 1 and (kept.total.values == total.values).all() and len(kept.noise) == 1
    rounds_of(noise, np.zeros((9, 20), dtype=np.int64))
    assert len(NoiseFile(path, RUN).last.noise) == 3, "as many as are taken back, and no more"
    content = path.read_bytes()
    for damage in (content[:-1], content[:40], b"", content[:-1] + bytes([content[-1] ^ 1])):
        path.write_bytes(damage)
        with pytest.raises(StorageError, match="damaged"):
            NoiseFile(path, RUN)
    path.chmod(0o640)
    with pytest.raises(StorageError, match="lets other users in"):
        NoiseFile(path, RUN)
    forget(path)
    forget(path)
    assert NoiseFile(path, RUN).last.round == 0


def test_a_missing_client_counts_as_zero_so_that_noise_goes_back_in_equal_units() -> None:
    noise = made()
    assert noise.cohort == 3
    for number, came in ((1, 3), (2, 2)):
        released = noise.added(Aggregate(np.zeros(5, dtype=np.int64), came), number)
        assert released.total.num_clients == 3
        noise.keep(released)


@pytest.mark.parametrize(
    ("overrides", "bands", "separation", "momentum"),
    [
        ((), 4, 4, 0.0),
        (("strategy.bands=2", "strategy.min_separation=3"), 2, 3, 0.0),
        (("strategy.bands=1", "strategy.min_separation=4", "privacy.client.reserve=0.0"), 1, 4, 0.0),
        (("strategy.bands=3", "strategy.server_momentum=0.9", "privacy.client.epsilon=0.5"), 3, 3, 0.9),
    ],
)
def test_the_claim_is_that_of_one_gaussian_release_of_all_that_a_client_can_move(
    overrides: tuple[str, ...], bands: int, separation: int, momentum: float
) -> None:
    """From sigma alone, by the largest shift over all patterns of participation and dp-accounting's conversion."""
    noise = made(*overrides)
    experiment = config.loads(FTRL + SITES, overrides=overrides)
    plan = PrivacyPlan.of(experiment).client
    assert plan is not None
    c = dense(coefficients(bands, momentum), 14)
    most = math.ceil(14 / separation)
    spread = max(moved(c, pattern) ** 2 for pattern in patterns(14, separation))
    bound = most * column_norm(bands, momentum) ** 2
    assert spread <= bound * (1 + 1e-12)
    orders = np.concatenate([1 + np.arange(1, 1000) / 100, np.arange(11, 2000)])

    def epsilon(participations: float) -> float:
        rho = participations * column_norm(bands, momentum) ** 2 * 2**20 / (2 * noise.scale**2)
        return float(compute_epsilon(orders, orders * rho, 1e-3)[0])

    assert plan.rounds == most and plan.separation == separation
    assert plan.debits == most + math.ceil(round(experiment.privacy.client.reserve * most, 6))  # type: ignore[union-attr]
    assert epsilon(plan.debits) == pytest.approx(plan.epsilon, rel=2e-3)
    assert plan.epsilon <= experiment.privacy.client.epsilon  # type: ignore[union-attr]
    assert epsilon(most) <= plan.epsilon * 1.001
    assert epsilon(14) > plan.epsilon * 1.2, "a client in every round would have paid more"


def test_the_plan_of_a_run_counts_rounds_and_the_ledger_participations() -> None:
    plan = PrivacyPlan.of(config.loads(FTRL + SITES))
    client = plan.client
    assert client is not None and (plan.rounds, client.rounds, client.debits) == (14, 4, 5)
    assert plan.debits_of(SUM) == 5
    curve = [plan.epsilon_after(number) for number in range(15)]
    assert curve[0] == 0 and curve[1] == curve[4] < curve[5] == curve[8] < curve[9]
    assert curve[14] == client.epsilon_after(4) < client.epsilon_after(5) == pytest.approx(client.epsilon)


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ('privacy.client.noise="distributed"',),
            "takes back noise of earlier rounds, whose clients have gone",
        ),
        (("privacy.client.target_quantile=0.5",), "counted in units of the clip norm"),
        (("strategy.bands=4", "strategy.min_separation=3"), "min_separation = 3 is below bands = 4"),
        (
            ("strategy.bands=13",),
            "strategy.min_separation = 13 needs as many clients to take turns, and there are 12",
        ),
        (
            ("training.clients_per_round=4",),
            "training.clients_per_round is above the 3 clients there are in a turn: strategy.min_separation = 4 makes",
        ),
        (
            ("training.clients_per_round=0", "secure_aggregation.max_dropouts=1"),
            "the threshold is 3 in a turn: strategy.min_separation = 4 makes 4 turns of the 12 clients",
        ),
        (("strategy.server_momentum=0.9961",), "server_momentum = 0.9961 is so near 1"),
        (("strategy.name=fedavg", "strategy.bands=2"), 'bands belongs to name = "dp_ftrl"'),
        (("strategy.weights=declared",), 'strategy.weights must be "equal"'),
    ],
)
def test_what_cannot_be_taken_back_or_paid_for_is_refused_with_the_reason(
    overrides: tuple[str, ...], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        config.loads(FTRL + SITES, overrides=overrides)
    assert said in str(refused.value)


def test_noise_that_cannot_be_drawn_is_refused_by_key_with_what_would_do() -> None:
    fine = config.loads(
        FTRL + SITES, overrides=("secure_aggregation.precision_bits=24", "privacy.client.epsilon=0.01")
    )
    with pytest.raises(ConfigError) as refused:
        PrivacyPlan.of(fine)
    assert refused.value.key == "secure_aggregation.precision_bits"
    most = int(refused.value.reason.split(": ")[1].split()[0])
    PrivacyPlan.of(fine.with_tables(secure_aggregation={"precision_bits": most}))
