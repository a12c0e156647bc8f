"""Whether groups of people that no feature names are treated alike: for a finished run over generated tables."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.numpy import load_file

from simulations.truth import TRUTH
from tacit import config
from tacit.data.preprocessing import selected_rows
from tacit.data.readers import read_table
from tacit.tasks.tabular import TabularClassification
from tacit.tasks.weights import build_model, load_arrays

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from rich.table import Table

Scores = dict[str, dict[str, float]]


def by_group(out: Path, column: str) -> dict[str, Scores]:
    """AUROC, share rejected, and share of the good that are rejected, of the model and of the truth, by group.

    As many are rejected over all groups as are bad, those with the highest scores. Exact figures of single groups: for
    the harness, never for a server.

    Args:
        out: the folder of a finished run.
        column: names each row's group; no feature.
    """
    experiment = config.load(out / "experiment.toml")
    task = TabularClassification.of(experiment)
    model = build_model(task, private=experiment.privacy.record is not None)
    load_arrays(model, load_file(out / "model.safetensors"))
    model.eval()
    columns: dict[str, list[NDArray[np.float64]]] = {"federated": [], "best achievable": [], "bad": []}
    groups: list[str] = []
    for i in range(len(experiment.federation.sites)):
        path = out / "sites" / str(i) / experiment.data.file
        records, table = task.read(path, "test"), read_table(path, None)
        test = selected_rows(table, task.schema, "test")
        with torch.no_grad():
            logits = model(records.features)
        columns["federated"].append((logits[:, 1] - logits[:, 0]).double().numpy())
        columns["best achievable"].append(table.numbers(TRUTH)[test])
        columns["bad"].append(records.targets.double().numpy())
        groups += [str(table.texts(column)[row]) for row in np.flatnonzero(test)]
    scores = {name: np.concatenate(parts) for name, parts in columns.items()}
    bad = scores.pop("bad") == 1
    return {name: _scores(score, bad, np.array(groups)) for name, score in scores.items()}


def _scores(score: NDArray[np.float64], bad: NDArray[np.bool_], groups: NDArray[np.str_]) -> Scores:
    from sklearn.metrics import roc_auc_score

    rejected = score > np.quantile(score, 1 - bad.mean())
    found: Scores = {}
    for group in sorted(set(groups.tolist())):
        own = groups == group
        good = own & ~bad
        found[group] = {
            "auroc": float(roc_auc_score(bad[own], score[own]))
            if 0 < bad[own].sum() < own.sum()
            else float("nan"),
            "rejected": float(rejected[own].mean()),
            "good rejected": float(rejected[good].mean()) if good.any() else float("nan"),
        }
    return found


def group_table(out: Path, column: str) -> Table:
    """`by_group` for the terminal."""
    from rich.table import Table

    found = by_group(out, column)
    table = Table(title=f"by {column}, which is no feature: held-out rows", title_justify="left")
    for name in ("model", column, "auroc", "rejected", "good rejected"):
        table.add_column(name, justify="left" if name in ("model", column) else "right")
    for model, groups in found.items():
        for group, values in groups.items():
            shares = (f"{values[key]:.1%}" for key in ("rejected", "good rejected"))
            table.add_row(model, group, f"{values['auroc']:.3f}", *shares)
    return table
