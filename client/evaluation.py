"""Metric sums of the model that came in, over the records that the site holds out.

Per-record values are cut to [0, 1]; counts of outcomes and importances (`tacit.tasks.summed`) ride along, vectors of a
squared norm of t at most in all. One record moves the whole by at most sqrt(k + 1 + t): the noise follows from that.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from tacit.encoding import NUM_RECORDS, metric_names, metric_sensitivity
from tacit.errors import ConfigError
from tacit.privacy.noise import Stream
from tacit.tasks import Records, Task
from tacit.tasks.summed import Summed


def metric_sums(
    model: nn.Module,
    task: Task,
    records: Records,
    noise_multiplier: float,
    noise: Stream,
    summed: Sequence[Summed] = (),
) -> dict[str, float]:
    """Sums over `records`, each with noise of standard deviation noise_multiplier * sensitivity.

    Guarantees:
        A metric sum leaves a site only with the noise that the plan paid for.
    """
    values = record_metrics(model, task, records, summed)
    draws = noise.gaussian(len(values), noise_multiplier * metric_sensitivity(task, *summed))
    return {name: value + float(draw) for (name, value), draw in zip(values.items(), draws, strict=True)}


def record_metrics(
    model: nn.Module, task: Task, records: Records, summed: Sequence[Summed] = ()
) -> dict[str, float]:
    """The exact sums. They stay at the site; only `metric_sums` may travel.

    Raises:
        ConfigError: a metric is not one number per record.
    """
    if not records.num_rows:
        return dict.fromkeys(metric_names(task, *summed), 0.0)
    device = next(model.parameters()).device
    model.eval()
    with torch.no_grad():
        outputs = model(records.features.to(device)).cpu()
    per_record = task.metrics(outputs, records.targets)
    for name in task.metric_names:
        if per_record[name].shape != (records.num_rows,):
            raise ConfigError(f"metric {name!r} must be one number per record", key="task")
    sums = {
        name: float(per_record[name].double().nan_to_num(0.0).clamp(0.0, 1.0).sum())
        for name in task.metric_names
    }
    sums[NUM_RECORDS] = float(records.num_rows)
    for part in summed:
        sums |= part.sums(model, outputs, records)
    return sums
