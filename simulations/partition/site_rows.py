"""What a partition hands out: which rows a site has, and how its instruments read them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from pandas import DataFrame


@dataclass(frozen=True)
class Affine:
    """One site's reading of one numeric column: gain * x + offset, cut at the ends of what can be read.

    Attributes:
        gain: without unit; above 0, so that the order of two readings never changes.
        offset: in the column's unit.
        low: lowest reading, in the column's unit.
        high: highest reading, in the column's unit.
    """

    gain: float
    offset: float
    low: float
    high: float

    def read(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """What this site reads where the table says `values`, of any shape; NaN (missing) stays NaN."""
        return np.clip(self.gain * values + self.offset, self.low, self.high)


@dataclass(frozen=True)
class SiteRows:
    """One site's share of the table.

    Attributes:
        label: the site's name.
        rows: positions in the table, shape (rows,), ascending: a site keeps the table's order.
        readings: for `feature_shift`, how this site reads each numeric column.
    """

    label: str
    rows: NDArray[np.int64]
    readings: Mapping[str, Affine] = field(default_factory=dict)

    def take(self, table: DataFrame) -> DataFrame:
        """A copy of this site's rows, numbered from 0, as its own instruments read them."""
        frame = table.iloc[self.rows].reset_index(drop=True)
        for name, affine in self.readings.items():
            frame[name] = affine.read(frame[name].to_numpy(dtype=np.float64, na_value=np.nan))
        return frame
