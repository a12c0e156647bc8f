"""Which rows of a site are held out for testing."""

from __future__ import annotations

from math import ceil

import numpy as np
from numpy.typing import NDArray

from tacit.errors import ConfigError, MissingExtra

_SEEDS = 2**32  # what scikit-learn takes as a random state


def held_out(
    classes: NDArray[np.int64], fraction: float, seed: int, *, site: str = ""
) -> tuple[NDArray[np.bool_], str]:
    """Draws ceil(fraction * rows) test rows of one site, stratified by class where that is possible.

    Equal to scikit-learn's `train_test_split` of the positions 0, 1, 2... with `stratify` the classes. As in
    FLamby (flamby/datasets/fed_heart_disease/dataset.py), a site is stratified when it has more than one
    class and more than two rows of each, and every site uses the same random state.

    Args:
        classes: class index of each row, shape (rows,).
        fraction: share of the rows to hold out, in [0, 1).
        seed: random state, the same at all sites.
        site: the site's label, for messages.

    Returns:
        Whether each row is held out, shape (rows,), and a warning, "" when there is nothing to say.

    Raises:
        ConfigError: no row would be left to train on, or the seed is not in [0, 2**32).
    """
    try:
        from sklearn.model_selection import train_test_split
    except ImportError:
        raise MissingExtra("a train/test split", "simulation") from None
    num_rows = len(classes)
    test = np.zeros(num_rows, dtype=np.bool_)
    if fraction == 0:
        return test, ""
    if not 0 <= seed < _SEEDS:
        raise ConfigError("must be at least 0 and below 2**32", key="data.split_seed")
    num_test = ceil(fraction * num_rows)
    if num_test >= num_rows:
        raise ConfigError(
            f"site {site!r} has {num_rows} rows: holding out {num_test} leaves none to train on",
            key="data.test_fraction",
        )
    counts = np.unique(classes, return_counts=True)[1]
    stratify = len(counts) > 1 and counts.min() > 2 and min(num_test, num_rows - num_test) >= len(counts)
    _, chosen = train_test_split(
        np.arange(num_rows), test_size=fraction, random_state=seed, stratify=classes if stratify else None
    )
    test[chosen] = True
    if stratify or len(counts) == 1:
        return test, ""
    return (
        test,
        f"site {site!r} has too few rows of some class for a stratified split: drawn without regard to class",
    )


def latest(times: NDArray[np.float64], fraction: float, *, site: str = "") -> NDArray[np.bool_]:
    """The ceil(fraction * rows) latest rows of one site: a model is tried on what came after its training.

    Args:
        times: of each row, shape (rows,); of equal ones the later in the file is the later.
        fraction: share of the rows to hold out, in [0, 1).
        site: the site's label, for messages.

    Returns:
        Whether each row is held out, shape (rows,).

    Raises:
        ConfigError: no row would be left to train on.
    """
    num_test = ceil(fraction * len(times))
    if num_test >= len(times) > 0 and fraction:
        raise ConfigError(
            f"site {site!r} has {len(times)} rows: holding out {num_test} leaves none to train on",
            key="data.test_fraction",
        )
    test = np.zeros(len(times), dtype=np.bool_)
    test[np.argsort(times, kind="stable")[len(times) - num_test :]] = True
    return test
