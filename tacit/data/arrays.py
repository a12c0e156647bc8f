"""One site's records as arrays, wherever they stand: an archive, a table of series or lists, or a folder of images.

Each kind has a reader that gives the raw arrays of `tacit.data.npz`; from there on all are one.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.data.array_schema import ArraySchema
from tacit.data.images import read_images
from tacit.data.lists import read_lists
from tacit.data.npz import Floats, read_npz, scaled, targets_of
from tacit.data.schema import SPLITS
from tacit.data.series import read_series
from tacit.errors import DataError

KEYS = ("x", "y", "split", "site")


def read_arrays(path: Path, schema: ArraySchema, split: str) -> tuple[Floats, NDArray[Any]]:
    """Scaled records of one split, and their targets.

    Returns:
        Records of shape (rows, *schema.input_shape), float32; and class positions of shape (rows,), int64, or float32:
        0 and 1 of shape (rows, classes), scaled numbers of shape (rows, outputs), or relevances of shape (rows, items).

    Raises:
        DataError: names the file, and the key, or line and column.
    """
    arrays = raw_arrays(path, schema)
    for key in ("x", "y"):
        if key not in arrays:
            raise DataError("is not in the file", path=path, key=key)
    x, y = arrays["x"], arrays["y"]
    if x.dtype.kind not in "biuf" or x.shape[1:] != schema.shape:
        raise DataError(
            f"is {x.dtype} of shape {x.shape}; numbers of shape (rows, {_numbers(schema.shape)}) are declared",
            path=path,
            key="x",
        )
    chosen = _chosen(arrays.get("split"), len(x), split, path)
    return scaled(x[chosen], schema, path), targets_of(y, len(x), schema, path)[chosen]


def raw_arrays(path: Path, schema: ArraySchema) -> dict[str, NDArray[Any]]:
    """What a site has under `KEYS`, as far as it has them, not yet scaled.

    An archive is always read, whatever else the schema names: a simulation gives its sites archives.

    Raises:
        DataError: it cannot be read; names the file, and the key, or line and column.
    """
    if path.suffix.lower() != ".npz" and schema.series is not None:
        return read_series(path, schema)
    if path.suffix.lower() != ".npz" and schema.lists is not None:
        return read_lists(path, schema)
    if path.suffix.lower() != ".npz" and schema.images is not None:
        return read_images(path, schema)
    return read_npz(path, KEYS)


def _chosen(split: NDArray[Any] | None, rows: int, wanted: str, path: Path) -> NDArray[np.bool_]:
    if split is None:
        return np.full(rows, wanted == "train")
    if split.shape != (rows,) or split.dtype.kind != "U" or not np.isin(split, SPLITS).all():
        raise DataError(f'must be "train" or "test" for each of the {rows} records', path=path, key="split")
    return np.asarray(split == wanted)


def _numbers(shape: tuple[int, ...]) -> str:
    return ", ".join(map(str, shape))
