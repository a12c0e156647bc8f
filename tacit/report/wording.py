"""The fixed sentences of a privacy statement: neighbouring relations, trust, and what is not covered."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Context
from typing import Any

from tacit.learning import SYNTHESIS
from tacit.report.record import PrivacyEntry, RunRecord, SecureSum, Unit

RELATIONS: dict[Unit, str] = {
    "record": "adding or removing one record of one site",
    "client": "replacing everything one client contributes by nothing (zeros)",
    "none": "none: no two inputs are promised to look alike",
}
# Key of the record -> what it is called, and which sums the server has seen for it.
EXPLAINED = {
    "importance": (
        "Importance of columns that the server learned",
        "sums of each column's share in what decides a prediction, over all clients of each round",
    ),
    "concepts": (
        "Concepts that the server learned of",
        "sums of how often a prediction leans on each concept, by class, over all clients of each round",
    ),
}


def protected(unit: Unit, experiment: Mapping[str, Any]) -> str:
    """What a promise is about, with what one record is in this experiment's data."""
    if unit == "record":
        return f"each single record: {_one_record(experiment)}"
    return {"client": "everything that a client has, as a whole", "none": "nothing"}[unit]


def _one_record(experiment: Mapping[str, Any]) -> str:
    data, kind = experiment.get("data") or {}, str((experiment.get("task") or {}).get("kind", "tabular"))
    arrays = data.get("arrays") or {}
    series = arrays.get("series")
    if arrays.get("grades"):
        return "one whole list of one site, a query with all its items, their features and relevances"
    if series is None:
        is_array = bool(arrays) or kind.startswith("array")
        return "one array, an image say, of one site" if is_array else "one row of one site's table"
    if not series.get("horizon"):
        return "one whole series of one site, all its measurements together"
    steps, horizon = arrays["shape"][1], series["horizon"]
    shared = -(-(steps + horizon) // series.get("stride", 1))
    most = series.get("most_windows", 0)
    return (
        f"one window of {steps} steps and the {horizon} after them. One measurement is in up to "
        f"{min(shared, most) if most else shared} windows, and a person's series makes {most or 'as many as fit'}: "
        "with r windows the exposure is r times epsilon"
    )


def received(experiment: Mapping[str, Any]) -> str:
    """What recipients of the final model see."""
    if str((experiment.get("task") or {}).get("kind")) in SYNTHESIS:
        return "the final model. However many rows it makes up, they are as private as it is, and no more"
    return "the final model"


def trusted(unit: Unit, *, noise: str = "", secure: SecureSum | None = None) -> str:
    """Who must be trusted for the promise to hold.

    Args:
        unit: unit of privacy.
        noise: "distributed" or "central", for unit "client".
        secure: how updates were added up.
    """
    if unit == "record":
        return "nobody outside the site: each update is private before it leaves the site that made it"
    if unit == "none":
        return PrivacyEntry.nothing().trusted
    if noise != "distributed" and secure is not None and secure.enabled and secure.engine == "protocol":
        return "the coordinating server: it sees the exact sum of each round before it adds the noise"
    if noise != "distributed" or secure is None or not secure.enabled:
        return "the coordinating server: it sees each client's clipped update before the noise is added"
    if secure.engine == "ideal":
        return "the coordinating server and the clients, to follow the protocol"
    return "no single party; at most the stated number of clients may collude with the coordinating server"


# Of what a site keeps for itself, which is in nothing that leaves it: by unit of privacy and strategy.
KEPT: dict[tuple[Unit, str], str] = {
    ("record", "fedper"): (
        "The part of the model that each site keeps never leaves it and costs nothing. It is trained by the same "
        "noised steps, all of which are counted: a site that publishes it has the same promise for it."
    ),
    ("record", "ditto"): (
        "The model that each site keeps for itself: it never leaves the site, costs nothing, and is promised nothing. "
        "Publishing it is a release that no ledger has paid for."
    ),
    ("record", "scaffold"): (
        "The control variate that each site keeps follows from updates that are private and counted already: it never "
        "leaves, and is covered by the same promise."
    ),
    (
        "client",
        "fedper",
    ): "The part of the model that each site keeps: it never leaves the site and is promised nothing.",
    (
        "client",
        "fedbn",
    ): "The BatchNorm layers that each site keeps: they never leave it and are promised nothing.",
    (
        "client",
        "ditto",
    ): "The model that each site keeps for itself: it never leaves it and is promised nothing.",
    (
        "client",
        "scaffold",
    ): "The control variate that each site keeps: it never leaves the site and is promised nothing.",
}


def not_covered(unit: Unit, *, simulation: bool) -> tuple[str, ...]:
    """What no promise of this unit is about; at least this much is in every statement."""
    points = [
        "Participation: who took part, and in which rounds, is visible to the coordinating server and to every site.",
        "Sizes: the number of rows that a site has declared is public.",
        "Poisoning: a participant may train on false data or send a false update.",
        "Traffic analysis: times and sizes of messages are visible on the network.",
        "The held-out test rows: they are in no training step, and figures computed on them are exact "
        "unless they are listed as private.",
        "What the model teaches about people in general: a finding that holds for the population can "
        "be applied to somebody whose record was never used.",
    ]
    if unit == "record":
        points.insert(
            0,
            "A person with several records: with r records the exposure is r times epsilon; delta grows too.",
        )
        points.append("Floating-point attacks: record-level noise is drawn in double precision, not exactly.")
    if unit == "client":
        points.append("Training at the site: what a site's own people see of its updates and models there.")
    if simulation:
        points += [
            "The pooled and local-only baselines: they are trained without privacy.",
            "The exact figures of report.json and report.html: single sites (final.sites), the partition, "
            "learning curves, clipped updates. They are as confidential as the rows.",
            "Tuning: runs that were made before this one to choose its settings.",
        ]
    return tuple(points)


def all_not_covered(record: RunRecord) -> tuple[str, ...]:
    """The standard exclusions of every unit in the record, then those that the record adds."""
    points = [p for e in record.privacy for p in not_covered(e.unit, simulation=record.is_simulation)]
    points += [point for entry in record.privacy for point in entry.not_covered]
    return tuple(dict.fromkeys(points))


def upper(bound: float, digits: int = 4) -> str:
    """A bound as text, rounded up, so that the page never claims more than was computed."""
    if bound == float("inf"):
        return "infinite"
    rounded = Context(prec=digits, rounding=ROUND_CEILING).create_decimal(repr(float(bound)))
    return f"{float(rounded):.{digits}g}"


def value_text(value: object, digits: int = 6) -> str:
    """A value of an experiment's key as it is read most easily."""
    if isinstance(value, float):
        return f"{value:.{digits}g}"
    return value if isinstance(value, str) else json.dumps(value)


def metric_text(value: float | None) -> str:
    """A metric to three digits; "-" where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if math.isfinite(value) else "infinite"
