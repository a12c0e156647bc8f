"""The public encoding of a run's updates: derived by server and clients alike from the experiment and the model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from tacit.config import Experiment
from tacit.privacy.plan import PrivacyPlan
from tacit.secagg.encoder import Encoder, MetricRange
from tacit.update import Layout

if TYPE_CHECKING:
    from tacit.tasks import Task

NUM_RECORDS = "records"


def metric_names(task: Task) -> tuple[str, ...]:
    """What travels: the sum of each of the task's metrics, and how many records they are over."""
    return (*task.metric_names, NUM_RECORDS)


def encoder_of(
    experiment: Experiment, plan: PrivacyPlan, task: Task, arrays: Mapping[str, NDArray[Any]]
) -> Encoder:
    """The encoder of one run.

    A metric sum is bounded by four times the largest declared size plus ten times its noise.
    """
    settings = experiment.secure_aggregation
    names = metric_names(task) if plan.metrics_noise_multiplier is not None else ()
    rows = max((site.rows for site in experiment.federation.sites), default=1)
    noise = plan.metrics_noise_multiplier or 0.0
    bound = 4 * rows + 10 * noise * (len(names) ** 0.5)
    ranges = {name: MetricRange(bound, 2.0**-10) for name in names}
    return Encoder(Layout.of(arrays, names), settings.update_clip, 2**settings.precision_bits, ranges)
