"""The declared shape and scaling of records that are arrays: images, series, vectors.

As in `tacit.data.schema`, every constant is public and holds for each record by itself, so that no statistic of a
site's records reaches the model past the noise.
"""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tacit.data.list_schema import ListTable
from tacit.data.schema import Frozen, Text, check_names
from tacit.data.series_schema import SeriesTable

Channels = float | Annotated[tuple[float, ...], Field(strict=False, min_length=1)]
Size = Annotated[int, Field(ge=1)]


class ImageFolder(Frozen):
    """How the images of a folder become arrays, `[data.arrays.images]`: numbers from 0 to 1, of the declared size.

    Attributes:
        fit: "stretch" to the declared height and width; or "crop", the middle that has their proportions.
    """

    fit: Literal["stretch", "crop"] = "stretch"


class ArraySchema(Frozen):
    """One record is an array x of `shape`, scaled as (x - center) / scale and cut at +-clip.

    Attributes:
        series: how rows of a table become such arrays; None = they stand in an archive (.npz).
        lists: how rows of a table become lists of items to rank.
        images: how a folder's images do.
        shape: of one record: (features,), (channels, time), (channels, height, width) or, to rank, (features, items).
        classes: names of the classes in order, where a class is predicted; a target is a position among them.
        several: whether a record may have several of the classes, or none; then a target is 0 or 1 for each of them.
        outputs: how many numbers a target has, where numbers are predicted.
        grades: the highest relevance, where items are ranked; then a target is a relevance for each of them.
        center: subtracted; one number, or one per channel (per feature).
        scale: divided by; likewise, above 0.
        clip: largest absolute value after scaling.
        missing: what an empty place (NaN) becomes: "zero", the center; or "indicator", the center and, in as many
            channels again, 1 where it was empty.
        target_center: as `center`, for numbers that are predicted.
        target_scale: as `scale`, for numbers that are predicted.
    """

    series: SeriesTable | None = None
    lists: ListTable | None = None
    images: ImageFolder | None = None
    shape: Annotated[tuple[Size, ...], Field(strict=False, min_length=1, max_length=3)]
    classes: Annotated[tuple[Text, ...], Field(strict=False)] = ()
    several: bool = False
    outputs: Size = 1
    grades: Annotated[int, Field(ge=0, le=30)] = 0
    center: Channels = 0.0
    scale: Channels = 1.0
    clip: Annotated[float, Field(gt=0, le=1e6)] = 5.0
    missing: Literal["zero", "indicator"] = "zero"
    target_center: float = 0.0
    target_scale: Annotated[float, Field(gt=0)] = 1.0

    @model_validator(mode="after")
    def _consistent(self) -> ArraySchema:
        for name in ("center", "scale"):
            value = getattr(self, name)
            if isinstance(value, tuple) and len(value) != self.shape[0]:
                raise ValueError(f"{name} has {len(value)} numbers, the first axis of shape {self.shape[0]}")
        scales = self.scale if isinstance(self.scale, tuple) else (self.scale,)
        if min(scales) <= 0:
            raise ValueError("scale must be above 0")
        if len(self.classes) == 1:
            raise ValueError("classes needs two names or more; none where numbers are predicted")
        if self.several and not self.classes:
            raise ValueError("several needs classes, the names of what a record may have")
        check_names(self.classes, "classes")
        self._check_series()
        self._check_grades()
        if self.images is not None and (
            self.series
            or self.several
            or not self.classes
            or len(self.shape) != 3
            or self.shape[0] not in (1, 3)
        ):
            raise ValueError(
                "images need shape = [1 or 3, height, width] and classes, the names of the folders"
            )
        return self

    def _check_series(self) -> None:
        if self.series is None:
            return
        if self.several or len(self.shape) != 2 or self.shape[0] != len(self.series.channels):
            raise ValueError(
                "series need shape = [channels, steps], with as many channels as series.channels names"
            )
        series = self.series
        if series.form == "wide":
            steps = {
                series.column(c, t) for c in series.channels for t in range(series.length or self.shape[1])
            }
            if beside := steps & {series.label, series.split, series.site}:
                raise ValueError(f"series: {min(beside)!r} is a step, so it can be no label, split or site")
        if self.outputs != (1 if self.classes else self.series.horizon or 1):
            raise ValueError("outputs must be series.horizon, and 1 where a label is predicted")
        if self.classes and self.series.horizon:
            raise ValueError("series.horizon forecasts numbers: state no classes")

    def _check_grades(self) -> None:
        if self.grades and (
            len(self.shape) != 2 or self.classes or self.outputs > 1 or self.series or self.images
        ):
            raise ValueError(
                "grades need shape = [features, items], and neither classes nor outputs, series or images"
            )
        if self.lists is not None and not (self.grades and self.shape[0] == len(self.lists.features)):
            raise ValueError(
                "lists need grades and shape = [features, items], with as many features as lists.features names"
            )

    @property
    def in_table(self) -> bool:
        """Whether records are made of the rows of a table, several to one."""
        return self.series is not None or self.lists is not None

    @property
    def input_shape(self) -> tuple[int, ...]:
        """Of one record as the model sees it."""
        channels = self.shape[0] * (2 if self.missing == "indicator" else 1)
        return (channels, *self.shape[1:])

    @property
    def num_inputs(self) -> int:
        """Numbers in one record as the model sees it."""
        return math.prod(self.input_shape)
