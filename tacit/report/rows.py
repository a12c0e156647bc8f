"""From what a server keeps of a run, the lines of `rounds.jsonl`, to the parts of its record."""

from __future__ import annotations

import importlib.metadata
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Final, TypeVar

from tacit.config import Experiment, SecureAggregation
from tacit.encoding import metric_sensitivity
from tacit.privacy.plan import PrivacyPlan
from tacit.report.record import ColumnShares, ConceptShares, GroupResult, Metrics, Outcomes, Round, SecureSum
from tacit.tasks import Task, load_task
from tacit.tasks.cells import Cells, Counts, cells_of
from tacit.tasks.concepts import CHANCE, Concepts, concepts_of, scores_of
from tacit.tasks.importance import Importance, importance_of, shares_of
from tacit.tasks.measures import measured
from tacit.tasks.summed import summed_of

PACKAGES: Final = ("tacit", "flwr", "torch", "opacus", "dp-accounting", "cryptography", "numpy")
Rows = Sequence[Mapping[str, Any]]
Part = TypeVar("Part")


def versions() -> dict[str, str]:
    """Versions of what a result depends on."""
    return {"python": platform.python_version(), **{p: importlib.metadata.version(p) for p in PACKAGES}}


def round_of(row: Mapping[str, Any], experiment: Experiment, metrics: Metrics | None = None) -> Round:
    """One round.

    Args:
        row: its line.
        experiment: of the run.
        metrics: exact ones of the model after it; what only a simulation can know.
    """
    epsilon = row["epsilon"]
    if epsilon is not None and experiment.insecure_seeded_noise:
        epsilon = math.inf
    return Round(
        round=row["round"],
        seconds=row["seconds"],
        cohort=tuple(row["cohort"]),
        survivors=tuple(row["survivors"]),
        metrics=metrics or {},
        epsilon=epsilon,
        private_metrics=row["metrics"],
        refusals=row["refusals"],
        attempts=row["attempts"],
        blamed=row["blamed"],
    )


def outcomes_of(
    cells: Cells,
    tables: Sequence[Counts],
    experiment: Experiment,
    noise: float = 0.0,
    round_number: int | None = None,
) -> Outcomes:
    """What sums of counted outcomes say, for the record."""
    settings = experiment.evaluation
    found = measured(cells, tables, settings.smallest_group, noise)
    return Outcomes(
        classes=cells.classes,
        confusion=found.confusion,
        metrics=dict(found.metrics),
        roc=found.roc,
        precision_recall=found.precision_recall,
        reliability=found.reliability,
        column=settings.groups,
        groups=tuple(GroupResult(**group._asdict()) for group in found.groups),
        gaps=dict(found.gaps),
        smallest_group=settings.smallest_group,
        noise=noise,
        round=round_number,
    )


def learned_outcomes(rows: Rows, experiment: Experiment, plan: PrivacyPlan) -> Outcomes | None:
    """What the server learned last of the model's outcomes; None where it did not ask."""
    task = load_task(experiment)
    if (cells := cells_of(experiment, task)) is None:
        return None
    for row, noise in _learned(rows, experiment, plan, task):
        tables = cells.tables(row["counts"])
        if tables is not None:
            return outcomes_of(cells, tables, experiment, noise, row["round"])
    return None


def learned_importance(rows: Rows, experiment: Experiment, plan: PrivacyPlan) -> ColumnShares | None:
    """What the server learned last of how much the model goes by each column; None where it did not ask."""
    task = load_task(experiment)
    if (importance := importance_of(experiment, task)) is None:
        return None
    return _last(partial(importance_from, importance), _learned(rows, experiment, plan, task))


def importance_from(
    importance: Importance, sums: Mapping[str, float], noise: float = 0.0, round_number: int | None = None
) -> ColumnShares | None:
    """Mean shares for the record; None where the sums have none."""
    found = shares_of(importance, sums, noise)
    if found is None:
        return None
    return ColumnShares(
        method=importance.method,
        columns=importance.columns,
        shares=found[0],
        noise=found[1],
        round=round_number,
    )


def learned_concepts(rows: Rows, experiment: Experiment, plan: PrivacyPlan) -> ConceptShares | None:
    """What the server learned last of which way predictions lean; None where it did not ask."""
    task = load_task(experiment)
    if (concepts := concepts_of(experiment, task)) is None:
        return None
    return _last(partial(concepts_from, concepts), _learned(rows, experiment, plan, task))


def concepts_from(
    concepts: Concepts, sums: Mapping[str, float], noise: float = 0.0, round_number: int | None = None
) -> ConceptShares | None:
    """Scores for the record; None where the sums have none."""
    found = scores_of(concepts, sums, noise)
    if found is None:
        return None
    return ConceptShares(
        concepts=tuple(concepts.declared),
        meanings=tuple(concept.text for concept in concepts.declared.values()),
        classes=concepts.schema.classes,
        shares=found.shares,
        chance=CHANCE,
        noise=found.noise,
        round=round_number,
    )


def _last(
    said: Callable[[Mapping[str, float], float, int], Part | None],
    learned: Iterator[tuple[Mapping[str, Any], float]],
) -> Part | None:
    found = (said(row["counts"], noise, row["round"]) for row, noise in learned)
    return next((part for part in found if part is not None), None)


def _learned(
    rows: Rows, experiment: Experiment, plan: PrivacyPlan, task: Task
) -> Iterator[tuple[Mapping[str, Any], float]]:
    """The rounds that have sums beside their metrics, the last one first, with the noise in each of these sums."""
    each = (plan.metrics_noise_multiplier or 0.0) * metric_sensitivity(task, *summed_of(experiment, task))
    for row in reversed(rows):
        if row.get("counts"):
            yield row, each * math.sqrt(len(row["survivors"]))


def secure_sum_of(
    settings: SecureAggregation, rows: Rows, clipped_fraction: float | None = None
) -> SecureSum:
    """How updates were added up, by a run's lines; `clipped_fraction` is what only a simulation can know."""
    bytes_up = max((row["bytes_up"] for row in rows), default=0)
    if not settings.enabled:
        return SecureSum(enabled=False, bytes_up_per_client=bytes_up)
    return SecureSum(
        enabled=True,
        engine=settings.engine,
        protocol=settings.protocol,
        bits=max((row["bits"] for row in rows if row["bits"]), default=None),
        threshold=max((row["threshold"] for row in rows if row["threshold"]), default=None),
        bytes_up_per_client=bytes_up,
        clipped_fraction=clipped_fraction,
    )
