"""How the rows of a table become series: `[data.arrays.series]`. Public, as every constant of `tacit.data.schema`."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, model_validator

from tacit.data.schema import Count, Frozen, Positive, Text

STEP = "{step}"
CHANNEL = "{channel}"


class SeriesTable(Frozen):
    """A table (CSV, TSV, Parquet) whose rows are steps of series, or whole series.

    A number at time t is at step floor((t - start) / step), from 0; several at one step count by their mean. Outside
    the steps that are read nothing counts, and a step without a number is an empty place.

    Attributes:
        form: "long", a row for each time of each series; "wide", a row for each series.
        channels: names, one for each entry of the first axis; in a long table the columns themselves.
        id: column that names the series, of a long table.
        time: column with the time, a number, of a long table.
        start: time of step 0.
        step: time from one step to the next.
        columns: of a wide table: the name of the column with a channel at a step.
        label: column with the class, or the number, that is predicted; in a long table the same in all of a series.
        split: column with "train" or "test", likewise.
        site: column that says which site a series belongs to, likewise; for a simulation.
        horizon: how many steps ahead are forecast; 0 = what is predicted is the label. Then a record is a window.
        target: the channel that is forecast.
        stride: steps from the beginning of one window to that of the next.
        most_windows: of a series, its latest; 0 = all.
        length: steps of a wide table's rows, where windows are cut from them.
        test_from: time from which on what is forecast is held out; what forecasts both sides of it is left out.
    """

    form: Literal["long", "wide"]
    channels: Annotated[tuple[Text, ...], Field(strict=False, min_length=1)]
    id: str = ""
    time: str = ""
    start: float = 0.0
    step: Positive = 1.0
    columns: str = f"{CHANNEL}_{STEP}"
    label: str = ""
    split: str = ""
    site: str = ""
    horizon: Annotated[int, Field(ge=0)] = 0
    target: str = ""
    stride: Count = 1
    most_windows: Annotated[int, Field(ge=0)] = 0
    length: Annotated[int, Field(ge=0)] = 0
    test_from: float | None = None

    @model_validator(mode="after")
    def _consistent(self) -> SeriesTable:
        if (self.form == "long") != bool(self.id and self.time):
            raise ValueError('form = "long" needs id and time, the columns that name a series and its times')
        if self.form == "wide" and (STEP not in self.columns or CHANNEL not in self.columns):
            raise ValueError(f"columns must have {CHANNEL} and {STEP} in it")
        if bool(self.horizon) == bool(self.label):
            raise ValueError("state label, the column to predict, or horizon, the steps to forecast")
        names = [*self.channels, *(n for n in (self.id, self.time, self.label, self.split, self.site) if n)]
        if len(set(names)) != len(names):
            raise ValueError("channels, id, time, label, split and site must be different columns")
        self._check_windows()
        return self

    def _check_windows(self) -> None:
        if self.horizon and self.target not in self.channels:
            raise ValueError(f"target must be one of the channels: {', '.join(self.channels)}")
        if self.horizon and (self.test_from is None) == (not self.split):
            raise ValueError(
                "horizon needs either test_from or split: windows overlap, and of those held out at random "
                "the training would know most"
            )
        given = self.target or self.most_windows or self.stride > 1 or self.test_from is not None
        if not self.horizon and (given or self.length):
            raise ValueError("target, stride, most_windows, length and test_from belong to horizon")
        if (self.form == "wide" and self.horizon > 0) != bool(self.length):
            raise ValueError('length belongs to form = "wide" with horizon: how many steps a row has')

    def column(self, channel: str, step: int) -> str:
        """Of a wide table."""
        return self.columns.replace(CHANNEL, channel).replace(STEP, str(step))
