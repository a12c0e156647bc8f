"""What the columns of a table mean. A declared schema is public: nothing in it is computed from the data.

Scaling, imputation values and category lists are read from here, never from a site's own rows: an exact local
statistic moves with every record and so is outside the guarantee of DP-SGD (docs/accounting.md).
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection
from decimal import Decimal, InvalidOperation
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

SPLITS = ("train", "test")
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[float, Field(gt=0)]
Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(ge=0, lt=1)]

# What an empty cell may look like, in any column.
MISSING = frozenset({"", "?", "NA", "nan", "NaN"})

# Narrower than float(): no underscores, no other scripts' digits, no "inf", no "nan".
NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)(?:[eE][+-]?\d+)?", re.ASCII)


def match_key(name: str) -> str | Decimal:
    """What names of categories and classes are compared by: a number's value ("1" is "1.0") or the text."""
    name = name.strip()
    if NUMBER.fullmatch(name):
        try:
            return Decimal(name)
        except InvalidOperation:  # an exponent beyond what Decimal holds
            return name
    return name


def check_names(names: Collection[str], what: str) -> None:
    """Raises `ValueError` where two names would match the same cell, or a name can match none."""
    if len({match_key(name) for name in names}) != len(names):
        raise ValueError(f"{what} has a name twice")
    if any(name.strip() in MISSING for name in names):
        raise ValueError(f"{what} lists a name that stands for an empty cell")


