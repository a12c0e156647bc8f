"""What the best possible model would put out on held-out records, where a generator knows it.

A generated site's file has, beside each record, the probability that its label was drawn with or the expected value of
its target, under the name `truth`. No task reads it; the harness does, to print what can be achieved at all.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from tacit.config import Experiment
from tacit.data.npz import read_npz
from tacit.data.preprocessing import selected_rows
from tacit.data.readers import read_table
from tacit.learning import ANOMALY

TRUTH = "truth"
_SMALLEST = 1e-12  # of a probability, so that its logit is finite


def best_outputs(path: Path, experiment: Experiment) -> Tensor | None:
    """What the best possible model puts out for the test records of one site's file, in their order.

    Args:
        path: the site's file.
        experiment: with its schema.

    Returns:
        Logits of shape (rows, classes), or numbers of shape (rows, outputs) in declared scales; None where the truth
        is not known.
    """
    if experiment.task.kind in ANOMALY:  # the truth is about labels, and none is predicted
        return None
    arrays, columns = experiment.data.arrays, experiment.data.columns
    if arrays is not None:
        found = read_npz(path, (TRUTH, "split"))
        if TRUTH not in found:
            return None
        truth = found[TRUTH][found["split"] == "test"]
        if not arrays.classes:
            truth = (truth - arrays.target_center) / arrays.target_scale
        return torch.from_numpy(truth.astype(np.float32))
    table = read_table(path, None)
    if TRUTH not in table.columns or columns is None or experiment.data.source != "generated":
        return None
    p = table.numbers(TRUTH)[selected_rows(table, columns, "test")].clip(_SMALLEST, 1 - _SMALLEST)
    return torch.from_numpy(np.log(np.column_stack([1 - p, p])).astype(np.float32))
