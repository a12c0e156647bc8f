"""The site's say: permission for one release, or a refusal with its reason."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from tacit.config import Experiment
from tacit.encoding import STATISTICS, STATISTICS_ROUND, empty_statistics, needs_statistics
from tacit.errors import PrivacyBudgetExceeded, Refused
from tacit.privacy.accountant import Event
from tacit.privacy.adaptive import clip_value
from tacit.privacy.ledger import Ledger
from tacit.privacy.plan import SUM, PrivacyPlan, unit_of

if TYPE_CHECKING:
    from client.participant import Run

Arrays = Mapping[str, NDArray[Any]]


def admit(site: Site, experiment: Experiment) -> None:
    """Raises `Refused` unless the site's policy allows the experiment.

    Guarantees:
        No code that an experiment names is imported or called before the site's policy has allowed it.
    """
    site.policy.check(experiment)
    if experiment.insecure_seeded_noise and site.policy.epsilon_ceiling is not None:
        raise Refused("not-private", "the experiment's noise follows from a seed that the server knows")


class Received(NamedTuple):
    """What a model that came in says to every site of a process alike.

    Attributes:
        num_parameters: its size.
        norm: Euclidean.
        problem: why no site trains from it in this round; None where nothing speaks against it.
    """

    num_parameters: int
    norm: float
    problem: Refused | None

    @classmethod
    def of(cls, run: Run, round_number: int, arrays: Arrays) -> Received:
        """Looks at each value once, however many sites are asked."""
        size = sum(array.size for array in arrays.values())
        try:
            _check_round(run, round_number, arrays)
        except Refused as problem:
            return cls(size, math.inf, problem)
        return cls(size, _norm(arrays), None)


def check(run: Run, site: Site, run_id: str, round_number: int, arrays: Arrays) -> None:
    """Raises `Refused` with a reason code unless this site may take part in this round.

    Guarantees:
        A site whose budget is spent refuses, in every run and after every restart.
    """
    admit(site, run.experiment)
    check_received(site, Received.of(run, round_number, arrays))
    if run.plan.is_private:
        with site.ledger() as ledger:
            check_budget(run, site, ledger, run_id, round_number)


def check_received(site: Site, model: Received) -> None:
    """Raises `Refused` unless this site trains from the model that came in."""
    site.policy.check_model(model.num_parameters)
    if model.problem is not None:
        raise model.problem
    # From a longer one an update says what the server chose, not what the records say.
    if model.norm > (largest := site.policy.max_model_norm):
        raise Refused(
            "model-norm", f"the model received has norm {model.norm:g}; at most {largest:g} is allowed"
        )


def _check_round(run: Run, round_number: int, arrays: Arrays) -> None:
    """Refuses a round that the experiment does not have, and arrays that are not that round's."""
    is_statistics = round_number == STATISTICS_ROUND and needs_statistics(run.experiment)
    if not (is_statistics or 1 <= round_number <= run.experiment.training.rounds):
        raise Refused("round", f"round {round_number} is not one of the experiment's")
    if is_statistics != (set(arrays) == {STATISTICS}):
        raise Refused("round", "statistics are asked for in round 0 and nowhere else")
    _check_arrays(
        arrays,
        {name: array.shape for name, array in empty_statistics(run.experiment).items()}
        if is_statistics
        else run.model_shapes(arrays),
    )


def check_budget(
    run: Run, site: Site, ledger: Ledger, run_id: str, round_number: int, *, again: bool = False
) -> None:
    """Raises `Refused` unless the site's ledger allows one more of this round's releases, now.

    Guarantees:
        A run that has paid under one experiment is refused under every other, after every restart too.
        With `dp_ftrl` a site is in no two rounds less than `min_separation` apart, whatever it is asked.
    """
    if ledger.is_of_another(run_id, run.digest.hex()):
        raise Refused("experiment", "a run of this id was begun under another experiment")
    if not run.plan.is_private:
        return
    _check_separation(run.experiment.strategy.separation, ledger.last_round(run_id), round_number)
    releases = priced(run.plan, round_number, again=again)
    for purpose in releases:
        made = ledger.num_debits(run_id, purpose)
        if made >= (1 if round_number == STATISTICS_ROUND else run.plan.debits_of(purpose)):
            raise PrivacyBudgetExceeded(f"all debits of this run for {purpose} are made")
    for unit, events in _by_unit(run.plan, releases).items():
        _check_ceiling(run, site, ledger, run_id, unit, events)
    first = next(iter(releases))
    times, hourly = ledger.times_of(first), site.policy.max_rounds_per_hour
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    if len(times) >= hourly and datetime.fromisoformat(times[-hourly]) > an_hour_ago:
        raise Refused("rate", f"{hourly} rounds within the last hour")


