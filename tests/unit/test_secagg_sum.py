import random
from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg.encoder import Encoder, MetricRange
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.in_process import Attempt, Federation, secure_sum
from tacit.secagg.parameters import Rules
from tacit.update import EncodedUpdate, Layout, LocalUpdate
from tests.unit.secagg_round import Round, reason_of

C_INT = 1 << 16


def draw(n, d, seed):
    rng = np.random.default_rng([n, d, seed])
    return [EncodedUpdate(rng.integers(-C_INT, C_INT + 1, d), False) for _ in range(n)]


def check_sum(n, d, seed, threads=1):
    """Two clients are two of three in a roster that no federation may agree on, under the test switch."""
    encoded, source = draw(max(n, 3), d, seed), random.Random(seed).randbytes
    rules = Rules(0, 1, C_INT, allow_no_corrupt=True) if n == 2 else Rules(1, 0, C_INT)
    federation = Federation(max(n, 3), rules, source)
    if n == 2:
        object.__setattr__(federation.roster, "n_min", 2)
    gone = {"setup": (2,)} if n == 2 else {}
    secure = Attempt(federation, encoded, gone, threads=threads).run()
    ideal = ideal_sum(encoded[:n])
    assert np.array_equal(secure.values, ideal.values)
    assert secure.values.dtype == ideal.values.dtype
    assert secure.num_clients == ideal.num_clients == n
    assert np.array_equal(ideal.values, np.sum([update.values for update in encoded[:n]], axis=0))


SHORT = [(n, d) for n in (2, 3, 5, 10) for d in (1, 7, 1000, 100_000)]
SHORT += [(3, 1_000_000), (50, 1000), (100, 7)]  # and 200 in test_A4
LONG = [(n, d) for n in (2, 3, 5, 10, 50, 100, 200) for d in (1, 7, 1000, 100_000, 1_000_000)]


@pytest.mark.parametrize(("n", "d"), SHORT)
def test_A1_the_secure_sum_is_bit_equal_to_the_plain_sum(n, d):
    for seed in range(3 if n <= 10 and d <= 1000 else 1):
        check_sum(n, d, seed)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize(("n", "d"), LONG)
def test_A1_the_secure_sum_is_bit_equal_to_the_plain_sum_for_every_size(n, d):
    for seed in range(3):
        check_sum(n, d, seed, threads=2)


def test_A1_with_secrets_from_the_operating_system_and_threads():
    encoded = draw(4, 100_000, 0)
    assert np.array_equal(secure_sum(encoded, Rules(1, 0, C_INT)).values, ideal_sum(encoded).values)
    check_sum(4, 100_000, 0, threads=3)


@pytest.mark.parametrize("n", [3, 4, 7, 8, 16])  # powers of two would wrap if the bound were not strict
@pytest.mark.parametrize("extreme", [C_INT, -C_INT])
def test_A9_all_clients_at_the_bound_do_not_wrap(n, extreme):
    encoded = [EncodedUpdate(np.full(3, extreme), False) for _ in range(n)]
    assert secure_sum(encoded, Rules(1, 0, C_INT)).values.tolist() == [n * extreme] * 3


def test_A9_a_coordinate_beyond_the_bound_is_refused_before_anything_is_masked():
    run = Round(rules=Rules(1, 1, C_INT)).until("deal")
    request, client = run.ask("mask")[0], run.clients[0]
    assert client.receive(request) is None
    for place, value in ((0, C_INT + 1), (-1, -C_INT - 1), (7, 2**40), (7, -(2**63))):
        values = np.zeros(20, dtype=np.int64)
        values[place] = value
        with pytest.raises(Refused, match="range"):
            client.mask(request, EncodedUpdate(values, False))
    for size in (0, 19, 21):
        with pytest.raises(Refused, match="vector-size"):
            client.mask(request, EncodedUpdate(np.zeros(size, dtype=np.int64), False))
    assert client.phase == "dealt"
    run.collect("mask", client.mask(request, run.encoded[0]))  # the refusals have cost nothing


