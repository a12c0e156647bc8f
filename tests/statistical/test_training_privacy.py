"""The noise that a step adds and the batches that it draws have the distributions that the accounting assumes."""

import numpy as np
import pytest
import torch
from scipy import stats
from torch import nn

from client.bookkeeping import BookKeeping
from client.evaluation import metric_sums
from client.private_gradients import PrivateGradients
from client.training import poisson_batches
from tacit.encoding import metric_sensitivity as sensitivity
from tacit.privacy.noise import SeededKeys, Stream
from tacit.tasks import Records

KEYS = SeededKeys(20)
SIGNIFICANCE = 1e-6
SIZE = 150  # of a square layer: 22,500 draws of noise


class Flat:
    """A task whose gradient is zero, so that what is left is noise."""

    metric_names = ("zero",)

    def loss(self, outputs, targets):
        return outputs.sum(dim=1) * 0.0

    def metrics(self, outputs, targets):
        return {"zero": outputs[:, 0] * 0.0}


@pytest.mark.parametrize("engine", [PrivateGradients, BookKeeping])
@pytest.mark.parametrize("num_rows", [0, 20])
@pytest.mark.parametrize(("multiplier", "clip", "normaliser"), [(1.5, 0.2, 1.0), (0.7, 3.0, 40.0)])
def test_the_noise_of_a_step_has_standard_deviation_z_times_c_over_the_normaliser(
    engine, num_rows, multiplier, clip, normaliser
):
    model = nn.Sequential(nn.Linear(SIZE, SIZE, bias=False))
    batch = Records(torch.ones(num_rows, SIZE), torch.zeros(num_rows))
    engine(model, Flat(), clip, multiplier).fill(batch, normaliser, Stream(KEYS.key("noise", num_rows)))
    noise = model[0].weight.grad.double().numpy().ravel() * normaliser / (multiplier * clip)
    assert abs(noise.std() - 1) < 5 / np.sqrt(2 * noise.size)
    assert abs(noise.mean()) < 5 / np.sqrt(noise.size)
    assert stats.kstest(noise, "norm").pvalue > SIGNIFICANCE
    # Neighbours in a row, and the same place of two rows, have nothing to do with each other.
    square = noise.reshape(SIZE, SIZE)
    for a, b in ((square[:, 1:], square[:, :-1]), (square[1:], square[:-1])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 5 / np.sqrt(a.size)


def test_the_noise_of_metric_sums_has_standard_deviation_z_times_their_sensitivity():
    records = Records(torch.ones(7, 1), torch.zeros(7))
    model, draws = nn.Linear(1, 1), []
    for i in range(4000):
        stream = Stream(KEYS.key("metrics", i))
        draws.append(list(metric_sums(model, Flat(), records, 2.0, stream).values()))
    noise = (np.array(draws) - [0.0, 7.0]) / (2.0 * np.sqrt(2.0))
    assert sensitivity(Flat()) == np.sqrt(2.0)
    assert (np.abs(noise.std(axis=0) - 1) < 5 / np.sqrt(2 * len(noise))).all()
    assert (np.abs(noise.mean(axis=0)) < 5 / np.sqrt(len(noise))).all()


@pytest.fixture(scope="module")
def inclusions():
    """Which of 150 records were in each of 5000 batches, shape (5000, 150)."""
    n, rate, repeats = 150, 0.3, 5000
    records = Records(torch.arange(n)[:, None], torch.arange(n))
    seen = np.zeros((repeats, n))
    for i in range(repeats):
        seen[i, next(poisson_batches(records, rate, 1, Stream(KEYS.key("poisson", i)))).targets.numpy()] = 1
    return seen, rate


def test_I18_each_record_is_drawn_with_probability_q(inclusions):
    seen, rate = inclusions
    error = np.sqrt(rate * (1 - rate) / len(seen))
    assert (np.abs(seen.mean(axis=0) - rate) < 5 * error).all()
    assert abs(seen.mean() - rate) < 5 * error / np.sqrt(seen.shape[1])


def test_I18_records_are_drawn_independently_of_each_other_and_steps_too(inclusions):
    """Pairwise chi-square. Shuffling labelled Poisson has batches of one size: each pair is a little too rare."""
    seen, rate = inclusions
    pairs = pairwise_chi_square(seen, rate)
    assert SIGNIFICANCE < pairs < 1 - SIGNIFICANCE
    assert (
        SIGNIFICANCE < pairwise_chi_square(seen[:150].T.copy(), rate) < 1 - SIGNIFICANCE
    )  # steps for records
    sizes = seen.sum(axis=1)
    expected = seen.shape[1] * rate * (1 - rate)
    assert abs(sizes.var() / expected - 1) < 5 * np.sqrt(2 / len(seen))


def test_I18_shuffling_labelled_poisson_is_seen():
    rng = np.random.default_rng(1)
    shuffled = np.zeros((5000, 150))
    for row in shuffled:
        row[rng.permutation(150)[:45]] = 1
    assert pairwise_chi_square(shuffled, 0.3) < SIGNIFICANCE


def pairwise_chi_square(seen, rate):
    """P-value of the sum over all pairs of (their standardised correlation)^2."""
    repeats, n = seen.shape
    standard = (seen - rate) / np.sqrt(rate * (1 - rate))
    pairs = (standard.T @ standard)[np.triu_indices(n, 1)] / np.sqrt(repeats)
    return float(stats.chi2.sf((pairs**2).sum(), pairs.size))
