"""The arrays that a simulation partitions into sites: the user's own, MedMNIST's, or scikit-learn's digits.

A partition divides rows of a table. So arrays get one: a row for each record, with its label and its site, and the
sites' files are cut from the arrays by the rows that each site was given.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from tacit import config
from tacit.data.array_schema import ArraySchema
from tacit.data.arrays import raw_arrays
from tacit.data.npz import read_npz, targets_of
from tacit.data.schema import SPLITS, Schema
from tacit.errors import ConfigError, DataError, MissingExtra

if TYPE_CHECKING:
    from pandas import DataFrame

ROW = "row"  # the column that says which record a row stands for
SIDES = ("low", "high")  # of the declared centre: what stands for classes where numbers are predicted
ANY = ("none", "some")  # of several classes that a record may have, or of relevant items
MEDMNIST_PARTS = ("train", "val", "test")


@dataclass(frozen=True, eq=False, repr=False)
class ArraySet:
    """Records that are arrays, before they are divided.

    Attributes:
        x: shape (rows, *schema.shape).
        y: class positions of shape (rows,), 0 and 1 of shape (rows, classes), numbers of shape (rows, outputs), or
            relevances of shape (rows, items).
        schema: shape, scaling and targets.
        site: shape (rows,), the site's label; None where a partition has to make sites.
        split: shape (rows,), "train" or "test"; None where the split is drawn.
        truth: what the best possible model puts out, where it is known: the logarithm of each class's probability,
            shape (rows, classes), or the expected numbers, shape (rows, outputs).
    """

    x: NDArray[Any]
    y: NDArray[Any]
    schema: ArraySchema
    site: NDArray[np.str_] | None = None
    split: NDArray[np.str_] | None = None
    truth: NDArray[np.float64] | None = None

    def __repr__(self) -> str:
        return f"<ArraySet: {len(self.y)} records>"

    def table(self) -> tuple[DataFrame, Schema]:
        """A row for each record, for the partition, and what its columns are."""
        import pandas as pd

        classes: tuple[str, ...] = ANY
        if self.schema.several or self.schema.grades:
            labels = np.array(classes)[(self.y > 0).any(axis=1).astype(int)]
        elif self.schema.classes:
            classes = self.schema.classes
            labels = np.array(classes)[self.y]
        else:
            classes = SIDES
            above = self.y.reshape(len(self.y), -1)[:, 0] > self.schema.target_center
            labels = np.array(classes)[above.astype(int)]
        columns: dict[str, Any] = {ROW: np.arange(len(self.y)), "label": labels}
        columns |= {} if self.site is None else {"site": self.site}
        columns |= {} if self.split is None else {"split": self.split}
        schema = Schema(
            label="label",
            classes=classes,
            site="" if self.site is None else "site",
            split="" if self.split is None else "split",
        )
        return pd.DataFrame(columns), schema

    def file(self, frame: DataFrame) -> bytes:
        """The archive of one site: the records that these rows of `table` stand for; equal rows, equal bytes."""
        rows = frame[ROW].to_numpy()
        parts = {"x": self.x[rows], "y": self.y[rows], "split": frame["split"].to_numpy().astype("U5")}
        if self.truth is not None:
            parts["truth"] = self.truth[rows]
        file = io.BytesIO()
        np.savez(file, **parts)
        return file.getvalue()


def load_arrays(data: config.Data, seed: int) -> ArraySet | None:
    """What `[data] source` has, where its records are arrays; None where they are rows of a table.

    Raises:
        DataError: a file does not hold what it should; names the file and the key.
        ConfigError: no shape is declared, or there is no such generator.
        MissingExtra: scikit-learn is needed and not installed.
    """
    if data.source in ("npz", "images") or (data.source in ("csv", "parquet") and data.arrays is not None):
        return load_own(data)
    if data.source == "digits":
        return load_digits()
    if data.source == "medmnist":
        from simulations.scenarios.chest_xray import real_hospitals

        return real_hospitals(Path(data.dir), seed)
    if data.source == "generated":
        from simulations.scenarios.catalogue import generated_arrays

        return generated_arrays(data, seed)
    return None


def load_own(data: config.Data) -> ArraySet:
    """The user's own archive, table of series or folder: `x`, `y`, and where it has them `site` and `split`.

    Raises:
        DataError: it does not hold what was declared; names the file, and the key, or line and column.
        ConfigError: no shape is declared.
    """
    path = Path(data.path)
    if data.arrays is None:
        raise ConfigError("say what shape a record has: [data.arrays] shape = [...]", key="data.arrays")
    found = raw_arrays(path, data.arrays)
    for key in ("x", "y"):
        if key not in found:
            raise DataError("is not in the file", path=path, key=key)
    rows = len(found["y"])
    if found["x"].shape != (rows, *data.arrays.shape):
        raise DataError(
            f"has shape {found['x'].shape}; {(rows, *data.arrays.shape)} follows from y and the declared shape",
            path=path,
            key="x",
        )
    if data.arrays.classes or data.arrays.grades:
        targets_of(found["y"], rows, data.arrays, path)
    site = found.get("site")
    if site is not None and (site.shape != (rows,) or site.dtype.kind not in "Uiu"):
        raise DataError(f"must name the site of each of the {rows} records", path=path, key="site")
    split = found.get("split")
    if split is not None and (split.shape != (rows,) or not np.isin(split, SPLITS).all()):
        raise DataError(f'must be "train" or "test" for each of the {rows} records', path=path, key="split")
    return ArraySet(found["x"], found["y"], data.arrays, None if site is None else site.astype(str), split)


def load_digits() -> ArraySet:
    """1797 images of digits written by hand, 8 x 8 (Alpaydin and Kaynak 1998), as scikit-learn carries them.

    Pixels count from 0 to 16; the schema makes that -1 to 1.
    """
    try:
        from sklearn import datasets
    except ImportError:
        raise MissingExtra("the digits", "simulation") from None
    found = datasets.load_digits()
    schema = ArraySchema(shape=(1, 8, 8), classes=tuple("0123456789"), center=8.0, scale=8.0)
    return ArraySet(found.images[:, None].astype(np.float32), found.target.astype(np.int64), schema)


def load_medmnist(path: Path, classes: tuple[str, ...]) -> ArraySet:
    """A file of MedMNIST (Yang et al. 2023), whose parts train, val and test are put together again.

    Images become (channels, height, width) of 0 to 1; the published split is not used, because each site holds out
    rows of its own.

    Raises:
        DataError: the file is not one of MedMNIST's, or has other classes.
    """
    keys = tuple(f"{part}_{what}" for part in MEDMNIST_PARTS for what in ("images", "labels"))
    if not path.exists():
        raise DataError("is not there: data.dir needs this file of MedMNIST's", path=path)
    found = read_npz(path, keys)
    for key in keys:
        if key not in found:
            raise DataError("is not in the file: it is none of MedMNIST's", path=path, key=key)
    images = np.concatenate([found[key] for key in keys[::2]])
    labels = np.concatenate([found[key].reshape(-1) for key in keys[1::2]]).astype(np.int64)
    images = images[:, None] if images.ndim == 3 else np.moveaxis(images, -1, 1)
    if len(images) != len(labels) or labels.min() < 0 or labels.max() >= len(classes):
        raise DataError(f"{len(classes)} classes are declared, the file has others", path=path, key=keys[1])
    schema = ArraySchema(shape=images.shape[1:], classes=classes, center=0.5, scale=0.25)
    return ArraySet((images / np.float32(255)).astype(np.float32), labels, schema)
