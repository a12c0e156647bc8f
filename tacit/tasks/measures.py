"""What sums of cells say of a model: confusion matrix, curves, calibration, and the same by group.

Counts may be noised. One below zero is taken as zero, and nothing is said of fewer records than can be told from noise:
neither of a group, nor of all.

Guarantees:
    Where all counts together are below three standard deviations of their noise, no figure is given.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import numpy as np

from tacit.tasks.cells import Cells, Counts

SIGNIFICANT: Final = 3.0  # standard deviations of their noise that counts are shown from

Curve = tuple[tuple[float, ...], tuple[float, ...]]  # across, up


class Group(NamedTuple):
    """One group.

    Attributes:
        name: a category, or "others".
        records: how many, whole; None = so few that they are not told.
        metrics: accuracy; of two classes also `selected` (share predicted as the second class), `recall` and
            `false_alarms`. Empty where records is None.
    """

    name: str
    records: int | None
    metrics: dict[str, float]


class Measured(NamedTuple):
    """All that follows from one sum of cells.

    Attributes:
        confusion: rows are truths, columns predictions, as counts; empty where noise has left nothing.
        metrics: by name; what is not defined is left out.
        roc: false and true positive rates; empty for more than two classes.
        precision_recall: recall and precision; likewise.
        reliability: mean probability and share that was right (of two classes: that is of the second one), by bin.
        groups: where they were asked for.
        gaps: largest less smallest over the groups that are shown: of `selected`, demographic parity; the larger one
            of recall and false alarms, equalised odds; of accuracy.
    """

    confusion: tuple[tuple[float, ...], ...]
    metrics: dict[str, float]
    roc: Curve
    precision_recall: Curve
    reliability: Curve
    groups: tuple[Group, ...]
    gaps: dict[str, float]


def measured(cells: Cells, tables: Sequence[Counts], smallest_group: int, noise: float = 0.0) -> Measured:
    """Everything that sums of cells say.

    Args:
        cells: what the tables are.
        tables: sums over all sites, noised or not.
        smallest_group: a group of fewer records is not shown, nor is a sum of such groups.
        noise: standard deviation of the noise in each count.
    """
    if drowned(tables[0], noise):
        nobody = tuple(Group(name, None, {}) for name in cells.groups if name)
        return Measured((), {}, ((), ()), ((), ()), ((), ()), nobody, {})
    positive = [np.maximum(table, 0.0) for table in tables]
    if len(cells.classes) == 2:
        by_group = positive[0]
        confusions = np.stack(
            [by_group[:, :, : cells.bins // 2].sum(-1), by_group[:, :, cells.bins // 2 :].sum(-1)], axis=-1
        )
        histogram = by_group.sum(0)  # truth x bin
        roc, precision_recall = _roc(histogram), _precision_recall(histogram)
        wrong, right = histogram
    else:
        confusions = positive[0]
        roc = precision_recall = ((), ())
        wrong, right = positive[1]
    confusion = confusions.sum(0)
    metrics = _of_confusion(confusion)
    if len(cells.classes) == 2:
        metrics |= _of_curves(roc, histogram)
    reliability, ece = _calibration(wrong, right, cells.middles)
    metrics |= {} if ece is None else {"ece": ece}
    cells_each = math.prod(confusions.shape[1:]) if len(cells.classes) > 2 else 2 * cells.bins
    least = max(float(smallest_group), SIGNIFICANT * noise * math.sqrt(cells_each))
    hidden = _hidden(confusions.reshape(len(confusions), -1).sum(1), least, exact=noise == 0)
    groups = tuple(
        Group(name, None, {}) if hide else _group(name, counts)
        for name, counts, hide in zip(cells.groups, confusions, hidden, strict=True)
        if name
    )
    return Measured(
        tuple(tuple(row) for row in confusion.tolist()),
        metrics,
        roc,
        precision_recall,
        reliability,
        groups,
        _gaps(groups),
    )


def drowned(sums: Counts, noise: float) -> bool:
    """Whether sums cannot be told from their noise, taken together."""
    return bool(sums.sum() < SIGNIFICANT * noise * math.sqrt(sums.size))


def _of_confusion(confusion: Counts) -> dict[str, float]:
    """Accuracy; precision, recall and F1 of the second of two classes, of more their means (macro)."""
    total, hits = confusion.sum(), np.diag(confusion)
    if not total > 0:
        return {}
    truths, predictions = confusion.sum(1), confusion.sum(0)
    there = truths > 0
    recall = hits[there] / truths[there]
    found = {"accuracy": float(hits.sum() / total), "balanced_accuracy": float(recall.mean())}
    chosen = np.array([False, True]) if len(confusion) == 2 else there
    with np.errstate(invalid="ignore"):
        precision = np.where(predictions > 0, hits / predictions, 0.0)[chosen]
        recalls = np.where(truths > 0, hits / truths, 0.0)[chosen]
        f1 = np.where(precision + recalls > 0, 2 * precision * recalls / (precision + recalls), 0.0)
    return {
        **found,
        "precision": float(precision.mean()),
        "recall": float(recalls.mean()),
        "f1": float(f1.mean()),
    }


def _from_above(histogram: Counts) -> tuple[Counts, Counts]:
    """False and true positives when the highest 0, 1, 2 ... bins are called positive."""
    negatives, positives = np.cumsum(histogram[:, ::-1], axis=1)
    return np.append(0.0, negatives), np.append(0.0, positives)


def _roc(histogram: Counts) -> Curve:
    alarms, hits = _from_above(histogram)
    if not (alarms[-1] > 0 and hits[-1] > 0):
        return (), ()
    return tuple((alarms / alarms[-1]).tolist()), tuple((hits / hits[-1]).tolist())


def _precision_recall(histogram: Counts) -> Curve:
    alarms, hits = _from_above(histogram)
    called = alarms + hits
    some = called > 0
    if not hits[-1] > 0:
        return (), ()
    return tuple((hits[some] / hits[-1]).tolist()), tuple((hits[some] / called[some]).tolist())


def _of_curves(roc: Curve, histogram: Counts) -> dict[str, float]:
    """AUROC, where records of one bin count as ties, and average precision."""
    found: dict[str, float] = {}
    if roc[0]:
        found["auroc"] = float(np.trapezoid(roc[1], roc[0]))
    recall, precision = _precision_recall(histogram)
    if recall:
        found["average_precision"] = float(np.sum(np.diff([0.0, *recall]) * precision))
    return found


def _calibration(wrong: Counts, right: Counts, middles: Counts) -> tuple[Curve, float | None]:
    """Middle of each bin and share of rights in it; and the expected calibration error (Naeini et al. 2015)."""
    total = wrong + right
    some = total > 0
    if not some.any():
        return ((), ()), None
    said = middles[some]
    share = right[some] / total[some]
    error = float(np.sum(total[some] * np.abs(share - said)) / total.sum())
    return (tuple(said.tolist()), tuple(share.tolist())), error


def _hidden(sizes: Counts, least: float, *, exact: bool) -> list[bool]:
    """Which groups are not shown: the small ones and, of exact counts, the next larger while those are few together.

    All records less the groups that are shown are those that are not (complementary suppression; Cox 1980). Noised
    counts need no such care.
    """
    total, hidden = 0.0, [bool(size < least) for size in sizes]
    for group in np.argsort(sizes, kind="stable") if exact else ():
        if sizes[group] >= least and not 0 < total < least:
            break
        hidden[group] = True
        total += float(sizes[group])
    return hidden


def _group(name: str, confusion: Counts) -> Group:
    total = float(confusion.sum())
    metrics = {"accuracy": float(np.trace(confusion) / total)}
    if len(confusion) == 2:
        (negatives, alarms), (misses, hits) = confusion
        metrics["selected"] = float((alarms + hits) / total)
        if hits + misses > 0:
            metrics["recall"] = float(hits / (hits + misses))
        if alarms + negatives > 0:
            metrics["false_alarms"] = float(alarms / (alarms + negatives))
    return Group(name, round(total), metrics)


def _gaps(groups: Sequence[Group]) -> dict[str, float]:
    def gap(metric: str) -> float | None:
        values = [group.metrics[metric] for group in groups if metric in group.metrics]
        return max(values) - min(values) if len(values) > 1 else None

    odds = [found for found in (gap("recall"), gap("false_alarms")) if found is not None]
    gaps = {
        "demographic_parity": gap("selected"),
        "equalised_odds": max(odds) if len(odds) == 2 else None,
        "accuracy": gap("accuracy"),
    }
    return {name: value for name, value in gaps.items() if value is not None}
