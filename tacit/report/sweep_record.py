"""The record of a sweep: the content of sweep.json, and all that its table and its page are made from.

Numbers are finite or, spelled out, "inf"; an undefined one is null. All of it is simulation only.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

from pydantic import AwareDatetime, Field

from tacit.metric_names import lower_is_better
from tacit.report import compare
from tacit.report.record import Count, Metrics, Number, Part, RunRecord, Seconds, Table

SEED = "seed"
CONFIDENCE = 0.95


class Target(Part):
    """What counts as good enough.

    Attributes:
        metric: name.
        value: to be reached.
        stated: whether the user did; else it is a share of what pooled training reaches.
    """

    metric: str
    value: float
    stated: bool

    def is_reached(self, value: float | None) -> bool:
        """Whether a value is as good, or better."""
        if value is None:
            return False
        return value <= self.value if lower_is_better(self.metric) else value >= self.value


class SweepCell(Part):
    """One run of a sweep.

    Attributes:
        name: of its folder.
        values: of the keys that the sweep goes over.
        outcome: as in a run's record; "failed: reason".
        epsilon: the promise for a record, or else for a client; infinite where there is none.
        delta: that goes with it.
        metrics, pooled: of the federated model and of pooled training, as in a run's record.
        local, site_mean: of each site's own model and of the federated one, as means over the sites where both
            are defined.
        rounds: made.
        target_round: the first round whose model reaches the target; null where none does.
        cohort: clients asked in the first round.
        seconds: of all rounds together.
        bytes_up: sent by one client in one round.
        gains: label of a site -> what it gains over training alone, in the main metric.
    """

    name: str
    values: Table
    outcome: str
    epsilon: Number = None
    delta: Number = None
    metrics: Metrics = Field(default_factory=dict)
    pooled: Metrics = Field(default_factory=dict)
    local: Metrics = Field(default_factory=dict)
    site_mean: Metrics = Field(default_factory=dict)
    rounds: Count = 0
    target_round: Count | None = None
    cohort: Count = 0
    seconds: Seconds = 0.0
    bytes_up: Number = None
    gains: Metrics = Field(default_factory=dict)

    @property
    def has_failed(self) -> bool:
        """Whether there are no figures."""
        return self.outcome.startswith("failed")

    @classmethod
    def failed(cls, name: str, values: dict[str, Any], reason: str) -> SweepCell:
        """A cell without figures."""
        return cls(name=name, values=values, outcome=f"failed: {reason}")

    @classmethod
    def of(
        cls, name: str, values: dict[str, Any], record: RunRecord, main: str, target: Target | None
    ) -> SweepCell:
        """The figures of a finished run."""
        promise = next((e for e in record.privacy if math.isfinite(e.epsilon)), record.privacy[0])
        pooled, alone = (
            record.baselines.pooled,
            {m: _over_sites(record, m) for m in compare.metric_names(record)},
        )
        return cls(
            name=name,
            values=values,
            outcome=record.outcome,
            epsilon=promise.epsilon,
            delta=promise.delta,
            metrics=record.final.metrics,
            pooled=pooled.metrics if pooled else {},
            local={name: pair[1] for name, pair in alone.items()},
            site_mean={name: pair[0] for name, pair in alone.items()},
            rounds=len(record.rounds),
            target_round=target_round(record, target) if target else None,
            cohort=len(record.rounds[0].cohort) if record.rounds else 0,
            seconds=math.fsum(item.seconds for item in record.rounds),
            bytes_up=record.secure_aggregation.bytes_up_per_client,
            gains={site.label: site.gain for site in compare.per_site(record, main)},
        )


def _over_sites(record: RunRecord, metric: str) -> tuple[float | None, float | None]:
    """Federated and alone, as means over the sites where both are defined."""
    both = [site for site in compare.per_site(record, metric) if site.gain is not None]
    if not both:
        return None, None
    means = [
        math.fsum(v or 0.0 for v in values) / len(both)
        for values in zip(*((s.federated, s.local) for s in both), strict=True)
    ]
    return means[0], means[1]


def target_round(record: RunRecord, target: Target) -> int | None:
    """The first round whose model reaches the target."""
    reached = (r.round for r in record.rounds if target.is_reached(r.metrics.get(target.metric)))
    return next(reached, None)


class SweepRecord(Part):
    """A whole sweep.

    Attributes:
        name: of the experiment.
        started: when this record was made.
        axes: key -> the values that it goes over.
        main: the metric that everything is compared by; empty where no cell has one.
        target: what `target_round` is about.
        cells: in the order of the grid.
        is_natural: whether a site is the same site in all cells, and not another draw under the same name.
    """

    name: str
    started: AwareDatetime
    axes: Table
    main: str = ""
    target: Target | None = None
    cells: tuple[SweepCell, ...] = ()
    is_natural: bool = False

    @property
    def finished(self) -> list[SweepCell]:
        """The cells that have figures."""
        return [cell for cell in self.cells if not cell.has_failed]

    def groups(self) -> list[Group]:
        """The finished cells that differ in their seed only, together."""
        keys = [key for key in self.axes if key != SEED]
        found: dict[str, Group] = {}
        for cell in self.finished:
            values = {key: cell.values[key] for key in keys}
            found.setdefault(repr(values), Group(values, [])).cells.append(cell)
        return list(found.values())


class Group(NamedTuple):
    """Cells that differ in their seed only; a sweep without seeds has groups of one."""

    values: dict[str, Any]
    cells: list[SweepCell]

    def band(self, values: Sequence[float | None]) -> Band | None:
        """Mean and confidence band of one figure of these cells; None where no cell has it."""
        return band([value for value in values if value is not None and math.isfinite(value)])


class Band(NamedTuple):
    """A mean over seeds and its 95 % confidence interval, by Student's t; without an interval below two values."""

    mean: float
    low: float | None
    high: float | None
    size: int


def band(values: Sequence[float]) -> Band | None:
    """The band of some values; None of none."""
    from scipy.stats import t

    count = len(values)
    if not count:
        return None
    mean = math.fsum(values) / count
    if count < 2:
        return Band(mean, None, None, count)
    deviation = math.sqrt(math.fsum((v - mean) ** 2 for v in values) / (count - 1))
    half = float(t.ppf((1 + CONFIDENCE) / 2, count - 1)) * deviation / math.sqrt(count)
    return Band(mean, mean - half, mean + half, count)
