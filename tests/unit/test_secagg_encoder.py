import pickle
from math import sqrt

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError, Refused
from tacit.secagg.encoder import Encoder, MetricRange
from tacit.secagg.ideal import ideal_sum
from tacit.update import Aggregate, EncodedUpdate, Layout, LocalUpdate

C_INT = 1 << 16
LAYOUT = Layout((("layer.weight", (4, 3)), ("layer.bias", (4,)), ("scale", ())), ("correct", "loss"))
METRICS = {"correct": MetricRange(300, 1), "loss": MetricRange(900.0, 0.01)}
ENCODER = Encoder(LAYOUT, clip=5.0, c_int=C_INT, metrics=METRICS)


def update(seed=0, weight=1.0, size=1.0, **metrics):
    rng = np.random.default_rng(seed)
    delta = {name: rng.uniform(-size, size, shape).astype(np.float32) for name, shape in LAYOUT.arrays}
    return LocalUpdate(delta, weight, {"correct": 100.0, "loss": 12.5, **metrics})


def uniforms(n):
    return np.random.default_rng(n).random(n)


def aggregate(changes=(), n=2):
    values = ideal_sum([ENCODER.encode(update(i), uniforms) for i in range(n)]).values
    for index, value in changes:
        values[index] = value
    return Aggregate(values, n)


def test_the_mean_is_weighted_by_the_public_weights():
    updates = [update(i, weight) for i, weight in enumerate((1.0, 0.5, 0.125, 0.3))]
    mean = ENCODER.decode(ideal_sum([ENCODER.encode(u, uniforms) for u in updates]))
    total = sum(u.weight for u in updates)
    assert mean.total_weight == pytest.approx(total, abs=4 / C_INT)
    for name, shape in LAYOUT.arrays:
        expected = sum(u.weight * u.delta[name].astype(np.float64) for u in updates) / total
        assert mean.arrays[name].shape == shape
        assert mean.arrays[name].dtype == np.float64
        assert np.abs(mean.arrays[name] - expected).max() < 4 * 5.0 / C_INT


def test_equal_updates_give_themselves_whatever_the_weights():
    one = [LocalUpdate(update(0).delta, w, {"correct": 0, "loss": 0}) for w in (1.0, 0.77, 1e-9)]
    mean = ENCODER.decode(ideal_sum([ENCODER.encode(u, uniforms) for u in one]))
    for name, _ in LAYOUT.arrays:
        assert np.abs(mean.arrays[name] - one[0].delta[name]).max() < 5 * 5.0 / C_INT


def test_a_small_weight_is_rounded_alike_in_numerator_and_denominator():
    encoder = Encoder(Layout((("w", (1,)),)), clip=1.0, c_int=C_INT)
    rng = np.random.default_rng(2)
    one = LocalUpdate({"w": np.array([0.9])}, 10.4 / C_INT, {})  # of 10.4 units, 0.4 are lost
    mean = encoder.decode(ideal_sum([encoder.encode(one, rng.random) for _ in range(400)]))
    assert mean.arrays["w"][0] == pytest.approx(0.9, rel=0.01)


def test_A12_metric_sums_are_exact_on_their_grid_and_no_metric_stands_alone():
    updates = [update(i, correct=c, loss=x) for i, (c, x) in enumerate([(300, 0.25), (0, 900.0), (17, 3.5)])]
    encoded = [ENCODER.encode(u, uniforms) for u in updates]
    assert ENCODER.decode(ideal_sum(encoded)).metrics["correct"] == 317
    loss = ENCODER.decode(ideal_sum(encoded)).metrics["loss"]
    assert abs(loss - 903.75) <= 3 * METRICS["loss"].resolution(C_INT) / 2
    # Between the site and the sum there is one vector that refuses to become bytes.
    with pytest.raises(TypeError):
        pickle.dumps(encoded[0])
    assert repr(encoded[0]) == "<EncodedUpdate: secret>"


def test_A13_a_weight_above_one_is_refused():
    for weight in (1.0 + 1e-9, 2.0, 0.0, -0.5, np.nan, np.inf):
        with pytest.raises(Refused) as error:
            ENCODER.encode(update(weight=weight), uniforms)
        assert error.value.reason == "weight"
    assert ENCODER.encode(update(weight=1.0), uniforms).values[-1] == C_INT


