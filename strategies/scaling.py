"""Round 0: center and scale of the numeric columns from sums over all sites, through the same sum as the updates."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid

from tacit.config import Experiment
from tacit.encoding import STATISTICS, STATISTICS_ROUND, empty_statistics, scaling_text
from tacit.errors import RunFailed
from tacit.privacy.plan import PrivacyPlan


def learn_scaling(
    grid: Grid, experiment: Experiment, plan: PrivacyPlan, nodes: Mapping[str, int], run: str
) -> str:
    """The scaling constants as text.

    The server learns the sum of the sites' statistics, noised by each site where the run is private, and no site's.

    Raises:
        RunFailed: too few sites answered.
    """
    arrays = {name: Array(array) for name, array in empty_statistics(experiment).items()}
    content = RecordDict(
        {
            "arrays": ArrayRecord(arrays),
            "tacit": ConfigRecord({"run": run, "round": STATISTICS_ROUND}),
        }
    )
    first = set(experiment.federation.present(1))  # a site that joins later is scaled as these are
    asked = [node for label, node in nodes.items() if label in first]
    messages = [Message(content=content, message_type="train", dst_node_id=node) for node in asked]
    replies = list(grid.send_and_receive(messages, timeout=experiment.secure_aggregation.deadline_seconds))
    if not replies:
        raise RunFailed("no site sent statistics for the scaling")
    return scaling_text(experiment, plan, sum((_total(reply) for reply in replies), start=np.zeros(1)))


def _total(reply: Message) -> np.ndarray[tuple[int, ...], np.dtype[np.float64]]:
    """Mean times weight: a combined reply holds all sites, a plain one holds one."""
    mean = reply.content.array_records["arrays"][STATISTICS].numpy().astype(np.float64)
    return mean * float(str(reply.content.metric_records["metrics"]["num-examples"]))
