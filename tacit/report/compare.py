"""Puts the federated model beside its baselines."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

from tacit.metric_names import lower_is_better
from tacit.report.record import Metrics, RunRecord, SiteResult


class Row(NamedTuple):
    """One model of the comparison."""

    key: str
    title: str
    metrics: Metrics


class SiteComparison(NamedTuple):
    """One metric at one site; `gain` is positive where the federated model is the better one."""

    label: str
    test_rows: int
    federated: float | None
    local: float | None
    gain: float | None


def metric_names(record: RunRecord) -> list[str]:
    """All metrics of the run; first what early stopping monitors, else ranking (AUROC), else accuracy, else R2."""
    found = dict.fromkeys(record.final.metrics)
    for item in record.rounds:
        found.update(dict.fromkeys(item.metrics))
    evaluation = record.experiment.get("evaluation") or {}
    monitored = evaluation.get("monitor") if evaluation.get("patience") else None
    order = [monitored, "auroc", "accuracy", "r2"]
    return sorted(found, key=lambda name: order.index(name) if name in order else len(order))


def comparison(record: RunRecord) -> list[Row]:
    """The models side by side. Rows with a mean over sites compare with each other, not with the others."""
    baselines = record.baselines
    rows = [Row("federated", "Federated", record.final.metrics)]
    if baselines.pooled:
        rows.append(Row("pooled", "Pooled: all rows in one place", baselines.pooled.metrics))
    if baselines.best:
        rows.append(Row("best", "Best achievable: the generator's truth", baselines.best.metrics))
    if record.final.sites and (baselines.local or baselines.majority):
        rows.append(Row("federated", "Federated, mean over sites", mean_over_sites(record.final.sites)))
    if baselines.local:
        rows.append(Row("local", "Each site alone, mean over sites", baselines.local.metrics))
    if baselines.majority:
        rows.append(Row("majority", "Most frequent class, mean over sites", baselines.majority.metrics))
    return rows


def mean_over_sites(sites: Sequence[SiteResult]) -> Metrics:
    """The plain mean of each metric over the sites where it is defined."""
    names = dict.fromkeys(name for site in sites for name in site.metrics)
    means: Metrics = {}
    for name in names:
        values = [value for site in sites if (value := site.metrics.get(name)) is not None]
        means[name] = math.fsum(values) / len(values) if values else None
    return means


def per_site(record: RunRecord, metric: str) -> list[SiteComparison]:
    """The federated model against each site's own, in the order of the record."""
    local = record.baselines.local
    alone = {site.label: site.metrics.get(metric) for site in (local.sites if local else ())}
    sign = -1 if lower_is_better(metric) else 1
    rows = []
    for site in record.final.sites:
        federated, own = site.metrics.get(metric), alone.get(site.label)
        both = federated is not None and own is not None and math.isfinite(federated - own)
        gain = sign * (federated - own) if both else None  # type: ignore[operator]
        rows.append(SiteComparison(site.label, site.test_rows, federated, own, gain))
    return rows
