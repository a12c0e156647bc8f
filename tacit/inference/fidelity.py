"""How like the real rows made-up ones are: column by column, between columns, and for a model that learns from them.

Figures are of raw records: they are no release that anybody has paid for, and stay where the records are.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from tacit.data.preprocessing import positions_of, transform
from tacit.data.schema import NumericColumn, Schema
from tacit.data.table import Table

SKLEARN: Final = "needs scikit-learn: pip install 'tacit[simulation]'"
_SEED: Final = 0

Features = NDArray[np.float32]
Classes = NDArray[np.int64]


@dataclass(frozen=True)
class Fidelity:
    """Figures of one made-up table beside a real one; all but the AUROCs are 0 where there is no difference.

    Attributes:
        columns: of each column, label included, how far its distribution is from the real one, from 0 to 1: of
            numbers Kolmogorov and Smirnov's distance, of names the total variation; an empty cell is a value, too.
        correlation: mean absolute difference of the correlations between any two features, classes included.
        auroc_synthetic: of logistic regression that has learned from the made-up rows, on the real ones.
        auroc_real: of one that has learned from real rows instead.
        notes: what was left out and why, one sentence each.
    """

    columns: dict[str, float]
    correlation: float
    auroc_synthetic: float | None
    auroc_real: float | None
    notes: tuple[str, ...] = ()


def fidelity(made: Table, real: Table, trained_on: Table | None, schema: Schema) -> Fidelity:
    """Figures of a made-up table.

    Args:
        made: the made-up rows.
        real: real rows, if possible such as were not trained on.
        trained_on: real rows that were, or None; what `auroc_real` learns from.
        schema: without a column that splits.

    Raises:
        DataError: a real row has a cell that the schema does not allow.
    """
    columns = {name: column_distance(made, real, name, schema) for name in (*schema.columns, schema.label)}
    synthetic, known = features_of(made, schema), features_of(real, schema)
    notes: list[str] = []
    aurocs: tuple[float | None, float | None] = (None, None)
    try:
        others = None if trained_on is None else features_of(trained_on, schema)
        aurocs = _aurocs(synthetic, known, others)
    except ImportError:
        notes.append(f"what a model learns from the made-up rows is left out: it {SKLEARN}")
    if None in aurocs and not notes:
        notes.append("AUROC is left out where rows are all of one class")
    return Fidelity(columns, correlation_difference(synthetic, known), *aurocs, tuple(notes))


def features_of(table: Table, schema: Schema) -> tuple[Features, Classes]:
    """All rows of a table as a model sees them."""
    return transform(table, schema, split="train")


def column_distance(made: Table, real: Table, name: str, schema: Schema) -> float:
    """How far apart two distributions of one column are, from 0 to 1."""
    column = schema.columns.get(name)
    if isinstance(column, NumericColumn):
        return _kolmogorov_smirnov(made.numbers(name), real.numbers(name))
    names = schema.classes if column is None else column.categories
    shares = [
        np.bincount(positions_of(table.texts(name), names) + 2, minlength=len(names) + 2) / table.num_rows
        for table in (made, real)
    ]
    return float(np.abs(shares[0] - shares[1]).sum() / 2)


def _kolmogorov_smirnov(one: NDArray[np.float64], other: NDArray[np.float64]) -> float:
    """The largest difference of the distribution functions; an empty cell is below all numbers."""
    one, other = (np.sort(np.nan_to_num(x, nan=-np.inf)) for x in (one, other))
    places = np.concatenate([one, other])
    shares = [np.searchsorted(x, places, side="right") / len(x) for x in (one, other)]
    return float(np.abs(shares[0] - shares[1]).max())


def correlation_difference(made: tuple[Features, Classes], real: tuple[Features, Classes]) -> float:
    """Mean absolute difference of Pearson's correlations, over pairs of features that vary in both; 0 of no pair."""
    matrices = [
        np.column_stack([x, y[:, None] == np.arange(max(int(made[1].max()), int(real[1].max())) + 1)])
        for x, y in (made, real)
    ]
    varies = np.all([matrix.std(0) > 1e-6 for matrix in matrices], axis=0)
    if varies.sum() < 2:
        return 0.0
    first, second = (np.corrcoef(matrix[:, varies].astype(np.float64), rowvar=False) for matrix in matrices)
    return float(np.abs(first - second)[np.triu_indices(int(varies.sum()), 1)].mean())


def _aurocs(
    made: tuple[Features, Classes],
    real: tuple[Features, Classes],
    trained_on: tuple[Features, Classes] | None,
) -> tuple[float | None, float | None]:
    """Of models that learn from made-up and from real rows, on the same real ones.

    Without rows for the second one it learns from four fifths of the real ones and is tried on the rest, in turn.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import roc_auc_score
    from sklearn.model_selection import StratifiedKFold, cross_val_predict

    x, y = real

    def auroc(scores: NDArray[np.float64], classes: NDArray[np.int64]) -> float:
        areas = [roc_auc_score(y == c, scores[:, i]) for i, c in enumerate(classes)]
        return float(areas[-1] if len(classes) == 2 else np.mean(areas))

    def learned(rows: tuple[Features, Classes]) -> float | None:
        if set(np.unique(y)) - set(np.unique(rows[1])) or len(np.unique(y)) < 2:
            return None
        known = np.isin(rows[1], y)  # of a class that no real row has, nobody can say how well it is found
        model = LogisticRegression(max_iter=1000).fit(rows[0][known], rows[1][known])
        return auroc(model.predict_proba(x), model.classes_)

    if trained_on is not None:
        return learned(made), learned(trained_on)
    folds = int(min(5, np.unique(y, return_counts=True)[1].min()))
    if len(np.unique(y)) < 2 or folds < 2:
        return learned(made), None
    model, parts = LogisticRegression(max_iter=1000), StratifiedKFold(folds, shuffle=True, random_state=_SEED)
    scores = cross_val_predict(model, x, y, cv=parts, method="predict_proba")
    return learned(made), auroc(scores, np.unique(y))