def test_A9_noise_may_lift_a_coordinate_above_the_clip_but_never_around():
    run = Round(rules=Rules(1, 1, C_INT, noise_multiplier=2.0)).until("deal")
    request, parameters = run.ask("mask")[0], run.clients[0].cohort.parameters
    assert parameters.noise_share == pytest.approx(2.0 * C_INT / np.sqrt(5 - 1 - 1))
    assert run.clients[0].receive(request) is None
    half = 2 ** (parameters.bits - 1)
    for value in (half, -half):
        with pytest.raises(Refused, match="range"):
            run.clients[0].mask(request, EncodedUpdate(np.full(20, value), False))
    run.clients[0].mask(request, EncodedUpdate(np.full(20, half - 1), False))


@pytest.mark.parametrize(("n", "c", "dropouts"), [(3, 1, 0), (4, 1, 1), (5, 1, 1), (10, 1, 4)])
def test_A15_exactly_t_survivors_open_the_exact_sum(n, c, dropouts):
    rules = Rules(c, dropouts, C_INT)
    threshold = rules.parameters(n).threshold
    assert n - rules.parameters(n).max_dropouts == threshold  # these are the cohorts in which it is tight
    for step in ("mask", "confirm", "unmask"):
        encoded, gone = draw(n, 20, 0), list(range(n))[:dropouts]
        secure = secure_sum(encoded, rules, random.Random(1).randbytes, {step: gone})
        left = encoded[dropouts:] if step == "mask" else encoded
        assert np.array_equal(secure.values, ideal_sum(left).values)


@pytest.mark.slow
def test_A15_exactly_t_of_200_survivors_open_the_exact_sum():
    rules = Rules(66, 66, C_INT)
    assert rules.parameters(200).threshold == 134
    encoded = draw(200, 7, 0)
    secure = secure_sum(encoded, rules, random.Random(1).randbytes, {"mask": range(66)})
    assert np.array_equal(secure.values, ideal_sum(encoded[66:]).values)


def test_the_ideal_sum_leaves_its_inputs_alone_and_needs_one():
    encoded = draw(3, 5, 0)
    before = [update.values.copy() for update in encoded]
    ideal_sum(encoded)
    assert all(np.array_equal(a.values, b) for a, b in zip(encoded, before, strict=True))
    with pytest.raises(ValueError, match="at least one"):
        ideal_sum([])


@pytest.mark.parametrize("n", [1, 2])
def test_one_vector_is_no_secret_sum(n):
    with pytest.raises((ConfigError, ProtocolError)):
        secure_sum(draw(n, 5, 0), Rules(1, 0, C_INT))


# --- A12, A13, C4, C11: with the encoder ---------------------------------------------------------------------

LAYOUT = Layout((("w", (20, 10)), ("b", (10,))), ("correct", "rows"))
ENCODER = Encoder(LAYOUT, 3.0, C_INT, {name: MetricRange(1000, 1) for name in LAYOUT.metrics})


def update_of(rng, boost=1.0):
    return LocalUpdate(
        {"w": boost * rng.normal(0, 0.1, (20, 10)), "b": boost * rng.normal(0, 0.1, 10)},
        float(rng.uniform(0.1, 1)),
        {"correct": int(rng.integers(0, 500)), "rows": 500},
    )


def test_A12_A13_a_weighted_mean_and_its_metrics_come_out_of_the_secure_sum():
    rng = np.random.default_rng(5)
    updates = [update_of(rng) for _ in range(6)]
    encoded = [ENCODER.encode(update, rng.random) for update in updates]
    mean = ENCODER.decode(secure_sum(encoded, Rules(1, 0, C_INT)))
    total = sum(update.weight for update in updates)
    for name in ("w", "b"):
        expected = sum(update.weight * update.delta[name] for update in updates) / total
        assert np.abs(mean.arrays[name] - expected).max() < 6 * 3.0 / C_INT
    assert mean.total_weight == pytest.approx(total, abs=6 / C_INT)
    sums = {"correct": sum(update.metrics["correct"] for update in updates), "rows": 3000}
    assert mean.metrics == sums


