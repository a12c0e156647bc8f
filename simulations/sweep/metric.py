"""Whether there is a metric of the name that somebody asks for: said before anything runs where the tasks tell."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from pathlib import Path

from tacit.config import Experiment
from tacit.errors import ConfigError, did_you_mean
from tacit.tasks import names_of_metrics


def check_metric(
    name: str,
    experiments: Iterable[Experiment],
    *,
    key: str,
    source: str | Path = "",
    summed: bool = False,
) -> None:
    """Raises `ConfigError` where no task of these experiments computes a metric of that name.

    Args:
        name: of the metric; "" = none is asked for.
        experiments: what would be run.
        key: that names the metric, for the error.
        source: the file with that key.
        summed: whether only metrics of which sums travel count.
    """
    if not name:
        return
    tasks = {
        experiment.task.model_dump_json(include={"kind", "options"}): experiment for experiment in experiments
    }
    names = [names_of_metrics(experiment, summed=summed) for experiment in tasks.values()]
    if all(names):
        check_known(name, {known for some in names for known in some}, key=key, source=source)


def check_known(name: str, known: Collection[str], *, key: str, source: str | Path = "") -> None:
    """Raises `ConfigError` where it is none of these."""
    if name not in known:
        reason = f"there is no metric {name!r}; there are {', '.join(sorted(known))}"
        raise ConfigError(reason + did_you_mean(name, known), source=source, key=key)
