"""The public encoding of a run's vectors: derived by server and clients alike from the experiment and the model.

A round's vector is an update of the model. Before round 1 there is one more, round 0, when the experiment asks for
`scaling = "federated"`: the sums that center and scale are made of.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from math import ceil, sqrt
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from tacit.config import Experiment
from tacit.data.statistics import constants_from, sensitivity, statistics_size
from tacit.errors import ConfigError, ProtocolError
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.client_encoder import ClientLevelEncoder
from tacit.secagg.contexts import text_digest
from tacit.secagg.encoder import Encoder, MetricRange
from tacit.tasks.summed import Summed, summed_of
from tacit.update import Layout

if TYPE_CHECKING:
    from tacit.data.preprocessing import Constants
    from tacit.tasks import Task

NUM_RECORDS: Final = "records"
WEIGHT: Final = "num-examples"  # as Flower's strategies call it
STATISTICS: Final = "statistics"  # the one array of round 0, where a model has its own
STATISTICS_ROUND: Final = 0
VARIATE: Final = "variate"  # the record beside the model that SCAFFOLD's server sends


def metric_names(task: Task, *summed: Summed) -> tuple[str, ...]:
    """What travels: the sum of each of the task's metrics, how many records they are over, and what rides along.

    Raises:
        ConfigError: two have the same name, or one has that of the aggregation weight.
    """
    names = (*task.metric_names, NUM_RECORDS)
    if len({*names, WEIGHT}) != len(names) + 1:
        raise ConfigError(
            f"metric_names must differ, and be neither {NUM_RECORDS!r} nor {WEIGHT!r}", key="task"
        )
    return (*names, *(name for part in summed for name in part.names))


def metric_sensitivity(task: Task, *summed: Summed) -> float:
    """Euclidean bound of one record's contribution: 1 for each metric and for the record, and of what rides along."""
    return sqrt(len(task.metric_names) + 1 + sum(part.squared_norm for part in summed))


def encoder_of(
    experiment: Experiment,
    plan: PrivacyPlan,
    task: Task,
    arrays: Mapping[str, NDArray[Any]],
    clip: float | None = None,
) -> Encoder:
    """The encoder of the vectors that answer these arrays.

    A sum of metrics or statistics is bounded by four times the largest declared size plus ten times its noise. Under
    a promise for clients the bound is what its noise is in proportion to; there it is the number of rows that the
    largest declared size holds out.

    Args:
        clip: the clip norm in force, where it adapts; else it is that of the experiment.
    """
    settings = experiment.secure_aggregation
    rows = max(experiment.federation.sizes, default=1)
    c_int = 2**settings.precision_bits
    if set(arrays) == {STATISTICS}:
        noise = (plan.statistics_noise_multiplier or 0.0) * sqrt(arrays[STATISTICS].size)
        bound = _record_bound(experiment) * (4 * rows + 10 * noise)
        return Encoder(Layout.of(arrays), bound, c_int)
    summed = summed_of(experiment, task)
    names = metric_names(task, *summed) if plan.metrics_noise_multiplier is not None else ()
    noise = (plan.metrics_noise_multiplier or 0.0) * metric_sensitivity(task, *summed)
    budget = experiment.privacy.client
    if budget is not None and plan.unit == "client":
        held_out = rows if experiment.task.is_own else ceil(rows * experiment.data.test_fraction)
        ranges = {name: MetricRange(float(max(1, held_out)), 2.0**-10) for name in names}
    else:
        ranges = {name: MetricRange(4 * rows + 10 * noise, 2.0**-10) for name in names}
    clip = settings.update_clip if clip is None else clip
    if budget is None:
        return Encoder(Layout.of(arrays, names), clip, c_int, ranges)
    layout = Layout.of(arrays, names, "bit" if budget.target_quantile else "")
    return ClientLevelEncoder(layout, clip, c_int, ranges, budget.model_share)


def empty_statistics(experiment: Experiment) -> dict[str, NDArray[np.float32]]:
    """What the server sends in round 0, in the place of a model."""
    assert experiment.data.columns is not None
    return {STATISTICS: np.zeros(statistics_size(experiment.data.columns), dtype=np.float32)}


def needs_statistics(experiment: Experiment) -> bool:
    """Whether the experiment has a round 0."""
    columns = experiment.data.columns
    return columns is not None and columns.scaling == "federated"


def scaling_text(experiment: Experiment, plan: PrivacyPlan, sums: NDArray[np.float64]) -> str:
    """Center and scale of each numeric column, as the canonical text that travels and that ctx0 is bound to."""
    assert experiment.data.columns is not None
    sites = experiment.federation.num_members
    noise = (plan.statistics_noise_multiplier or 0.0) * _record_bound(experiment) * sqrt(sites)
    return json.dumps(constants_from(sums, experiment.data.columns, noise), sort_keys=True)


def scaling_constants(text: str) -> Constants:
    """The reverse of `scaling_text`.

    Raises:
        ProtocolError: the text is not that of two finite numbers for each column.
    """
    try:
        constants = {str(k): (float(c), float(s)) for k, (c, s) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError, OverflowError, RecursionError):
        raise ProtocolError("scaling", "not the constants of a scaling") from None
    if not all(np.isfinite(pair).all() and pair[1] > 0 for pair in constants.values()):
        raise ProtocolError("scaling", "a center or scale is not a usable number")
    return constants


def config_digest(experiment_toml: str, scaling: str, clip: str = "", variate: str = "") -> bytes:
    """What ctx0 says of the configuration: the experiment and, where there are, scaling, clip and variate in force.

    Without the variate in it a server could send each client another one, and with it steer who moves the sum.
    """
    parts = [experiment_toml]
    parts += [f"# scaling: {scaling}"] if scaling else []
    parts += [f"# clip: {clip}"] if clip else []
    parts += [f"# variate: {variate}"] if variate else []
    return text_digest("\n".join(parts) + "\n" if len(parts) > 1 else experiment_toml)


def _record_bound(experiment: Experiment) -> float:
    assert experiment.data.columns is not None
    return sensitivity(experiment.data.columns)
