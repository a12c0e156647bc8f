"""The truth of each generated scenario is what its generator says: labels are drawn with it, and nothing beats it.

A posterior that is off in any region shows as a bin in which more, or fewer, labels are 1 than it says. Seeds are
fixed, and each bound is met by chance with a probability of about 1e-5.
"""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.stats import chi2

from simulations.scenarios.catalogue import STORIES
from simulations.scenarios.story import Story

ROWS, SEED, BINS = 12_000, 11, 12
LARGEST = 4.5  # standard errors
TABLES = [story for story in STORIES.values() if story.table]
CLASSES = [s for s in STORIES.values() if s.arrays and s.arrays(200, 1).schema.classes]
NUMBERS = [s for s in STORIES.values() if s.arrays and not s.arrays(200, 1).schema.classes]


def _bins(score: NDArray[Any]) -> list[NDArray[np.int64]]:
    """Rows in groups of about equal size, from the lowest score to the highest."""
    return np.array_split(np.argsort(score, kind="stable"), BINS)


def _calibrated(hit: NDArray[Any], p: NDArray[Any], sites: NDArray[Any]) -> None:
    """Within what chance allows, p of the rows are hits: in every bin of p together, and at every site."""
    total = 0.0
    for rows in _bins(p):
        total += (hit[rows] - p[rows]).sum() ** 2 / max((p[rows] * (1 - p[rows])).sum(), 1e-3)
    assert total < chi2.isf(1e-5, BINS), total
    for site in set(sites.tolist()):
        rows = sites == site
        z = (hit[rows] - p[rows]).sum() / np.sqrt((p[rows] * (1 - p[rows])).sum())
        assert abs(z) < LARGEST, (site, z)


@pytest.mark.parametrize("story", TABLES, ids=lambda story: story.name)
def test_labels_of_a_table_are_drawn_with_its_truth(story: Story) -> None:
    assert story.table is not None
    frame, schema = story.table(ROWS, SEED)
    assert len(frame) == ROWS
    _calibrated(frame[schema.label].to_numpy(), frame["truth"].to_numpy(), frame[schema.site].to_numpy())


@pytest.mark.parametrize("story", CLASSES, ids=lambda story: story.name)
def test_classes_of_arrays_are_as_frequent_as_their_truth_says(story: Story) -> None:
    """Bayes' rule is calibrated whatever it conditions on; a wrong likelihood is not."""
    assert story.arrays is not None
    made = story.arrays(ROWS // 3, SEED)
    assert made.truth is not None and made.site is not None
    p = np.exp(made.truth)
    assert np.allclose(p.sum(1), 1)
    for c in range(p.shape[1]):
        _calibrated((made.y == c).astype(float), p[:, c], made.site)


@pytest.mark.parametrize("story", NUMBERS, ids=lambda story: story.name)
def test_numbers_scatter_about_their_truth(story: Story) -> None:
    """What the truth leaves over has mean zero in every bin of every input: no function of one explains any."""
    assert story.arrays is not None
    made = story.arrays(ROWS // 2, SEED)
    assert made.truth is not None
    left = (made.y - made.truth)[:, 0]
    inputs = made.x.reshape(len(left), -1)
    for column in (made.truth[:, 0], *inputs[:, :: max(1, inputs.shape[1] // 12)].T):
        for rows in _bins(column):
            z = left[rows].mean() / (left[rows].std() / np.sqrt(len(rows)))
            assert abs(z) < LARGEST, z
    assert 0.1 < 1 - left.var() / made.y.var() < 0.95


@pytest.mark.parametrize("story", [*TABLES, *CLASSES, *NUMBERS], ids=lambda story: story.name)
def test_the_same_seed_gives_the_same_records_and_another_one_others(story: Story) -> None:
    def made(seed: int) -> tuple[Any, Any]:
        if story.table:
            frame, schema = story.table(300, seed)
            return frame["truth"].to_numpy(), frame[schema.site].to_numpy()
        assert story.arrays is not None
        arrays = story.arrays(300, seed)
        return arrays.truth, arrays.site

    (one, sites), (again, _), (other, _) = made(1), made(1), made(2)
    assert np.array_equal(one, again) and not np.array_equal(one, other)
    assert len(set(sites.tolist())) >= 4
