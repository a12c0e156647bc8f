"""Images from a folder: FOLDER/CLASS/NAME.png or .jpg, or FOLDER/train/CLASS/ and FOLDER/test/CLASS/.

Guarantees:
    An image becomes an array by itself: its size and the schema say how.
    An image of more than `MOST_PIXELS` is refused before it is unpacked.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.data.array_schema import ArraySchema
from tacit.data.readers import MAX_BYTES
from tacit.data.schema import SPLITS
from tacit.errors import DataError, MissingExtra

SUFFIXES: Final = (".png", ".jpg", ".jpeg")
MOST_PIXELS: Final = 50_000_000
MODES: Final = {1: "L", 3: "RGB"}  # by channels


def read_images(folder: Path, schema: ArraySchema) -> dict[str, NDArray[Any]]:
    """The arrays `x`, `y` and, where the folder has `train` or `test`, `split`.

    Returns:
        x of shape (images, *schema.shape), float32 from 0 to 1; y of shape (images,), class positions.

    Raises:
        DataError: names the file.
        MissingExtra: Pillow is not installed.
    """
    files = list(image_files(folder))
    if 4 * len(files) * schema.num_inputs > MAX_BYTES:
        raise DataError(f"has {len(files)} images, more than fit: a smaller shape", path=folder)
    parts = [file.relative_to(folder).parts[:-1] for file in files]
    x = np.empty((len(files), *schema.shape), dtype=np.float32)
    y = np.array([_position(p[-1], schema.classes, f.parent) for p, f in zip(parts, files, strict=True)])
    for place, file in zip(x, files, strict=True):
        place[:] = pixels(file, schema)
    splits = {} if len(parts[0]) == 1 else {"split": np.array([part[0] for part in parts])}
    return {"x": x, "y": y.astype(np.int64), **splits}


def image_files(folder: Path) -> Iterator[Path]:
    """All images of a folder, in the order of their names; whose name begins with a dot is passed over.

    Raises:
        DataError: something else is in it, or nothing.
    """
    split = any((folder / name).is_dir() for name in SPLITS)
    classes = [each for name in SPLITS for each in _folders(folder / name)] if split else _folders(folder)
    if split and (other := [each for each in _folders(folder) if each.name not in SPLITS]):
        raise DataError("stands beside train and test: a class belongs into them", path=other[0])
    files = [file for each in classes for file in _visible(each)]
    for file in files:
        if file.suffix.lower() not in SUFFIXES or not file.is_file():
            raise DataError(f"is no image: {', '.join(SUFFIXES)} are read", path=file)
    if not files:
        raise DataError("has no images: they belong into a folder for each class", path=folder)
    yield from files


def pixels(file: Path, schema: ArraySchema) -> NDArray[np.float32]:
    """One image of shape (channels, height, width), from 0 to 1.

    Raises:
        DataError: it is damaged, too large, or of another mode than the declared channels.
        MissingExtra: Pillow is not installed.
    """
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise MissingExtra("reading images", "images") from None
    assert schema.images is not None
    channels, height, width = schema.shape
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # the limit here is a lower one
            with Image.open(file, formats=("PNG", "JPEG")) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise DataError(
                        f"has {image.width} x {image.height} pixels, more than the {MOST_PIXELS} that are read",
                        path=file,
                    )
                if image.mode != MODES[channels]:
                    raise DataError(
                        f"is of mode {image.mode}, and {channels} channels are mode {MODES[channels]}: convert it",
                        path=file,
                    )
                if schema.images.fit == "crop":
                    made = ImageOps.fit(image, (width, height), Image.Resampling.BILINEAR)
                else:
                    made = image.resize((width, height), Image.Resampling.BILINEAR)
    except Image.DecompressionBombError:
        raise DataError(f"has more than the {MOST_PIXELS} pixels that are read", path=file) from None
    except (OSError, SyntaxError, ValueError) as error:
        # The codecs' own words may quote the file.
        reason = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else "is no image, or a damaged one"
        )
        raise DataError(reason, path=file) from None
    array = np.asarray(made, dtype=np.float32).reshape(height, width, channels) / np.float32(255)
    return np.moveaxis(array, 2, 0)


def _position(name: str, classes: tuple[str, ...], folder: Path) -> int:
    if name not in classes:
        raise DataError(f"is named after none of the {len(classes)} classes", path=folder)
    return classes.index(name)


def _folders(folder: Path) -> list[Path]:
    found = _visible(folder)
    if (files := [each for each in found if not each.is_dir()]) and folder.is_dir():
        raise DataError("stands outside of a class's folder", path=files[0])
    return found


def _visible(folder: Path) -> list[Path]:
    try:
        return sorted(folder / name for name in os.listdir(folder) if not name.startswith("."))
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"cannot be read: {error.strerror or error}", path=folder) from None
