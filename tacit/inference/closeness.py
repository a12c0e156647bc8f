"""How close made-up rows come to the records that their generator was trained on.

Such figures bound from below what leaks: that they find little proves nothing, epsilon does. They show mistakes that
epsilon does not know of: copies, or a person who is in the table many times.
Figures are of raw records: they stay where the records are.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

from tacit.data.preprocessing import positions_of
from tacit.data.rows import DIGITS
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table
from tacit.inference.fidelity import Features, features_of

MOST_ROWS: Final = 5000  # of each table, drawn: distances between all pairs take time
_AT_ONCE: Final = 512
_CHANCE: Final = 0.001


@dataclass(frozen=True)
class Closeness:
    """Figures of one made-up table, the records that it was learned from, and others that were held out.

    Attributes:
        copies: share of made-up rows that equal a record trained on, class included.
        copies_held_out: share of held-out records that do: what chance and duplicates give.
        distance: median distance of a made-up row to the closest record trained on, in declared scales.
        distance_held_out: of a held-out record to the closest record trained on.
        advantage: of guessing which records were trained on by how close a made-up row is: hits less false alarms, at
            the threshold that is best in hindsight.
        advantage_by_chance: what it stays below in 999 of 1000 cases where nothing can be told.
        rows: made-up, trained on and held out, that distances are of.
    """

    copies: float
    copies_held_out: float
    distance: float
    distance_held_out: float
    advantage: float
    advantage_by_chance: float
    rows: tuple[int, int, int]


def closeness(made: Table, trained_on: Table, held_out: Table, schema: Schema) -> Closeness:
    """Distances are Euclidean, over the features and the class.

    The attack is that of Chen et al. 2020 (GAN-Leaks, without the model): a record that a made-up row is close to is
    called a member. The advantage is Kolmogorov and Smirnov's one-sided distance between the two sets of distances.
    """
    m, t, h = (_points(table, schema) for table in (made, trained_on, held_out))
    copies, copies_held_out = (_copies(table, trained_on, schema) for table in (made, held_out))
    draws = np.random.default_rng(0)
    m, t, h = (draws.permutation(points)[:MOST_ROWS] for points in (m, t, h))
    members, others = np.sort(nearest(t, m)), np.sort(nearest(h, m))
    places = np.concatenate([members, others])
    hits, alarms = (np.searchsorted(x, places, side="right") / len(x) for x in (members, others))
    chance = math.sqrt(math.log(1 / _CHANCE) / 2 * (1 / len(t) + 1 / len(h)))
    return Closeness(
        copies=copies,
        copies_held_out=copies_held_out,
        distance=float(np.median(nearest(m, t))),
        distance_held_out=float(np.median(nearest(h, t))),
        advantage=max(0.0, float((hits - alarms).max())),
        advantage_by_chance=min(1.0, chance),
        rows=(len(m), len(t), len(h)),
    )


def most_advantage(epsilon: float, delta: float) -> float:
    """Hits less false alarms of any test at all, at most (Kairouz, Oh and Viswanath 2015, theorem 2.1)."""
    return math.tanh(epsilon / 2) + 2 * delta / (1 + math.exp(min(epsilon, 700.0)))


def nearest(points: Features, others: Features) -> NDArray[np.float32]:
    """Distance of each point to the closest of the others, shape (points,)."""
    theirs = torch.from_numpy(others)
    parts = (torch.from_numpy(points[i : i + _AT_ONCE]) for i in range(0, len(points), _AT_ONCE))
    found: NDArray[np.float32] = torch.cat([torch.cdist(part, theirs).amin(1) for part in parts]).numpy()
    return found


def _points(table: Table, schema: Schema) -> Features:
    """Features with the class behind, one-hot."""
    features, classes = features_of(table, schema)
    return np.column_stack([features, np.eye(len(schema.classes), dtype=np.float32)[classes]])


def _copies(table: Table, others: Table, schema: Schema) -> float:
    """Share of rows that some other row equals, cell by cell."""
    known = set(_cells(others, schema))
    return sum(row in known for row in _cells(table, schema)) / table.num_rows


def _cells(table: Table, schema: Schema) -> Iterator[tuple[str | int, ...]]:
    """Rows as numbers in the digits that are made up, and places among names."""
    columns: list[Iterable[str | int]] = [positions_of(table.texts(schema.label), schema.classes).tolist()]
    for name, column in schema.columns.items():
        if isinstance(column, NumericColumn):
            columns.append(format(x + 0.0, f".{DIGITS}g") for x in table.numbers(name))
        else:
            columns.append(positions_of(table.texts(name), column.categories).tolist())
    return zip(*columns, strict=True)