def _check_separation(separation: int, last: int, round_number: int) -> None:
    """Another attempt at the last round is none more; what is paid for is that only one sum of it is released."""
    if separation > 1 and last not in (0, round_number) and round_number - last < separation:
        raise Refused("too-soon", f"round {round_number}, less than {separation} rounds after round {last}")


def priced(plan: PrivacyPlan, round_number: int, *, again: bool) -> dict[str, Event]:
    """What a round releases, by purpose; of an update that was paid for before, only what its new noise costs."""
    releases = plan.releases(round_number)
    return {SUM: releases[SUM]} if again and SUM in releases else releases


def _by_unit(plan: PrivacyPlan, releases: Mapping[str, Event]) -> dict[str, list[Event]]:
    """What the releases add to the figure of each unit, as the ledger will count them."""
    events: dict[str, list[Event]] = {}
    for purpose, event in releases.items():
        events.setdefault(unit_of(purpose), []).append(event)
    if plan.unit == "client":
        events["record"] = [event.doubled() for event in events["client"]]
    return events


def _check_ceiling(
    run: Run, site: Site, ledger: Ledger, run_id: str, unit: str, events: Sequence[Event]
) -> None:
    ceiling, delta, experiment = site.policy.epsilon_ceiling, site.policy.delta, run.digest.hex()
    if ceiling is None:
        return
    assert delta is not None  # a policy with a ceiling states it
    if ledger.would_exceed(events, ceiling, delta, run=run_id, experiment=experiment, unit=unit):
        raise PrivacyBudgetExceeded(
            f"one more round would exceed epsilon {ceiling} per {unit} of {site.data_set!r}"
        )


def check_clip(run: Run, site: Site, clip: str) -> None:
    """Raises `Refused` unless the clip norm in force is one that the experiment and this site allow.

    Whatever it is, an update takes no more of the sum than its bound in integers: it is use that depends on it.
    """
    budget = run.experiment.privacy.client
    adapts = budget is not None and budget.target_quantile > 0
    if budget is None or not adapts or not clip:
        if clip or adapts:
            raise Refused("clip", "a clip norm is sent where it adapts, and nowhere else")
        return
    value = clip_value(clip)
    if not budget.clip_range[0] <= value <= min(budget.clip_range[1], site.policy.max_update_norm):
        raise Refused("clip", f"a clip norm of {value:g} is out of range")


def check_variate(run: Run, site: Site, variate: Arrays) -> None:
    """Raises `Refused` unless a control variate came where the strategy has one, and one that an update could be."""
    if (run.experiment.strategy.name == "scaffold") != bool(variate):
        raise Refused("variate", 'a control variate is sent with name = "scaffold", and nowhere else')
    if not variate:
        return
    if {name: array.shape for name, array in variate.items()} != run.model_shapes(variate):
        raise Refused("variate", "the control variate has other arrays than the model")
    if not _norm(variate) <= site.policy.max_model_norm:  # true for NaN too
        raise Refused("variate", "the control variate is longer than a model may be, or not finite")


def check_cohort(run: Run, site: Site, num_masking: int) -> None:
    """Raises `Refused` where a sum over so many clients hides this site's update among too few honest ones."""
    honest = num_masking - run.experiment.secure_aggregation.max_corrupt
    if honest < site.policy.min_honest:
        raise Refused("cohort", f"{honest} honest vectors; at least {site.policy.min_honest} are required")


def _check_arrays(arrays: Arrays, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuses what is not the task's own model, in float32 and finite."""
    if {name: tuple(array.shape) for name, array in arrays.items()} != shapes:
        raise Refused("model-layout", "the model received has other arrays than the task's model")
    for name, array in arrays.items():
        if array.dtype != np.float32:
            raise Refused("model-layout", f"array {name!r} is of type {array.dtype}")
        if not np.isfinite(array).all():
            raise Refused("model-values", f"array {name!r} has a value that is not finite")


def _norm(arrays: Arrays) -> float:
    """Euclidean norm over all arrays."""
    return math.sqrt(sum(float(np.square(array, dtype=np.float64).sum()) for array in arrays.values()))