def test_A12_no_message_has_a_place_for_a_metric_or_a_weight():
    """What clients answer is the same but for the masked words, whatever their metrics and weights are."""
    rng = np.random.default_rng(5)
    update = update_of(rng)
    others = [update_of(rng) for _ in range(4)]

    def answers(first):
        run = Round(rules=Rules(1, 1, C_INT), length=LAYOUT.size)
        uniforms = np.random.default_rng(1).random
        run.encoded = {i: ENCODER.encode(u, uniforms) for i, u in enumerate([first, *others])}
        run.run()
        mask = run.answers.pop("mask")
        assert all(len(y) == len(mask[1][1]) for _, y in mask.values())
        return run.answers, [len(message) for message, _ in mask.values()]

    other = replace(update, weight=0.5, metrics={"correct": 0, "rows": 1})
    one, two = answers(update), answers(other)
    assert one[1] == two[1]
    for step in ("setup", "deal"):
        assert one[0][step] == two[0][step]
    for step in (
        "confirm",
        "unmask",
    ):  # their signatures cover the request, and that a signature under the tag
        assert {i: len(a) for i, a in one[0][step].items()} == {i: len(a) for i, a in two[0][step].items()}


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 1e38])
def test_C4_the_library_refuses_what_is_not_finite_and_clips_the_rest(value):
    update = update_of(np.random.default_rng(5))
    poisoned = replace(update, delta={**update.delta, "b": np.full(10, value)})
    if np.isfinite(value):
        assert ENCODER.encode(poisoned, np.random.default_rng(0).random).clipped
    else:
        with pytest.raises(Refused, match="not-finite"):
            ENCODER.encode(poisoned, np.random.default_rng(0).random)


@pytest.mark.parametrize(("value", "reason"), [(6 * C_INT, "aggregate-range"), (C_INT, "aggregate-norm")])
def test_C4_whoever_goes_around_the_library_is_seen_in_the_sum(value, reason):
    """At C_int in every coordinate it is only the norm that is too long."""
    rng = np.random.default_rng(5)
    run = Round(rules=Rules(1, 1, C_INT), length=LAYOUT.size)
    run.encoded = {i: ENCODER.encode(update_of(rng), rng.random) for i in run.clients}
    run.encoded[0] = EncodedUpdate(np.full(LAYOUT.size, value), False)
    run.clients[0]._check_range = lambda *_: None
    assert reason_of(lambda: ENCODER.decode(run.run())) == reason


def test_C11_one_boosted_client_of_twenty_moves_the_model_by_no_more_than_its_clip():
    """Logistic regression over five rounds; one client pulls the other way with a hundred times the norm."""

    def accuracy(boosted):
        rng = np.random.default_rng(0)
        truth = rng.normal(0, 1, 10)
        x = rng.normal(0, 1, (20, 200, 10))
        y = (x @ truth > 0).astype(float)
        layout = Layout((("w", (10,)),))
        encoder, w = Encoder(layout, 1.0, C_INT), np.zeros(10)
        for number in range(5):
            encoded = []
            for i in range(20):
                gradient = x[i].T @ (1 / (1 + np.exp(-x[i] @ w)) - y[i]) / 200
                delta = 100 * gradient if boosted and i == 0 else -2 * gradient
                encoded.append(encoder.encode(LocalUpdate({"w": delta}, 1.0, {}), rng.random))
            source = random.Random(number).randbytes
            mean = encoder.decode(secure_sum(encoded, Rules(1, 0, C_INT), source))
            assert not boosted or encoded[0].clipped
            w = w + mean.arrays["w"]
        return float((((x @ w) > 0) == (y > 0)).mean())

    honest, poisoned = accuracy(False), accuracy(True)
    assert honest > 0.95
    assert poisoned > honest - 0.05
