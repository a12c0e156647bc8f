"""`[task.augment]`: views of each record that a step sees in its place, and what makes them differ. Public."""

from __future__ import annotations

from typing import Annotated, Any, Final

from pydantic import Field, model_validator

from tacit.data.schema import Count, Fraction, Frozen

IMAGES, SERIES, VECTORS, ROWS = "images", "series", "vectors", "table rows"
# What each key is for.
FITS: Final[dict[str, tuple[str, ...]]] = {
    "flip": (IMAGES,),
    "shift": (IMAGES, SERIES),
    "brightness": (IMAGES,),
    "contrast": (IMAGES,),
    "scale": (SERIES,),
    "noise": (IMAGES, SERIES, VECTORS, ROWS),
    "mask": (IMAGES, SERIES, VECTORS, ROWS),
}
# Names that others have for what is not offered.
MIXING: Final = ("mixup", "manifold_mixup", "cutmix", "mosaic", "swap_noise", "smote")


class Augment(Frozen):
    """How the views of a record are drawn, anew in each step. What is 0 does nothing.

    A record counts as one, however many views it has: its gradient is the mean over them, and is clipped then (De et
    al. 2022, "Unlocking High-Accuracy Differentially Private Image Classification through Scale", section 3.2).

    Attributes:
        views: of each record of a step.
        flip: chance that left and right are exchanged.
        shift: at most so many pixels along both axes, or steps of a series; what moves in repeats the edge.
        brightness: at most this is added to all values of an image, or taken away; in declared scales.
        contrast: distances from the mean of a channel change by at most this share.
        scale: values of a series are multiplied by 1 plus or minus at most this.
        noise: standard deviation of Gaussian noise on each number, in declared scales.
        mask: share that is taken for empty: a rectangle of an image, a stretch of a series, each column (each number
            of a vector) with this chance.
    """

    views: Annotated[Count, Field(le=1000)] = 1
    flip: Annotated[float, Field(ge=0, le=1)] = 0.0
    shift: Annotated[int, Field(ge=0)] = 0
    brightness: Annotated[float, Field(ge=0)] = 0.0
    contrast: Fraction = 0.0
    scale: Fraction = 0.0
    noise: Annotated[float, Field(ge=0)] = 0.0
    mask: Fraction = 0.0

    @model_validator(mode="before")
    @classmethod
    def _mixes_nothing(cls, table: Any) -> Any:
        for name in MIXING:
            if isinstance(table, dict) and name in table:
                raise ValueError(
                    f"{name}: would put one record into the gradient of another, so that clipping bounds neither; "
                    f"each record by itself: {', '.join(FITS)}"
                )
        return table

    @property
    def strengths(self) -> dict[str, float]:
        """Of what is applied, by name."""
        return {name: value for name in FITS if (value := getattr(self, name))}

    def check_fits(self, records: str) -> None:
        """Raises `ValueError` where something is not for such records, one of the words of `FITS`."""
        for name in self.strengths:
            if records not in FITS[name]:
                raise ValueError(
                    f"task.augment.{name}: is for {' and '.join(FITS[name])}, and these are {records}"
                )


def records_of_shape(shape: tuple[int, ...]) -> str:
    """The word for records that are arrays."""
    return (VECTORS, SERIES, IMAGES)[len(shape) - 1]
