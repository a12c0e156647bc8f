"""The vectors of many clients as the rows of one matrix: what `tacit.secagg.ring` does to one, in a few calls.

For a simulation, which holds a whole cohort. Each row is, bit for bit, what `ring` makes of it alone.
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.secagg.ring import rounds_to_zero, squared_norm, units_per_one
from tacit.update import Integers

_EXACT: Final = 2.0**52


def clip_norms(values: NDArray[Any], clip: float) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """`ring.clip_norm` of each row: a new matrix in float64, and which rows were longer, shape (rows,).

    Args:
        values: shape (rows, d), finite.
        clip: largest norm.
    """
    cut = values.astype(np.float64)
    peaks = np.maximum(cut.max(axis=1, initial=0.0), -cut.min(axis=1, initial=0.0))
    # In the order of `ring`: a sum of squares that is a last bit off would cut a row at another place.
    clipped = np.zeros(len(cut), dtype=np.bool_)
    for i in np.flatnonzero(peaks * np.sqrt(cut.shape[1]) > clip * (1 - 2.0**-40)):  # no shorter one is cut
        direction = cut[i] / peaks[i]
        length = float(np.linalg.norm(direction))
        if length * peaks[i] > clip:
            np.multiply(direction, clip / length, out=cut[i])
            clipped[i] = True
    return cut, clipped


def rounded(cut: NDArray[np.float64], *, clip: float, c_int: int, uniforms: NDArray[np.float64]) -> Integers:
    """`ring.rounded` of each row; writes over `cut`.

    Args:
        cut: shape (rows, d), each row no longer than `clip`.
        uniforms: shape (rows, d), in [0, 1).

    Guarantees:
        sum(int(z)**2) <= c_int**2 for each row, tested exactly.
    """
    if uniforms.shape != cut.shape:
        raise ValueError("one uniform number for each coordinate")
    d = cut.shape[1]
    cut *= units_per_one(clip, c_int, d)
    if rounds_to_zero(c_int, d):
        np.trunc(cut, out=cut)
    else:
        fraction = cut.copy()
        np.floor(cut, out=cut)
        fraction -= cut
        cut += uniforms < fraction
    # Whole numbers in float64, whose squares and their sum are exact up to 2**53.
    peak = max(float(cut.max(initial=0.0)), -float(cut.min(initial=0.0)))
    if d * peak * peak < _EXACT:
        longest = int(np.einsum("ij,ij->i", cut, cut).max(initial=0.0))
        integers = cut.astype(np.int64)
    else:
        integers = cut.astype(np.int64)
        longest = max((squared_norm(row) for row in integers), default=0)
    if longest > c_int**2:
        raise AssertionError("an encoded vector is longer than its bound")
    return integers
