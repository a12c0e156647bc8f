"""Under a promise for clients one bound covers the whole vector: model, metrics and bit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.privacy.discrete import add_noise
from tacit.privacy.noise import SeededKeys, Stream
from tacit.secagg.client_encoder import ClientLevelEncoder
from tacit.secagg.encoder import MetricRange
from tacit.secagg.ideal import ideal_sum
from tacit.update import Aggregate, Layout, LocalUpdate

C_INT = 1 << 16
CLIP = 5.0
ARRAYS = (("layer.weight", (4, 3)), ("layer.bias", (4,)), ("scale", ()))
NAMES = ("correct", "records")
METRICS = {"correct": MetricRange(300, 1), "records": MetricRange(400, 1)}
KEYS = SeededKeys(20261123)


def encoder(metrics: bool = True, last: Any = "bit", **changes: Any) -> ClientLevelEncoder:
    layout = Layout(changes.pop("arrays", ARRAYS), NAMES if metrics else (), last)
    fields: dict[str, Any] = {"clip": CLIP, "c_int": C_INT, "metrics": METRICS if metrics else {}}
    return ClientLevelEncoder(layout, **{**fields, **changes})


ENCODER = encoder()


def update(
    delta: dict[str, Any] | None = None, seed: int = 0, size: float = 1.0, **metrics: float
) -> LocalUpdate:
    rng = np.random.default_rng(seed)
    drawn = {name: rng.uniform(-size, size, shape).astype(np.float32) for name, shape in ARRAYS}
    return LocalUpdate(delta or drawn, 1.0, {"correct": 100.0, "records": 200.0, **metrics})


def uniforms(name: object) -> Any:
    return Stream(KEYS.key("uniforms", str(name))).uniform


def norm(values: Any) -> int:
    return sum(int(x) ** 2 for x in values)


SHAPES = dict(ARRAYS)


def filled(value: Any, dtype: Any = np.float32) -> dict[str, Any]:
    return {name: np.full(shape, value, dtype=dtype) for name, shape in ARRAYS}


def one_hot(value: float, name: str = "layer.bias") -> dict[str, Any]:
    delta = filled(0.0)
    delta[name] = delta[name].copy()
    delta[name].flat[0] = value
    return delta


HAND_MADE: list[dict[str, Any]] = [
    *(filled(v) for v in (0.0, -0.0, 1.0, -1.0, 1e38, -1e38, 1e-45, 1e-38, CLIP, CLIP / math.sqrt(17))),
    *(filled(v, np.float64) for v in (1e308, 5e-324, 1e200, CLIP / math.sqrt(17) * (1 + 1e-15))),
    *(filled(v, np.float16) for v in (6e-8, 65504.0, 1.5)),
    *(filled(v, np.int64) for v in (0, 1, 2**62, -(2**62))),
    *(filled(v, bool) for v in (True, False)),
    *(one_hot(v, name) for v in (CLIP, 1e38, 1e-30, np.nextafter(CLIP, 9)) for name in SHAPES),
    {name: np.array(np.full(shape, 3.0), order="F") for name, shape in ARRAYS},
    {name: np.broadcast_to(np.float32(2.0), shape) for name, shape in ARRAYS},
    {name: np.full((*shape, 2), 7.0)[..., 0].reshape(shape) for name, shape in ARRAYS},
]
NOT_FINITE = [np.nan, np.inf, -np.inf]


@pytest.mark.parametrize("i", range(len(HAND_MADE)))
@pytest.mark.parametrize(("correct", "records"), [(300, 400), (-300.0, -400), (0, 0), (-0.0, 1e-300)])
def test_I5_no_update_is_longer_than_the_bound(i: int, correct: float, records: float) -> None:
    values = ENCODER.encode(update(HAND_MADE[i], correct=correct, records=records), uniforms(i)).values
    assert values.dtype == np.int64 and values.shape == (ENCODER.layout.size,)
    assert norm(values) <= C_INT**2


@pytest.mark.parametrize("value", NOT_FINITE)
@pytest.mark.parametrize("name", [*SHAPES, "correct"])
def test_I5_what_is_not_finite_is_refused(value: float, name: str) -> None:
    bad = update(correct=value) if name == "correct" else update(one_hot(value, name))
    with pytest.raises(Refused) as error:
        ENCODER.encode(bad, uniforms(0))
    assert error.value.reason == ("metric-bound" if name == "correct" else "not-finite")


@pytest.mark.parametrize("c_int", [2**8, 2**12, 2**16])
def test_I5_a_hundred_thousand_random_updates_keep_the_bound(c_int: int) -> None:
    """Directions and lengths at random, with rounding as it is drawn and as it is worst."""
    small = encoder(c_int=c_int, arrays=(("w", (24,)),))
    rng = np.random.default_rng(5)
    worst = 0
    for trial in range(33_400 // (1 if c_int == 2**16 else 8)):
        delta = rng.standard_normal(24) * rng.choice([1e-3, 0.3, 1.0, 1.02, 50.0]) * CLIP / math.sqrt(24)
        one = LocalUpdate({"w": delta}, 1.0, {"correct": rng.uniform(-300, 300), "records": 400.0})
        draws = rng.random if trial % 2 else np.zeros  # zeros round everything up
        values = small.encode(one, draws).values
        worst = max(worst, norm(values))
        assert worst <= c_int**2
    assert worst > 0.95 * c_int**2  # and the bound is used


@pytest.mark.parametrize("last", ["bit", ""])
@pytest.mark.parametrize("metrics", [True, False])
def test_I19_the_bound_is_over_model_metrics_and_bit_together(last: str, metrics: bool) -> None:
    made = encoder(metrics, last)
    one = update(filled(1e6), correct=300, records=400)
    one = one if metrics else LocalUpdate(one.delta, 1.0, {})
    values = made.encode(one, uniforms("I19")).values
    assert values.size == 17 + 2 * metrics + bool(last) == made.layout.size
    assert 0.999 * C_INT**2 < norm(values) <= C_INT**2
    assert norm(values[:17]) < (made.shares["model"] * C_INT) ** 2
    assert sum(share**2 for share in made.shares.values()) == pytest.approx(1)
    if last or metrics:
        assert made.shares["model"] == 0.99 and norm(values[:17]) < 0.9802 * C_INT**2


def test_a_clipped_update_says_so_in_its_bit_and_moves_the_sum_by_no_more_either_way() -> None:
    long, short = (ENCODER.encode(update(size=size), uniforms(size)) for size in (100.0, 0.1))
    assert long.clipped and not short.clipped
    assert long.values[-1] == pytest.approx(-short.values[-1], abs=1.01)
    assert short.values[-1] == pytest.approx(ENCODER.shares["bit"] * C_INT, rel=1e-3)


def test_the_mean_is_over_the_clients_in_the_sum() -> None:
    updates = [update(seed=i, correct=10.0 * i, records=11.0 * i) for i in range(8)]
    mean = ENCODER.decode(ideal_sum([ENCODER.encode(u, uniforms(i)) for i, u in enumerate(updates)]))
    for name, shape in ARRAYS:
        expected = sum(u.delta[name].astype(np.float64) for u in updates) / 8
        assert mean.arrays[name].shape == shape
        assert np.abs(mean.arrays[name] - expected).max() < 2 * CLIP / C_INT
    assert mean.total_weight == 8 and mean.below_clip == pytest.approx(1, abs=1e-3)
    assert mean.metrics["correct"] == pytest.approx(280, abs=0.5)
    assert mean.metrics["records"] == pytest.approx(308, abs=0.5)


def test_rounding_is_unbiased_in_every_block() -> None:
    one, n = update(seed=3), 4000
    total = sum(ENCODER.encode(one, uniforms(i)).values for i in range(n))
    mean = ENCODER.decode(Aggregate(total, n))
    error = CLIP / C_INT / math.sqrt(n)
    for name, _ in ARRAYS:
        assert np.abs(mean.arrays[name] - one.delta[name]).max() < 5 * 0.5 * error / 0.99


def test_the_quantile_is_the_share_of_updates_that_were_not_clipped() -> None:
    vectors = [ENCODER.encode(update(seed=i, size=100.0 if i < 3 else 0.1), uniforms(i)) for i in range(10)]
    assert ENCODER.decode(ideal_sum(vectors)).below_clip == pytest.approx(0.7, abs=1e-3)
    assert encoder(last="").decode(Aggregate(np.zeros(19, dtype=np.int64), 5)).below_clip is None


def test_noise_passes_the_norm_test_and_more_than_that_does_not() -> None:
    sums = ideal_sum([ENCODER.encode(update(seed=i), uniforms(i)) for i in range(5)])
    std = 3.0 * C_INT
    noisy = Aggregate(add_noise(sums.values, std, Stream(KEYS.key("noise"))), 5)
    assert math.isfinite(ENCODER.decode(noisy, std).metrics["correct"])
    with pytest.raises(ProtocolError, match="aggregate-norm"):
        ENCODER.decode(noisy)
    with pytest.raises(ProtocolError, match="layout"):
        ENCODER.decode(Aggregate(noisy.values[:-1], 5), std)


def test_another_layout_a_weight_or_no_share_is_refused() -> None:
    for bad in (LocalUpdate(update().delta, 0.5, {"correct": 0, "records": 0}),):
        with pytest.raises(Refused, match="weight"):
            ENCODER.encode(bad, uniforms(0))
    with pytest.raises(ProtocolError, match="layout"):
        ENCODER.encode(LocalUpdate(update().delta, 1.0, {"correct": 0}), uniforms(0))
    for changes in (
        {"last": "weight"},
        {"model_share": 1.0},
        {"model_share": 0.0},
        {"model_share": math.nan},
    ):
        with pytest.raises(ConfigError):
            encoder(**changes)  # type: ignore[arg-type]
    assert encoder(False, "", model_share=1.0).shares == {"model": 1.0}
