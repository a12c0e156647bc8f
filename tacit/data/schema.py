"""What the columns of a table mean. A declared schema is public: nothing in it is computed from the data.

Scaling, imputation values and category lists are read from here, never from a site's own rows: an exact local
statistic moves with every record and so is outside the guarantee of DP-SGD (docs/accounting.md).
"""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

Text = Annotated[str, Field(min_length=1)]


class Frozen(BaseModel):
    """Base of every table of a configuration: immutable, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NumericColumn(Frozen):
    """A number, scaled as (x - center) / scale and cut at +-clip.

    Attributes:
        range: lowest and highest plausible value. Gives center and scale when those are not stated; with
            `scaling = "federated"` it bounds what one record can add to a statistic.
        center: subtracted, in the column's unit.
        scale: divided by, in the column's unit; above 0.
        clip: largest absolute value after scaling.
        missing: value that stands for an empty cell, in the column's unit; `center` when not stated.
        indicator: add a feature that is 1 where the cell was empty.
    """

    kind: Literal["numeric"]
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    center: float | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    clip: Annotated[float, Field(gt=0)] = 3.0
    missing: float | None = None
    indicator: bool = False

    @model_validator(mode="after")
    def _has_scaling(self) -> NumericColumn:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range needs its lower value first: range = [low, high]")
        if (self.center is None) != (self.scale is None):
            raise ValueError("state center and scale together, or range")
        if self.center is None and self.range is None:
            raise ValueError("state range = [low, high], or center and scale")
        return self

    def affine(self) -> tuple[float, float]:
        """(center, scale): as stated, else the middle and half the width of `range`."""
        if self.center is not None and self.scale is not None:
            return self.center, self.scale
        assert self.range is not None
        low, high = self.range
        return (low + high) / 2, (high - low) / 2


class CategoricalColumn(Frozen):
    """One of a list of names, as one feature per name (one-hot).

    Attributes:
        categories: the names as they stand in the file, compared as text; a number matches by value ("1" is "1.0").
        unseen: what a name outside the list becomes: all zeros, or an error that names file and line.
    """

    kind: Literal["categorical"]
    categories: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    unseen: Literal["ignore", "error"] = "ignore"

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalColumn:
        if len(set(self.categories)) != len(self.categories):
            raise ValueError("categories has a name twice")
        return self


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class Schema(Frozen):
    """The columns of a table that a task reads; other columns of the file are ignored.

    Attributes:
        label: name of the label column.
        classes: the label's values in order; the class index is the position.
        columns: feature columns by name, in order.
        site: column that says which site a row belongs to, if any.
        split: column with "train" or "test" for each row, if any; without it every row is for training.
        missing_rows: what happens to a row with an empty feature cell.
        scaling: where center and scale come from: this schema, or statistics that the clients compute
            together (sums, noised when the run is private).
    """

    label: Text
    classes: Annotated[tuple[Text, ...], Field(min_length=2, strict=False)] = ("0", "1")
    columns: Annotated[dict[str, Column], Field(min_length=1)]
    site: str = ""
    split: str = ""
    missing_rows: Literal["impute", "drop"] = "impute"
    scaling: Literal["declared", "federated"] = "declared"

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        if len(set(self.classes)) != len(self.classes):
            raise ValueError("classes has a value twice")
        special = [name for name in (self.label, self.site, self.split) if name]
        if len(set(special)) != len(special):
            raise ValueError("label, site and split must be different columns")
        for name in special:
            if name in self.columns:
                raise ValueError(f"column {name!r} is label, site or split and cannot be a feature too")
        if self.scaling == "federated":
            for name, column in self.columns.items():
                if isinstance(column, NumericColumn) and column.range is None:
                    raise ValueError(f"columns.{name}: federated scaling needs range = [low, high]")
        return self

    @property
    def feature_names(self) -> tuple[str, ...]:
        """Names of the features that the model sees, in order; their number is the model's input size."""
        names: list[str] = []
        for name, column in self.columns.items():
            if isinstance(column, NumericColumn):
                names.append(name)
                if column.indicator:
                    names.append(f"{name}=missing")
            else:
                names.extend(f"{name}={category}" for category in column.categories)
        return tuple(names)
