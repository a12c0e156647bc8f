import random

import numpy as np
import pytest

from tacit.errors import ConfigError
from tacit.secagg.encoder import Encoder, MetricRange
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.in_process import secure_sum
from tacit.secagg.parameters import Rules
from tacit.update import EncodedUpdate, Layout, LocalUpdate

C_INT = 1 << 16


def rules(n):
    return Rules(0 if n == 2 else 1, 0, C_INT, allow_no_corrupt=n == 2)


def draw(n, d, seed):
    rng = np.random.default_rng([n, d, seed])
    return [EncodedUpdate(rng.integers(-C_INT, C_INT + 1, d), False) for _ in range(n)]


@pytest.mark.parametrize("n", [2, 3, 5, 10, 50])
@pytest.mark.parametrize("d", [1, 7, 1000, 100_000])
def test_A1_the_secure_sum_is_bit_equal_to_the_plain_sum(n, d):
    for seed in range(1 if n * d > 1_000_000 else 3):
        encoded = draw(n, d, seed)
        secure, ideal = secure_sum(encoded, rules(n), random.Random(seed).randbytes), ideal_sum(encoded)
        assert np.array_equal(secure.values, ideal.values)
        assert secure.values.dtype == ideal.values.dtype
        assert secure.num_clients == ideal.num_clients == n
        assert np.array_equal(ideal.values, np.sum([update.values for update in encoded], axis=0))


def test_A1_with_secrets_from_the_operating_system():
    encoded = draw(4, 50, 0)
    assert np.array_equal(secure_sum(encoded, rules(4)).values, ideal_sum(encoded).values)


@pytest.mark.parametrize(
    "n", [2, 3, 4, 7, 8, 16, 32]
)  # powers of two would wrap if the bound were not strict
@pytest.mark.parametrize("extreme", [C_INT, -C_INT])
def test_A9_all_clients_at_the_bound_do_not_wrap(n, extreme):
    encoded = [EncodedUpdate(np.full(3, extreme), False) for _ in range(n)]
    assert secure_sum(encoded, rules(n)).values.tolist() == [n * extreme] * 3


def test_the_ideal_sum_leaves_its_inputs_alone_and_needs_one():
    encoded = draw(3, 5, 0)
    before = [update.values.copy() for update in encoded]
    ideal_sum(encoded)
    assert all(np.array_equal(a.values, b) for a, b in zip(encoded, before, strict=True))
    with pytest.raises(ValueError, match="at least one"):
        ideal_sum([])


def test_one_vector_is_no_secret_sum():
    for n in (1, 2):
        with pytest.raises(ConfigError):
            secure_sum(draw(n, 5, 0), Rules(1, 0, C_INT))


def test_A12_A13_a_weighted_mean_and_its_metrics_come_out_of_the_secure_sum():
    layout = Layout((("w", (20, 10)), ("b", (10,))), ("correct", "rows"))
    encoder = Encoder(layout, 3.0, C_INT, {name: MetricRange(1000, 1) for name in layout.metrics})
    rng = np.random.default_rng(5)
    updates = [
        LocalUpdate(
            {"w": rng.normal(0, 0.1, (20, 10)), "b": rng.normal(0, 0.1, 10)},
            float(rng.uniform(0.1, 1)),
            {"correct": int(rng.integers(0, 500)), "rows": 500},
        )
        for _ in range(6)
    ]
    encoded = [encoder.encode(update, rng.random) for update in updates]
    mean = encoder.decode(secure_sum(encoded, rules(6)))
    total = sum(update.weight for update in updates)
    for name in ("w", "b"):
        expected = sum(update.weight * update.delta[name] for update in updates) / total
        assert np.abs(mean.arrays[name] - expected).max() < 6 * 3.0 / C_INT
    assert mean.total_weight == pytest.approx(total, abs=6 / C_INT)
    assert mean.metrics == {
        "correct": sum(update.metrics["correct"] for update in updates),
        "rows": 3000,
    }
