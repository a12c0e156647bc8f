"""Which values a search tries next, and what it has found.

Optuna proposes: each trial by a sampler of its own, seeded by the search's seed and the trial's number, from a study
that holds the trials before it. So with one process the trials are the same whether a search was interrupted or not.

Guarantees:
    The values of a trial that is counted are drawn from the operating system, before anything runs.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

from simulations.sweep.grid import Axis, Cell
from simulations.sweep.metric import check_known
from simulations.tuning import counted
from simulations.tuning.folder import SearchFolder
from simulations.tuning.space import DEFAULT_TRIALS, Dimension, Range, Trials, Tuning, combinations
from tacit.errors import ConfigError, MissingExtra
from tacit.metric_names import lower_is_better
from tacit.report import compare
from tacit.report.record import RunRecord

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution
    from optuna.samplers import BaseSampler

MOST_DRAWS: Final = 100  # of one trial, until its values go together
ENOUGH: Final = 10  # trials, before anything is said of how much a key matters

Values = Mapping[str, Any]


class Search:
    """The trials of a search, begun or to be begun.

    Args:
        tuning: the settings.
        dimensions: the space.
        trials: makes their experiments.
        folder: where they are kept; this process has it for itself.
    """

    def __init__(
        self, tuning: Tuning, dimensions: Sequence[Dimension], trials: Trials, folder: SearchFolder
    ) -> None:
        self._tuning, self._dimensions, self._trials, self._folder = tuning, dimensions, trials, folder
        self._distributions = {d.key: _distribution(d) for d in dimensions}
        self._study = _study()
        self._numbers: list[int] = []  # of each trial, in the study
        self._cells: dict[int, Cell] = {}
        asked = folder.read(tuning)
        self.values: list[Values] = list(asked.values) if asked else []
        self._is_counted = tuning.accounting == "private"
        if asked and self._is_counted:
            self.total = asked.total
        else:
            self._begin()
        self.values = self.values[: self.total]
        for number in range(len(self.values)):
            folder.check(self.cell(number))
            self._replay(number)
        if self._is_counted and len(self.values) < self.total:
            self.values += [self._draw(number) for number in range(len(self.values), self.total)]
            folder.write(tuning, self.total, self.values)

    def _begin(self) -> None:
        """Decides how many trials there are and, of a grid, what they try.

        A number that is counted is kept before anything else happens: what fails more often the more trials there are
        would otherwise have it drawn again.
        """
        tuning = self._tuning
        if tuning.method == "grid":
            self.values = list(combinations(self._dimensions))
        self.total = tuning.trials or (len(self.values) if tuning.method == "grid" else DEFAULT_TRIALS)
        if self._is_counted:
            self.total = counted.number_of(tuning).draw()
        self._folder.write(tuning, self.total, self.values)

    def cell(self, number: int) -> Cell:
        """A trial that has its values."""
        if number not in self._cells:
            values = self.values[number]
            self._cells[number] = Cell(f"{number + 1:04}", values, self._trials.trial(values))
        return self._cells[number]

    def cells(self) -> Iterator[tuple[int, Cell]]:
        """All trials; the values of one are decided when it is asked for."""
        for number in range(self.total):
            if number == len(self.values):
                self.values.append(self._draw(number))
                self._folder.write(self._tuning, self.total, self.values)
            yield number, self.cell(number)

    @property
    def num_finished(self) -> int:
        """Trials that are not run again."""
        return sum(self._folder.is_finished(self.cell(number)) for number in range(len(self.values)))

    def done(self, number: int, reason: str = "") -> None:
        """Takes note of a trial that has ended."""
        cell = self.cell(number)
        if reason and self._is_counted:
            self._folder.fail(cell, reason)
        self._tell(number, None if reason else self.record(cell))

    def record(self, cell: Cell) -> RunRecord | None:
        """What a trial has recorded; None of one that is not finished, or has failed."""
        return None if self._folder.failure(cell) else self._folder.record(cell)

    def failure(self, cell: Cell) -> str:
        """Why a trial counts as one without a result."""
        return self._folder.failure(cell)

    def importances(self) -> dict[str, float]:
        """How much each key matters, by PED-ANOVA, adding up to 1; empty where too few trials could say it."""
        from optuna.importance import PedAnovaImportanceEvaluator, get_param_importances

        values = [t.value for t in self._study.get_trials(deepcopy=False) if t.value is not None]
        if len(self._dimensions) < 2 or len(values) < ENOUGH or len(set(values)) < 2:
            return {}
        return dict(get_param_importances(self._study, evaluator=PedAnovaImportanceEvaluator()))

    # -- Optuna ------------------------------------------------------------------------------------------------------

    def _draw(self, number: int) -> Values:
        """Values that go together, as the method proposes them."""
        for attempt in range(MOST_DRAWS):
            self._study.sampler = self._sampler(number, attempt)
            trial = self._study.ask(self._distributions)
            values = {key: _decoded(d, trial.params[key]) for key, d in self._by_key().items()}
            try:
                self._check(values)
            except ConfigError as error:
                impossible = error
                self._fail(trial.number)
                continue
            self._numbers.append(trial.number)
            return values
        raise ConfigError(
            f"of {MOST_DRAWS} trials none is possible; the last: {impossible.reason}",
            source=impossible.source,
            key=impossible.key,
        )

    def _check(self, values: Values) -> None:
        """Raises `ConfigError` where values do not go together."""
        trial = self._trials.trial(values)
        if self._is_counted:
            counted.check_alike(self._trials.trial({}), trial)

    def _by_key(self) -> dict[str, Dimension]:
        return {dimension.key: dimension for dimension in self._dimensions}

    def _sampler(self, number: int, attempt: int) -> BaseSampler:
        import numpy as np
        from optuna.samplers import RandomSampler, TPESampler

        if self._is_counted:
            # Seeded by the operating system: whoever knew a trial's values beforehand could count the trials.
            return RandomSampler()
        seed = int(np.random.SeedSequence([self._tuning.seed, number, attempt]).generate_state(1)[0])
        return TPESampler(seed=seed) if self._tuning.method == "bayesian" else RandomSampler(seed=seed)

    def _replay(self, number: int) -> None:
        """Puts a trial of which the values are known into the study, with its result where it has one."""
        known = {key: _encoded(d, self.values[number][key]) for key, d in self._by_key().items()}
        self._study.enqueue_trial(known)
        trial: Trial = self._study.ask(self._distributions)
        self._numbers.append(trial.number)
        cell = self.cell(number)
        if self._folder.is_finished(cell):
            self._tell(number, self.record(cell))

    def _tell(self, number: int, record: RunRecord | None) -> None:
        value = None if record is None else score(record, self._tuning)
        if value is None:
            self._fail(self._numbers[number])
        else:
            self._study.tell(self._numbers[number], value)

    def _fail(self, number: int) -> None:
        from optuna.trial import TrialState

        self._study.tell(number, state=TrialState.FAIL)


def _study() -> Study:
    try:
        import optuna
    except ImportError:
        raise MissingExtra("tacit tune", "simulation") from None
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(direction="maximize")


def _distribution(dimension: Dimension) -> BaseDistribution:
    try:
        from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution
    except ImportError:
        raise MissingExtra("tacit tune", "simulation") from None

    if isinstance(dimension, Axis):
        return CategoricalDistribution([_encoded(dimension, value) for value in dimension.values])
    if dimension.is_whole:
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(float(dimension.low), float(dimension.high), log=dimension.log)


def _encoded(dimension: Dimension, value: Any) -> Any:
    """As Optuna knows it: it has no lists among its categories."""
    return value if isinstance(dimension, Range) else json.dumps(value)


def _decoded(dimension: Dimension, value: Any) -> Any:
    return value if isinstance(dimension, Range) else json.loads(value)


def metric_of(record: RunRecord, tuning: Tuning) -> str:
    """The metric that trials are compared by.

    Raises:
        ConfigError: there is none of that name.
    """
    known = list(dict.fromkeys(name for row in curve(record, tuning) for name in row))
    if tuning.metric and known:
        check_known(tuning.metric, known, key="tuning.metric")
    main = next((name for name in compare.metric_names(record) if name in known), known[0] if known else "")
    return tuning.metric or main


def curve(record: RunRecord, tuning: Tuning) -> list[Mapping[str, float | None]]:
    """Metrics by round, the last ones last: exact ones, or of a search that is counted those that were paid for."""
    if tuning.accounting == "private":
        return [item.private_metrics for item in record.rounds] or [{}]
    return [*(item.metrics for item in record.rounds), record.final.metrics]


def value_of(record: RunRecord, tuning: Tuning) -> float | None:
    """What a trial has reached in the metric; None where it is undefined."""
    name, rows = metric_of(record, tuning), curve(record, tuning)
    found = [row.get(name) for row in (rows if tuning.round == "best" else rows[-1:])]
    numbers = [value for value in found if value is not None and math.isfinite(value)]
    if not numbers:
        return None
    return min(numbers) if lower_is_better(name) else max(numbers)


def score(record: RunRecord, tuning: Tuning) -> float | None:
    """The same, so that more is better."""
    value = value_of(record, tuning)
    return -value if value is not None and lower_is_better(metric_of(record, tuning)) else value
