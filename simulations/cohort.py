"""Trains a whole cohort without messages: each site's own steps one after the other, and one ideal sum.

The vectors are added as they come, so the memory needed does not grow with the cohort.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

import numpy as np
from flwr.app import Context, Message

from client import plain
from client.app import fields, ready, reason_of, received_arrays
from strategies.sum_grid import CohortResult
from tacit.update import Aggregate, Integers


def train_cohort(cohort: Sequence[tuple[Message, Context]]) -> CohortResult:
    """Guard, train, encode, debit for each client; refusals are counted by reason."""
    arrays = received_arrays(cohort[0][0])
    run_id, round_number = plain.ids(fields(cohort[0][0]))
    total: Integers | None = None
    nodes, refusals, num_clipped = [], Counter[str](), 0
    for message, context in cohort:
        try:
            client = ready(message, context)
            plain.require_permission(client)
            vector = plain.contribution(client, run_id, round_number, arrays)
        except Exception as error:  # the edge of a node, as in the ClientApp
            refusals[reason_of(error)] += 1
            continue
        total = vector.values.copy() if total is None else total + vector.values
        num_clipped += vector.clipped
        nodes.append(message.metadata.dst_node_id)
    values = np.zeros(0, dtype=np.int64) if total is None else total
    return CohortResult(Aggregate(values, len(nodes)), tuple(nodes), dict(refusals), num_clipped)
