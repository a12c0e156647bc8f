"""`[[partition.shifts]]`: how the sites of a simulation differ beyond which rows they have.

A list on top of any partition; the entries are applied in order. What each does is in docs/partitions.md.
"""

from __future__ import annotations

from typing import Annotated, ClassVar, Final, Literal

from pydantic import Field, model_validator

from tacit.data.schema import Frozen

Names = Annotated[tuple[str, ...], Field(strict=False)]
Share = Annotated[float, Field(gt=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Number = Annotated[int, Field(ge=1)]


class Shift(Frozen):
    """Where a shift acts: at all sites, or at some.

    Attributes:
        sites: labels; empty = by `share`.
        share: this share of all sites, at least one, drawn by the seed; None = all.
    """

    everywhere: ClassVar[bool] = True  # whether it makes sense at all sites

    sites: Names = ()
    share: Share | None = None

    @model_validator(mode="after")
    def _where(self) -> Shift:
        if self.sites and self.share is not None:
            raise ValueError("state sites or share, not both")
        if not self.everywhere and not self.sites and self.share is None:
            raise ValueError("needs sites or share: not all of them can")
        return self


class Scanner(Shift):
    """Instruments that read differently: gain * x + offset + noise, cut at the ends of what can be read.

    Attributes:
        columns: numeric columns; empty = all.
        strength: gain and offset are drawn for each site and column; see `feature_shift`.
        gain: instead of a drawn one: the same at all these sites, about the middle of the range.
        offset: with it, in the column's unit.
        noise: standard deviation of one reading, as a share of half the column's range.
    """

    kind: Literal["scanner"]
    columns: Names = ()
    strength: Annotated[float, Field(ge=0, le=10)] = 0.5
    gain: Positive | None = None
    offset: float = 0.0
    noise: Annotated[float, Field(ge=0, le=10)] = 0.0

    @model_validator(mode="after")
    def _drawn_or_stated(self) -> Scanner:
        stated = self.gain is not None or "offset" in self.model_fields_set
        if stated and "strength" in self.model_fields_set:
            raise ValueError("state gain and offset, or strength to have them drawn")
        return self


class Unit(Shift):
    """Another unit or currency that nobody has converted: factor * x + offset, as it stands in the file."""

    kind: Literal["unit"]
    columns: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    factor: Positive = 1.0
    offset: float = 0.0


class Coding(Shift):
    """Another code book: cells of a categorical column, or of the label, are written as another name.

    Attributes:
        column: categorical, or the label.
        codes: old name -> the name that this site writes instead.
        rate: share of those cells that it does so for.
    """

    kind: Literal["coding"]
    column: str
    codes: Annotated[dict[str, str], Field(min_length=1)]
    rate: Share = 1.0


class Drift(Shift):
    """A numeric column that moves as time goes by.

    Attributes:
        columns: numeric columns; empty = all.
        by: column with the time, of numbers or dates; empty = the order of the rows.
        strength: how far it moves from the first to the last row of all, in halves of the column's range.
    """

    kind: Literal["drift"]
    columns: Names = ()
    by: str = ""
    strength: Annotated[float, Field(ge=-10, le=10)] = 0.5


class Missing(Shift):
    """Cells that are empty, and not at random.

    Attributes:
        columns: features.
        rate: share of the rows of a site that lose the cell, exactly.
        depends: what makes a row likelier to lose it: the cell's own "value", the "label", "nothing".
        ratio: how many times likelier: the largest value against the smallest one, or `label` against the others.
        label: with depends = "label": the class; empty = the last one.
    """

    kind: Literal["missing"]
    columns: Annotated[tuple[str, ...], Field(min_length=1, strict=False)]
    rate: Share = 0.2
    depends: Literal["value", "label", "nothing"] = "value"
    ratio: Positive = 10.0
    label: str = ""

    @model_validator(mode="after")
    def _label(self) -> Missing:
        if self.label and self.depends != "label":
            raise ValueError('label belongs to depends = "label"')
        return self


class Duplicates(Shift):
    """People whom another site has too: copies of others' rows, `rate` of a site's own number of rows."""

    kind: Literal["duplicates"]
    rate: Share = 0.1


class Joins(Shift):
    """A site that takes part from a round on, and is not invited before it."""

    everywhere: ClassVar[bool] = False

    kind: Literal["joins"]
    round: Annotated[int, Field(ge=2)]


class Leaves(Shift):
    """A site that is not invited any more from a round on."""

    everywhere: ClassVar[bool] = False

    kind: Literal["leaves"]
    round: Annotated[int, Field(ge=2)]


AnyShift = Annotated[
    Scanner | Unit | Coding | Drift | Missing | Duplicates | Joins | Leaves, Field(discriminator="kind")
]
SHIFT_KINDS: Final = ("scanner", "unit", "coding", "drift", "missing", "duplicates", "joins", "leaves")
