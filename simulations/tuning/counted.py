"""A search that is counted: what it needs so that the theorem applies, and how many trials it makes.

Guarantees:
    A search whose cost the theorem does not bound is refused before anything runs.
"""

from __future__ import annotations

from collections.abc import Sequence

from simulations.tuning.space import DEFAULT_TRIALS, SPACE, Tuning
from tacit.config import Experiment
from tacit.errors import ConfigError
from tacit.privacy.accountant import Event
from tacit.privacy.plan import PrivacyPlan
from tacit.privacy.selection import NumTrials, epsilon_of_best

Released = tuple[tuple[Event, ...], float]  # everything that one run's plan pays for, and its delta


def number_of(tuning: Tuning) -> NumTrials:
    """The distribution of the number of trials of a search that is counted."""
    return NumTrials(tuning.trials or DEFAULT_TRIALS, tuning.eta)


def released(experiment: Experiment) -> Released:
    """All that a run may release: training and metrics for every debit of its plan, and any statistics."""
    plan = PrivacyPlan.of(experiment)
    return plan.events(plan.debits), plan.delta


def total_epsilon(tuning: Tuning, base: Experiment) -> float:
    """Epsilon of publishing the best trial, at the delta of its plan."""
    events, delta = released(base)
    return epsilon_of_best(events, delta, number_of(tuning))


def check(
    tuning: Tuning, base: Experiment, corners: Sequence[tuple[str, Experiment]], *, source: str = ""
) -> None:
    """Raises `ConfigError` unless trials are independent, alike, private, and compared by what they have paid for.

    Args:
        tuning: the settings.
        base: the experiment.
        corners: the experiment with each key at the ends of its range: none may change what a run releases, or the
            trials are not all bounded by one curve.
        source: file of the settings, for errors.
    """

    def refused(reason: str, key: str = "tuning.accounting") -> ConfigError:
        return ConfigError(reason, source=source, key=key)

    if tuning.method != "random":
        raise refused(
            f'"private" needs method = "random": the theorem is about trials that do not depend on each other, '
            f'and those of "{tuning.method}" do'
        )
    if tuning.trials == 1:
        raise refused("is the number to expect, and a single one hides nothing: 2 or more", "tuning.trials")
    if base.privacy.client is not None:
        raise refused('"private" counts records; the promise of [privacy.client] would be left out')
    if base.privacy.record is None or base.insecure_seeded_noise:
        raise refused(
            '"private" needs trials that are private themselves: set [privacy.record], without seeded noise'
        )
    if not base.evaluation.metrics:
        raise refused(
            '"private" compares trials by metrics that they have paid for: set evaluation.metrics = true and '
            "privacy.record.metrics_share, e.g. 0.1"
        )
    for key, corner in corners:
        check_alike(base, corner, key, source)


def check_alike(base: Experiment, trial: Experiment, key: str = "", source: str = "") -> None:
    """Raises `ConfigError` where a trial would not release the same as the others, at the same price.

    Args:
        base: what the others run.
        trial: what is tried.
        key: of the space, which differs; "" = several.
        source: file of the settings, for errors.
    """
    is_private = trial.privacy.record is not None and not trial.insecure_seeded_noise
    unlike = released(trial) != released(base) or trial.evaluation != base.evaluation
    if not is_private or trial.privacy.client is not None or unlike:
        raise ConfigError(
            'changes what a run releases, or what it is compared by: with accounting = "private" all trials need '
            "the same plan of releases",
            source=source,
            key=f"{SPACE}.{key}" if key else SPACE,
        )
