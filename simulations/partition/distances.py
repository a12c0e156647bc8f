"""How far the sites are from one another, pair by pair: in their labels, and in their features as a model sees them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Final

import numpy as np
from numpy.typing import NDArray

from simulations.partition.classes import class_indices
from tacit.data.schema import CategoricalColumn, NumericColumn, Schema, match_key
from tacit.report.record import SiteDistances

if TYPE_CHECKING:
    from pandas import DataFrame, Series

Floats = NDArray[np.float64]
MOST_SITES: Final = 30  # a picture of more is no picture
QUANTILES: Final = 201


def distances(frames: Sequence[DataFrame], labels: Sequence[str], schema: Schema) -> SiteDistances | None:
    """Distances between the first `MOST_SITES` sites; None where there is one site only.

    Labels: Jensen-Shannon distance of the class shares, base 2: 0 where they are equal, 1 where no class is shared
    (Endres and Schindelin 2003). Features: mean over columns. Of a number, the Wasserstein-1 distance after scaling,
    cutting and filling in, by quantiles: 1 is half of a column's range. Of a category, the total variation.
    """
    if len(frames) < 2:
        return None
    chosen = list(frames)[:MOST_SITES]
    return SiteDistances(
        sites=tuple(labels[:MOST_SITES]),
        labels=_rows(_label_distances(chosen, schema)),
        features=_rows(_feature_distances(chosen, schema)) if schema.columns else (),
    )


def _label_distances(frames: Sequence[DataFrame], schema: Schema) -> Floats:
    from scipy.spatial.distance import jensenshannon

    shares = np.array(
        [np.bincount(class_indices(f, schema), minlength=len(schema.classes)) / len(f) for f in frames]
    )
    found = np.array([[jensenshannon(a, b, base=2) for b in shares] for a in shares])
    clean: Floats = np.nan_to_num(found)  # of equal shares it may be the root of a rounding error below 0
    return clean


def _feature_distances(frames: Sequence[DataFrame], schema: Schema) -> Floats:
    total = np.zeros((len(frames), len(frames)))
    for name, column in schema.columns.items():
        if isinstance(column, NumericColumn):
            grid = np.linspace(0, 1, QUANTILES)
            points = np.array([np.quantile(_as_seen(f[name], column), grid) for f in frames])
            total += np.abs(points[:, None] - points[None]).mean(axis=2)
        else:
            shares = np.array([_shares(f[name], column) for f in frames])
            total += np.abs(shares[:, None] - shares[None]).sum(axis=2) / 2
    return total / len(schema.columns)


def _as_seen(column: Series, settings: NumericColumn) -> Floats:
    """Values as a model receives them, shape (rows,)."""
    values = column.to_numpy(dtype=np.float64, na_value=np.nan)
    if settings.transform == "log":
        values = np.sign(values) * np.log1p(np.abs(values))
    center, scale = settings.affine()
    scaled = np.clip((values - center) / scale, -settings.clip, settings.clip)
    filled = 0.0 if settings.missing is None else float(_as_seen(_one(settings.missing), settings)[0])
    return np.where(np.isnan(scaled), filled, scaled)


def _one(value: float) -> Series:
    from pandas import Series

    return Series([value], dtype="float64")


def _shares(column: Series, settings: CategoricalColumn) -> Floats:
    """Share of each declared name, and of everything else, shape (names + 1,)."""
    places = {match_key(name): i for i, name in enumerate(settings.categories)}
    positions = [places.get(match_key(str(value)), len(places)) for value in column]
    return np.bincount(positions, minlength=len(places) + 1) / max(1, len(positions))


def _rows(matrix: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in matrix)