class Frozen(BaseModel):
    """Base of every table of a configuration: immutable, strict, no unknown keys, no NaN."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class NumericColumn(Frozen):
    """A number x, scaled as (t(x) - center) / scale and cut at +-clip, where t is `transform`.

    Attributes:
        transform: "none": t(x) = x; "log": t(x) = sign(x) * log(1 + |x|), for amounts over powers of ten.
        range: lowest and highest plausible x. Gives center and scale when those are not stated; with
            `scaling = "federated"` it bounds what one record can add to a statistic.
        center: subtracted, in the unit of t(x).
        scale: divided by, in the unit of t(x); above 0.
        clip: largest absolute value after scaling.
        missing: x that stands for an empty cell; when not stated the feature is 0, the center.
        indicator: add a feature that is 1 where the cell was empty.
        decimals: places behind the point, 0 = whole; for rows that are made up, nothing that is read changes.
    """

    kind: Literal["numeric"]
    transform: Literal["none", "log"] = "none"
    range: Annotated[tuple[float, float], Field(strict=False)] | None = None
    center: float | None = None
    scale: Annotated[float, Field(gt=0)] | None = None
    clip: Annotated[float, Field(gt=0, le=1e6)] = 3.0
    missing: float | None = None
    indicator: bool = False
    decimals: Annotated[int, Field(ge=0, le=12)] | None = None

    @model_validator(mode="after")
    def _has_scaling(self) -> NumericColumn:
        if self.range is not None and not self.range[0] < self.range[1]:
            raise ValueError("range needs its lower value first: range = [low, high]")
        if (self.center is None) != (self.scale is None):
            raise ValueError("state center and scale together, or range")
        if self.center is None and self.range is None:
            raise ValueError("state range = [low, high], or center and scale")
        if self.range is not None and self.range_affine()[1] <= 0:
            raise ValueError("range is too narrow for its size: no number lies between its ends")
        return self

    def affine(self) -> tuple[float, float]:
        """(center, scale) in the unit of t(x): as stated, else the middle and half the width of `range`."""
        if self.center is not None and self.scale is not None:
            return self.center, self.scale
        return self.range_affine()

    def range_affine(self) -> tuple[float, float]:
        """(middle, half width) of t(range): what maps the range onto [-1, 1]."""
        if self.range is None:
            raise ValueError("this column states no range")
        low, high = (self.transformed(end) for end in self.range)
        return low / 2 + high / 2, high / 2 - low / 2

    def transformed(self, x: float) -> float:
        """t(x)."""
        return math.copysign(math.log1p(abs(x)), x) if self.transform == "log" else x


class CategoricalColumn(Frozen):
    """One of a list of names, as one feature per name (one-hot).

    Attributes:
        categories: the names as they stand in the file, compared as text; a number matches by value ("1" is
            "1.0").
        unseen: what a name outside the list becomes: all zeros, or an error that names file and line. An
            empty cell is all zeros either way.
    """

    kind: Literal["categorical"]
    categories: Annotated[tuple[Text, ...], Field(min_length=1, strict=False)]
    unseen: Literal["ignore", "error"] = "ignore"

    @model_validator(mode="after")
    def _distinct(self) -> CategoricalColumn:
        check_names(self.categories, "categories")
        return self


Column = Annotated[NumericColumn | CategoricalColumn, Field(discriminator="kind")]


class TextColumn(Frozen):
    """A column of text, each cell of which becomes whole numbers of one length; see `tacit.data.tokens`.

    Attributes:
        column: its name.
        tokens: "words", runs of letters and digits in lower case, hashed; "bytes", of UTF-8.
        vocabulary: how many different tokens there are, padding included, where tokens are words.
        length: tokens of a record: what is longer is cut, what is shorter is filled up.
    """

    column: Text
    tokens: Literal["words", "bytes"] = "words"
    vocabulary: Annotated[int | None, Field(ge=2, le=2**24)] = None
    length: Annotated[int, Field(ge=1, le=10_000)] = 64

    @model_validator(mode="after")
    def _sized(self) -> TextColumn:
        if (self.tokens == "words") != (self.vocabulary is not None):
            raise ValueError(
                'tokens = "words" needs vocabulary, e.g. 4096; tokens = "bytes" has 257 of its own'
            )
        return self

    @property
    def num_tokens(self) -> int:
        """How many different tokens the model knows, padding included."""
        return self.vocabulary or 257


class Schema(Frozen):
    """The columns of a table that a task reads; other columns of the file are ignored.

    Attributes:
        label: name of the label column.
        classes: the label's values in order, matched like categories; the class index is the position.
        columns: feature columns by name, in order; none where a task of one's own reads them by itself.
        text: the column of text that a record is, in the place of columns.
        site: column that says which site a row belongs to, if any.
        split: column with "train" or "test" for each row, if any; without it every row is for training.
        missing_rows: what happens to a row with an empty feature cell.
        scaling: where center and scale come from: this schema, or statistics that the clients compute
            together (sums, noised when the run is private).
    """

    label: Text
    classes: Annotated[tuple[Text, ...], Field(min_length=2, strict=False)] = ("0", "1")
    columns: dict[str, Column] = Field(default_factory=dict)
    text: TextColumn | None = None
    site: str = ""
    split: str = ""
    missing_rows: Literal["impute", "drop"] = "impute"
    scaling: Literal["declared", "federated"] = "declared"

    @model_validator(mode="after")
    def _consistent(self) -> Schema:
        check_names(self.classes, "classes")
        special = [name for name in (self.label, self.site, self.split) if name]
        if len(set(special)) != len(special):
            raise ValueError("label, site and split must be different columns")
        for name in special:
            if name in self.columns:
                raise ValueError(f"column {name!r} is label, site or split and cannot be a feature too")
        if self.text is not None:
            self._check_text(self.text, special)
        if self.scaling == "federated":
            for name, column in self.columns.items():
                if isinstance(column, NumericColumn) and column.range is None:
                    raise ValueError(f"columns.{name}: federated scaling needs range = [low, high]")
        return self

    def _check_text(self, text: TextColumn, special: list[str]) -> None:
        if self.columns:
            raise ValueError("columns and text exclude each other: a record is its text alone")
        if text.column in special:
            raise ValueError(f"column {text.column!r} is label, site or split and cannot be the text too")
        if self.scaling == "federated" or self.missing_rows == "drop":
            raise ValueError('scaling = "federated" and missing_rows = "drop" are for columns, not for text')

    @property
    def required(self) -> tuple[str, ...]:
        """Columns that a file must have."""
        text = () if self.text is None else (self.text.column,)
        return (self.label, *self.columns, *text, *((self.split,) if self.split else ()))

    @property
    def optional(self) -> tuple[str, ...]:
        """Columns that it may have: at a site, the file itself says whose it is."""
        return (self.site,)

    @property
    def numeric(self) -> frozenset[str]:
        """Columns of numbers."""
        return frozenset(n for n, column in self.columns.items() if isinstance(column, NumericColumn))

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
