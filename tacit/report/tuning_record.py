"""The record of a search: the content of tuning.json, and all that its table and its page are made from.

Guarantees:
    The record of a search that is counted holds nothing but the best trial, and what it cost.
"""

from __future__ import annotations

import math
from typing import Literal

from pydantic import AwareDatetime, Field, model_validator

from tacit.report.record import Count, Epsilon, Metrics, Number, Part, Seconds, Table


class TuningTrial(Part):
    """One trial.

    Attributes:
        name: of its folder.
        values: of the keys that the search goes over.
        outcome: as in a run's record; "failed: reason".
        value: what it has reached in the metric; null where that is undefined.
        metrics: of its last round; of a search that is counted those that it has paid for.
        epsilon: the promise for a record, or else for a client; infinite where there is none.
        delta: that goes with it.
        seconds: of all rounds together.
    """

    name: str
    values: Table
    outcome: str
    value: Number = None
    metrics: Metrics = Field(default_factory=dict)
    epsilon: Number = None
    delta: Number = None
    seconds: Seconds = 0.0


class Selection(Part):
    """What publishing the best of a random number of trials costs.

    Attributes:
        epsilon: of everything that the best trial has released, by Renyi DP.
        delta: that goes with it.
        mean: how many trials were to be expected.
        eta: shape of the distribution of their number.
    """

    epsilon: Epsilon
    delta: float
    mean: float
    eta: float


class TuningRecord(Part):
    """A whole search.

    Attributes:
        name: of the experiment.
        started: when this record was made; of a search that is counted the day, because its end says how long it took.
        method: how values were proposed.
        space: key -> its values, in words.
        logarithmic: keys whose range goes by its logarithm.
        metric: what was to be best; empty where no trial has one.
        lower: whether less of it is better.
        round: whose value counts.
        seed: of the search; null of one that is counted.
        trials: in the order in which they were begun; none of a search that is counted.
        best: the best of them; null where none has a value.
        importances: of keys, adding up to 1; empty where too few trials could say it.
        accounting: as in `[tuning]`.
        public: why the data count as public; empty = they do not.
        selection: what the choice cost; null where it is not counted.
    """

    name: str
    started: AwareDatetime
    method: Literal["random", "grid", "bayesian"]
    space: dict[str, str]
    logarithmic: tuple[str, ...] = ()
    metric: str = ""
    lower: bool = False
    round: Literal["last", "best"] = "last"
    seed: Count | None = None
    trials: tuple[TuningTrial, ...] = ()
    best: TuningTrial | None = None
    importances: dict[str, float] = Field(default_factory=dict)
    accounting: Literal["none", "public", "private"] = "none"
    public: str = ""
    selection: Selection | None = None

    @model_validator(mode="after")
    def _tells_no_more_than_is_paid_for(self) -> TuningRecord:
        if (self.accounting == "private") != (self.selection is not None):
            raise ValueError("a search is counted, or it has no epsilon")
        told = self.trials or self.importances or self.seed is not None
        timed = self.best is not None and (self.best.name or self.best.seconds)
        if self.selection is not None and (told or timed):
            raise ValueError("how many trials there were, and what the others found, is not paid for")
        return self

    @property
    def found(self) -> list[TuningTrial]:
        """The trials that have a value."""
        return [trial for trial in self.trials if trial.value is not None]

    @property
    def failed(self) -> list[TuningTrial]:
        """The trials without figures."""
        return [trial for trial in self.trials if trial.outcome.startswith("failed")]

    @property
    def spent(self) -> tuple[float, float, int] | None:
        """Epsilon and delta of all private trials together, by plain addition, and how many they are."""
        private = [t for t in self.trials if t.epsilon is not None and math.isfinite(t.epsilon)]
        if not private:
            return None
        epsilon, delta = (
            math.fsum(getattr(t, name) or 0.0 for t in private) for name in ("epsilon", "delta")
        )
        return epsilon, delta, len(private)
