"""Integer noise has the distribution that the accountant assumes. Fixed keys; p > 1e-6."""

from __future__ import annotations

import math
import os
import time

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from tacit.privacy.discrete import add_noise, discrete_gaussian
from tacit.privacy.noise import SeededKeys, Stream, SystemKeys
from tacit.secagg.parameters import Rules

KEYS = SeededKeys(20261122)
SIGMAS = (0.1, 1.0, 4.0, 25.0, 100.0, 1e3, 1e4, 65536.0)


def masses(std: float, centre: float = 0.0) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The integers within ten deviations, and the probability of each: the formula alone."""
    reach = math.ceil(10 * std) + 2
    x = np.arange(-reach, reach + 1)
    weights = np.exp(-((x - centre) ** 2) / (2 * std**2))
    return x, weights / weights.sum()


def g_test(drawn: NDArray[np.int64], std: float, centre: float = 0.0) -> float:
    """p of a G-test over at most some hundred cells, none with fewer than 20 expected."""
    x, probability = masses(std, centre)
    cell = np.minimum((np.cumsum(probability) * 200).astype(int), 199)
    cell[np.abs(x) > 4 * std] = 200 + (x[np.abs(x) > 4 * std] > 0)  # the tails by themselves
    expected = np.bincount(cell, probability * drawn.size, minlength=202)
    reach = -x[0]
    inside = np.clip(drawn, -reach, reach)
    observed = np.bincount(cell[inside + reach], minlength=202).astype(float)
    few = expected < 20
    expected = np.append(expected[~few], expected[few].sum())
    observed = np.append(observed[~few], observed[few].sum())
    if expected[-1] < 5:
        expected[-2] += expected[-1]
        observed[-2] += observed[-1]
        expected, observed = expected[:-1], observed[:-1]
    statistic = 2 * float(np.sum(observed * np.log(np.maximum(observed, 1e-300) / expected)))
    return float(stats.chi2.sf(statistic, max(1, expected.size - 1)))


@pytest.mark.parametrize("std", SIGMAS)
def test_I1_the_sampler_draws_the_discrete_gaussian(std: float) -> None:
    assert g_test(discrete_gaussian(Stream(KEYS.key("I1", str(std))), 1_000_000, std), std) > 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("std", SIGMAS)
def test_I1_the_sampler_draws_the_discrete_gaussian_in_ten_million_numbers(std: float) -> None:
    assert g_test(discrete_gaussian(Stream(os.urandom(32)), 10_000_000, std), std) > 1e-6 / len(SIGMAS)


def test_I1_sees_a_rounded_continuous_gaussian_and_others() -> None:
    """What the test is worth: it tells these from the real one."""
    n = 1_000_000
    normal = Stream(KEYS.key("rounded")).gaussian(n, 1.0)
    assert g_test(np.rint(0.5 * normal).astype(np.int64), 0.5) < 1e-12
    for std in (4.0, 1e4):
        rounded = np.rint(std * normal).astype(np.int64)
        assert g_test(np.rint(1.01 * std * normal).astype(np.int64), std) < 1e-6
        assert g_test(rounded + max(1, int(0.0375 * std)), std) < 1e-12


@pytest.mark.parametrize("std", [0.7, 3.0, 1234.5])
def test_I3_moments_are_those_of_the_formula(std: float) -> None:
    n = 1_000_000
    drawn = discrete_gaussian(Stream(KEYS.key("I3", str(std))), n, std).astype(np.float64)
    x, probability = masses(std)
    variance = float(np.sum(x**2.0 * probability))
    fourth = float(np.sum(x**4.0 * probability))
    assert abs(drawn.mean()) < 5 * math.sqrt(variance / n)
    assert abs(np.mean(drawn**2) - variance) < 5 * math.sqrt((fourth - variance**2) / n)
    assert abs(np.mean(drawn**4) / fourth - 1) < 0.03


@pytest.mark.parametrize("lag", [1, 2, 7872, 16384])
def test_draws_of_one_stream_are_independent(lag: int) -> None:
    drawn = discrete_gaussian(Stream(KEYS.key("lags")), 1_000_000, 9.0).astype(np.float64)
    for transform in (lambda v: v, np.square, np.abs):
        r = np.corrcoef(transform(drawn[:-lag]), transform(drawn[lag:]))[0, 1]
        assert abs(r) < 5 / math.sqrt(drawn.size - lag)


def test_I2_noises_of_m_clients_add_up_to_m_times_the_variance() -> None:
    m, std, n = 8, 3.0, 1_000_000
    total = sum(discrete_gaussian(Stream(KEYS.key("I2", i)), n, std) for i in range(m))
    x, probability = masses(std)
    variance = m * float(np.sum(x**2.0 * probability))
    assert abs(total.mean()) < 5 * math.sqrt(variance / n)
    assert abs(total.var() / variance - 1) < 5 * math.sqrt(
        2 / n
    )  # 0.7 %: a variance of 1.01 times as much is seen


@pytest.mark.parametrize(("n", "max_dropouts", "max_corrupt"), [(100, 20, 10), (10, 2, 1), (5, 1, 1)])
def test_I13_what_remains_after_every_drop_out_and_c_clients_without_noise_is_all_of_the_noise(
    n: int, max_dropouts: int, max_corrupt: int
) -> None:
    z, c_int, d = 1.0, 2**10, 200_000
    share = Rules(max_corrupt, max_dropouts, c_int, z).parameters(n).noise_share
    honest = n - max_dropouts - max_corrupt
    streams = (Stream(KEYS.key("I13", n, client)) for client in range(honest))
    total = sum((add_noise(np.zeros(d, np.int64), share, s) for s in streams), np.zeros(d, np.int64))
    error = math.sqrt(2 / d)
    assert total.var() >= (z * c_int) ** 2 * (1 - 5 * error)
    assert total.var() <= (z * c_int) ** 2 * (1 + 5 * error)  # and no more than that is lost


def test_I15_no_two_noise_vectors_are_equal() -> None:
    """The same site, round and attempt ten thousand times, with every seed that a user can set."""
    seen = set()
    for _ in range(10_000):
        np.random.seed(0)
        seen.add(discrete_gaussian(Stream(SystemKeys().key("share", "site", 1, 1)), 16, 1000.0).tobytes())
    assert len(seen) == 10_000


def test_I15_a_stream_refuses_to_draw_in_a_process_that_was_forked() -> None:
    stream = Stream(SystemKeys().key("share", "site", 1, 1))
    read, write = os.pipe()
    child = os.fork()
    if child == 0:  # a copy of this process, and of the stream in it
        try:
            discrete_gaussian(stream, 64, 100.0)
            os.write(write, b"drawn")
        except RuntimeError:
            os.write(write, b"refused")
        os._exit(0)
    os.waitpid(child, 0)
    assert os.read(read, 16) == b"refused"
    os.close(read)
    os.close(write)


def test_a_million_draws_take_less_than_a_second() -> None:
    start = time.process_time()
    discrete_gaussian(Stream(KEYS.key("speed")), 1_000_000, 65536.0)
    assert time.process_time() - start < 1.0