def test_A9_a_metric_at_its_bound_passes_and_one_step_beyond_is_refused():
    top = ENCODER.encode(update(correct=300, loss=-900.0), uniforms).values
    assert top[LAYOUT.model_size] == 300
    assert abs(top[LAYOUT.model_size + 1]) <= C_INT
    for metrics in ({"correct": 301}, {"loss": -900.01}, {"loss": np.nan}, {"correct": np.inf}):
        with pytest.raises(Refused) as error:
            ENCODER.encode(update(**metrics), uniforms)
        assert error.value.reason == "metric-bound"
    assert METRICS["correct"].cut(301.5) == 300
    assert METRICS["correct"].cut(-1e9) == -300


def test_a_metric_that_needs_more_than_c_int_steps_gets_coarser_ones():
    wide = MetricRange(bound=1e9, step=0.001)
    encoder = Encoder(Layout((), ("m",)), clip=1.0, c_int=256, metrics={"m": wide})
    values = encoder.encode(LocalUpdate({}, 1.0, {"m": 1e9}), uniforms).values
    assert values.tolist() == [256, 256]
    assert encoder.decode(Aggregate(values, 1)).metrics["m"] == pytest.approx(1e9)


def test_clipping_comes_before_weighting_and_is_reported():
    light, heavy = (ENCODER.encode(update(0, w, size=100.0), uniforms) for w in (0.25, 1.0))
    assert light.clipped
    assert heavy.clipped
    norms = [np.linalg.norm(e.values[: LAYOUT.model_size]) for e in (light, heavy)]
    assert norms[0] / norms[1] == pytest.approx(0.25, rel=1e-3)
    assert not ENCODER.encode(update(0, 0.25, size=1.0), uniforms).clipped


@pytest.mark.parametrize(
    "changed",
    [
        lambda delta: delta.pop("scale"),
        lambda delta: delta.update(scale=np.zeros(1)),
        lambda delta: delta.update({"layer.bias": np.zeros((4, 1))}),
    ],
)
def test_another_layout_is_refused(changed):
    delta = dict(update().delta)
    changed(delta)
    with pytest.raises(ProtocolError, match="layout"):
        ENCODER.encode(LocalUpdate(delta, 1.0, {"correct": 0, "loss": 0}), uniforms)
    with pytest.raises(ProtocolError, match="layout"):
        ENCODER.encode(LocalUpdate(update().delta, 1.0, {"correct": 0}), uniforms)


def test_a_number_that_is_not_finite_is_refused():
    bad = update()
    bad.delta["layer.bias"][2] = np.nan
    with pytest.raises(Refused, match="not-finite"):
        ENCODER.encode(bad, uniforms)


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ([(0, 2 * C_INT + 1)], "aggregate-norm"),
        ([(i, -C_INT) for i in range(5)], "aggregate-norm"),
        ([(-1, 0)], "aggregate-range"),
        ([(-1, -5)], "aggregate-range"),
        ([(-1, 2 * C_INT + 1)], "aggregate-range"),
        ([(-2, -2 * C_INT - 1)], "aggregate-range"),
    ],
)
def test_a_sum_that_cannot_be_one_is_refused(changes, reason):
    with pytest.raises(ProtocolError) as error:
        ENCODER.decode(aggregate(changes))
    assert error.value.reason == reason


def test_a_sum_of_another_length_is_refused():
    with pytest.raises(ProtocolError, match="layout"):
        ENCODER.decode(Aggregate(np.ones(3, dtype=np.int64), 2))


def test_noise_widens_the_norm_test_by_what_it_adds():
    noise = 2.0 * C_INT
    size = LAYOUT.model_size
    within = aggregate([(0, int(2 * C_INT + noise * (sqrt(size) + 7)))])
    beyond = aggregate([(0, int(2 * C_INT + noise * (sqrt(size) + 9)))])
    ENCODER.decode(within, noise)
    with pytest.raises(ProtocolError, match="aggregate-norm"):
        ENCODER.decode(beyond, noise)


def test_constants_without_meaning_are_configuration_errors():
    for bad in (0.0, -1.0, np.nan, np.inf):
        with pytest.raises(ConfigError):
            Encoder(LAYOUT, clip=bad, c_int=C_INT, metrics=METRICS)
        with pytest.raises(ConfigError):
            MetricRange(bad, 1.0)
        with pytest.raises(ConfigError):
            MetricRange(1.0, bad)
    with pytest.raises(ConfigError):
        Encoder(LAYOUT, clip=1.0, c_int=C_INT, metrics={"correct": METRICS["correct"]})


def test_an_update_has_no_way_to_bytes():
    for stage in (update(), EncodedUpdate(np.zeros(1, dtype=np.int64), False)):
        with pytest.raises(TypeError):
            pickle.dumps(stage)
