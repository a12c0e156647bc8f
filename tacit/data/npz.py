"""Reads one site's arrays from a NumPy archive: `x`, `y` and `split`. Nothing in a file is run.

x      shape (rows, *shape), integers or floating-point numbers; NaN is an empty place
y      shape (rows,), positions among the classes; (rows, classes), 0 or 1 for each; (rows,) or (rows, outputs),
       numbers; (rows, items), the relevance of each, NaN or -1 where there is none
split  shape (rows,), "train" or "test"; without it every record is for training
"""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tacit.data.array_schema import ArraySchema
from tacit.errors import DataError

Floats = NDArray[np.float32]


def read_npz(path: Path, keys: tuple[str, ...]) -> dict[str, NDArray[Any]]:
    """The arrays of an archive under these keys, as far as it has them.

    Raises:
        DataError: it cannot be read, or a key holds Python objects, which are never loaded.
    """
    key = ""
    try:
        # Opened here, so that it is closed too where it turns out to be no archive.
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            names = {name.removesuffix(".npy") for name in archive.namelist()}
        with np.load(path, allow_pickle=False) as arrays:
            found = {}
            for key in (key for key in keys if key in names):
                found[key] = np.asarray(arrays[key])
            return found
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=path) from None
    except (ValueError, EOFError, KeyError, MemoryError, NotImplementedError, zipfile.BadZipFile) as error:
        raise DataError(_why(error), path=path, key=key) from None


def num_records(path: Path) -> int:
    """How many records an archive holds, whatever they are.

    Raises:
        DataError: names the file and the key.
    """
    x = read_npz(path, ("x",)).get("x")
    if x is None or x.ndim == 0:
        raise DataError("is not in the file" if x is None else "has no records", path=path, key="x")
    return len(x)


def targets_of(y: NDArray[Any], rows: int, schema: ArraySchema, path: Path) -> NDArray[Any]:
    """What `y` of an archive says of each record, as a task wants it.

    Raises:
        DataError: it says something else.
    """
    if schema.grades:
        return _relevances(y, rows, schema, path)
    kind = _several if schema.several else _classes if schema.classes else _numbers_of
    return kind(y, rows, schema, path)


def scaled(x: NDArray[Any], schema: ArraySchema, path: str | Path = "") -> Floats:
    """Records as the model sees them: each by itself, with the constants of the schema.

    Raises:
        DataError: a number is infinite.
    """
    x = x.astype(np.float32)
    if np.isinf(x).any():
        raise DataError("has infinite numbers", path=path, key="x")
    along = (-1, *[1] * (len(schema.shape) - 1))  # the first axis of a record
    center, scale = (
        np.asarray(value, dtype=np.float32).reshape(along) for value in (schema.center, schema.scale)
    )
    empty = np.isnan(x)
    z = np.where(empty, np.float32(0), np.clip((x - center) / scale, -schema.clip, schema.clip))
    if schema.missing == "indicator":
        z = np.concatenate([z, empty], axis=1)
    return np.ascontiguousarray(z, dtype=np.float32)


def _classes(y: NDArray[Any], rows: int, schema: ArraySchema, path: Path) -> NDArray[np.int64]:
    num = len(schema.classes)
    if y.shape != (rows,) or y.dtype.kind not in "biu" or (rows and not 0 <= y.min() <= y.max() < num):
        raise DataError(
            f"must be whole numbers from 0 to {num - 1}, the positions of the classes, one for each of the {rows} "
            "records",
            path=path,
            key="y",
        )
    return y.astype(np.int64)


def _several(y: NDArray[Any], rows: int, schema: ArraySchema, path: Path) -> Floats:
    num = len(schema.classes)
    if y.shape != (rows, num) or y.dtype.kind not in "biu" or not np.isin(y, (0, 1)).all():
        raise DataError(
            f"must be 0 or 1 for each of the {num} classes, for each of the {rows} records",
            path=path,
            key="y",
        )
    return y.astype(np.float32)


def _numbers_of(y: NDArray[Any], rows: int, schema: ArraySchema, path: Path) -> Floats:
    y = y.reshape(rows, 1) if y.shape == (rows,) else y
    if y.shape != (rows, schema.outputs) or y.dtype.kind not in "biuf" or not np.isfinite(y).all():
        raise DataError(
            f"must be {schema.outputs} finite numbers for each of the {rows} records", path=path, key="y"
        )
    z = (y.astype(np.float64) - schema.target_center) / schema.target_scale
    return np.clip(z, -schema.clip, schema.clip).astype(np.float32)


def is_relevance(values: NDArray[Any], grades: int) -> NDArray[np.bool_]:
    """Whether each is a whole number from 0 to the highest grade."""
    found: NDArray[np.bool_] = (values >= 0) & (values <= grades) & (values == np.floor(values))
    return found


def _relevances(y: NDArray[Any], rows: int, schema: ArraySchema, path: Path) -> Floats:
    fits = y.shape == (rows, schema.shape[1]) and y.dtype.kind in "biuf"
    found = np.where(np.isnan(y.astype(np.float32)), -1, y) if fits else y
    if not fits or not ((found == -1) | is_relevance(found, schema.grades)).all():
        raise DataError(
            f"must be whole numbers from 0 to {schema.grades}, the relevance of each of {schema.shape[1]} items, NaN "
            f"or -1 where there is none, for each of the {rows} records",
            path=path,
            key="y",
        )
    return found.astype(np.float32)


def _why(error: Exception) -> str:
    if "Object arrays" in str(error):
        return "holds Python objects, which are never loaded: save numbers"
    return "is no NumPy archive (.npz), or a damaged one"
