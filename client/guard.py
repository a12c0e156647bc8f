"""The site's say: permission for one release, or a refusal with its reason."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from client.site import Site
from tacit.config import Experiment
from tacit.encoding import STATISTICS, STATISTICS_ROUND, empty_statistics, needs_statistics
from tacit.errors import PrivacyBudgetExceeded, Refused
from tacit.privacy.ledger import Ledger
from tacit.tasks.weights import array_shapes

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


def check(run: Run, site: Site, run_id: str, round_number: int, arrays: Arrays) -> None:
    """Raises `Refused` with a reason code unless this site may take part in this round.

    Guarantees:
        A site whose budget is spent refuses, in every run and after every restart.
    """
    admit(site, run.experiment)
    site.policy.check_model(sum(array.size for array in arrays.values()))
    is_statistics = round_number == STATISTICS_ROUND and needs_statistics(run.experiment)
    if not (is_statistics or 1 <= round_number <= run.experiment.training.rounds):
        raise Refused("round", f"round {round_number} is not one of the experiment's")
    if is_statistics != (set(arrays) == {STATISTICS}):
        raise Refused("round", "statistics are asked for in round 0 and nowhere else")
    _check_arrays(
        arrays,
        {name: array.shape for name, array in empty_statistics(run.experiment).items()}
        if is_statistics
        else array_shapes(run.trainer.model),
    )
    if run.plan.unit != "none":
        with site.ledger() as ledger:
            check_budget(run, site, ledger, run_id, round_number)


def check_budget(run: Run, site: Site, ledger: Ledger, run_id: str, round_number: int) -> None:
    """Raises `Refused` unless the site's ledger allows one more of this round's releases, now."""
    releases = run.plan.releases(round_number)
    purpose = next(iter(releases))
    made = [entry for entry in ledger.entries if entry.purpose == purpose]
    allowed = 1 if round_number == STATISTICS_ROUND else run.plan.debits
    if sum(entry.run == run_id for entry in made) >= allowed:
        raise PrivacyBudgetExceeded(f"all debits of this run for {purpose} are made")
    ceiling, delta = site.policy.epsilon_ceiling, site.policy.delta or run.plan.delta
    if ceiling is not None and ledger.would_exceed(releases.values(), ceiling, delta, run=run_id):
        raise PrivacyBudgetExceeded(f"one more round would exceed epsilon {ceiling} of {site.data_set!r}")
    hourly = site.policy.max_rounds_per_hour
    an_hour_ago = datetime.now(UTC) - timedelta(hours=1)
    if len(made) >= hourly and datetime.fromisoformat(made[-hourly].time) > an_hour_ago:
        raise Refused("rate", f"{hourly} rounds within the last hour")


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
