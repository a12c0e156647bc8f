"""A10 with smaller counts: what leaves a client looks uniform, whatever is inside. Seeds are fixed."""

from math import sqrt

import numpy as np
import pytest
from scipy.stats import chi2

from tacit.secagg.parameters import Rules
from tacit.secagg.ring import unpack
from tacit.update import EncodedUpdate
from tests.unit.secagg_round import Round

C_INT, D = 1 << 16, 400_000
LONG = 5_000_000  # at 18 bits more than 10^7 bytes


def masked(values, seed):
    """The words and the bytes that client 1 of 3 sends for `values`, everybody else silent."""
    run = Round(3, Rules(1, 0, C_INT), seed, length=len(values)).until("deal")
    run.encoded[1] = EncodedUpdate(values, False)
    run.ask("mask")
    _, packed = run.answer("mask", 1)
    bits = run.server.cohort.parameters.bits
    return unpack(packed, bits, len(values)), packed, bits


INPUTS = {
    "zeros": np.zeros(D, dtype=np.int64),
    "all at the bound": np.full(D, C_INT),
    "small, signed": np.random.default_rng(3).integers(-9, 10, D),
}


def chi_square(packed):
    """Probability that uniform bytes are as uneven as these."""
    counts = np.bincount(np.frombuffer(packed, dtype=np.uint8), minlength=256)
    expected = counts.sum() / 256
    return chi2.sf(((counts - expected) ** 2 / expected).sum(), 255)


@pytest.mark.parametrize("name", INPUTS)
def test_A10_the_bytes_of_y_are_uniform(name):
    assert chi_square(masked(INPUTS[name], seed=1)[1]) > 1e-6


def test_A10_ten_million_bytes_of_y_are_uniform():
    packed = masked(np.zeros(LONG, dtype=np.int64), seed=8)[1]
    assert len(packed) > 1e7
    assert chi_square(packed) > 1e-6
    assert chi_square(bytes(range(256)) * 100 + bytes(2000)) < 1e-6  # the test can fail


@pytest.mark.parametrize("name", INPUTS)
def test_A10_each_bit_of_a_word_is_a_fair_coin(name):
    words, _, bits = masked(INPUTS[name], seed=2)
    for bit in range(bits):
        assert abs((words >> np.uint32(bit) & 1).mean() - 0.5) < 5 * 0.5 / sqrt(D)
    assert int(words.max()) < 2**bits


def test_A10_y_does_not_correlate_with_x():
    x = np.random.default_rng(4).integers(-C_INT, C_INT + 1, D)
    words, _, _ = masked(x, seed=3)
    assert abs(np.corrcoef(x, words)[0, 1]) < 5 / sqrt(D)
    assert abs(np.corrcoef(words[:-1], words[1:])[0, 1]) < 5 / sqrt(D)  # nor y with itself


def test_A10_two_chosen_inputs_cannot_be_told_apart():
    """The best guess from single words, learnt from one half, is right half of the time on the other."""
    zeros, ones = (masked(INPUTS[name], seed)[0] for seed, name in ((4, "zeros"), (5, "all at the bound")))
    half = D // 2
    for shift in (0, 4, 8, 11):  # guess by eight bits from here on
        cells = [(w >> np.uint32(shift)).astype(np.int64) & 255 for w in (zeros, ones)]
        learnt = [np.bincount(cell[:half], minlength=256) for cell in cells]
        guess_ones = learnt[1] > learnt[0]
        right = (~guess_ones[cells[0][half:]]).mean() / 2 + guess_ones[cells[1][half:]].mean() / 2
        assert abs(right - 0.5) < 0.01


def test_A10_the_same_input_never_looks_the_same_twice():
    values = INPUTS["zeros"][:1000]
    one, other = (masked(values, seed)[0] for seed in (6, 7))
    assert (one == other).mean() < 0.01
