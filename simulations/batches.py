"""The Poisson batches of many clients, drawn together for all steps of a round."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from client.training import Job
from tacit.privacy.noise import Keys, below
from tacit.privacy.streams import Portions


class Batches:
    """What `client.training` draws for each client alone, for all of them: each reads its own stream.

    Args:
        jobs: the clients; their records lie below one another in this order.
        num_steps: of a round.
        rate: with which a record is in a step's batch.
    """

    def __init__(self, jobs: Sequence[Job], num_steps: int, rate: float) -> None:
        self._num_clients, self._num_steps, self._rate = len(jobs), num_steps, rate
        rows = np.array([job.records.num_rows for job in jobs], dtype=np.int64)
        self._absent = int(rows.sum())
        counts = rows * num_steps
        self._portions = Portions(tuple(job.site for job in jobs), counts)
        # Draw d decides on one record in one step; `_batch[d]` is step * clients + client. Draws are sorted by client,
        # step and record, a client's words by record and step: word `_word[d]` makes draw d.
        client = np.repeat(np.arange(len(jobs)), counts)
        within = np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
        step, record = np.divmod(within, rows[client])
        self._word = (np.cumsum(counts) - counts)[client] + record * num_steps + step
        self._batch = (step * len(jobs) + client).astype(np.int32)
        self._record = (record + (np.cumsum(rows) - rows)[client]).astype(np.int32)

    def draw(self, keys: Keys, round_number: int) -> Iterator[NDArray[np.int64]]:
        """For each step the indices of each client's records, shape (clients, rows of the longest batch).

        Where a batch is shorter there is the number of all records instead.
        """
        drawn = below(self._portions.read(keys, "poisson", round_number), self._rate)
        chosen = np.flatnonzero(drawn[self._word])
        batch = self._batch[chosen]
        sizes = np.bincount(batch, minlength=self._num_steps * self._num_clients)
        # Draws come client by client and step by step, so those of one batch are neighbours.
        in_order = sizes.reshape(self._num_steps, self._num_clients).T.ravel()
        place = np.arange(batch.size) - np.repeat(np.cumsum(in_order) - in_order, in_order)
        longest = sizes.reshape(self._num_steps, self._num_clients).max(axis=1)
        indices = np.full((sizes.size, int(longest.max(initial=0))), self._absent, dtype=np.int64)
        indices[batch, place] = self._record[chosen]
        steps = indices.reshape(self._num_steps, self._num_clients, -1)
        for one, length in zip(steps, longest, strict=True):
            yield one[:, :length]
