"""Trains a whole cohort without messages and hands over one ideal sum.

Each site is asked first, and pays before its vector is added, as in a deployment; what lies between is done for all
sites at once where the model allows it (`simulations.stacked`), and the vectors are added as they come, so that the
memory needed does not grow with the cohort.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from itertools import compress
from typing import Final, NamedTuple, Protocol

import numpy as np
from flwr.app import Context, Message, RecordDict
from numpy.typing import NDArray

from client import guard, plain
from client.app import InForce, fields, participant, reason_of, received_arrays
from client.guard import Received
from client.participant import Participant, Run
from client.training import Job
from simulations.held import MOST_LEDGERS, HeldLedgers, HeldMember
from simulations.stacked import StackedTrainer, executor_for
from simulations.workers import WorkersTrainer, close_pools
from strategies.sum_grid import CohortResult
from tacit.encoding import STATISTICS_ROUND
from tacit.errors import Refused
from tacit.privacy.discrete import add_noise, discrete_gaussian
from tacit.privacy.noise import SeededKeys, SystemKeys, in_unit_interval
from tacit.privacy.streams import Portions
from tacit.secagg.encoder import Encoder
from tacit.secagg.parameters import Rules
from tacit.tasks.weights import Arrays
from tacit.update import Aggregate, Integers

LOG: Final = logging.getLogger(__name__)
MOST_AHEAD: Final = 1 << 30  # bytes of records that are read before anybody asks for them

Cohort = Sequence[tuple[Message, Context]]


def train_cohort(cohort: Cohort) -> CohortResult:
    """One round by an executor that is not kept for the next one."""
    with CohortExecutor() as executor:
        return executor(cohort)


class Member(Protocol):
    """A participant, and what its policy says."""

    client: Participant

    def permit(self, model: Received) -> None:
        """Raises `Refused` unless the site trains from this model and lets a single vector out."""
        ...


class Asked(NamedTuple):
    """One round as all clients of a cohort are asked for it."""

    run: Run
    run_id: str
    round: int
    arrays: Arrays
    encoder: Encoder


class CohortExecutor:
    """The hook `train_cohort` of the local grid, for one run; to be closed after it.

    Guarantees:
        A site's debit is in its ledger before its vector is in a sum.
        The sum is that of the serial path: the same integers wherever training gives the same floats.
    """

    def __init__(self) -> None:
        self._members: dict[int, HeldMember] = {}
        self._ledgers = HeldLedgers()
        self._portions: dict[tuple[str, ...], Portions] = {}

    def __enter__(self) -> CohortExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Gives the sites' ledgers free, and ends worker processes."""
        close_pools()
        self._ledgers.close()
        for member in self._members.values():
            member.release()
        self._members.clear()

    def read_ahead(self, contexts: Iterable[Context]) -> None:
        """Reads the training records of these nodes now, up to `MOST_AHEAD`; all others when they are first asked.

        As many of their ledgers as may be open are opened.
        """
        size = 0
        for number, context in enumerate(contexts):
            with suppress(Exception):  # whoever cannot be read says why when it is asked
                client = self._member(context).client
                records = client.records("train")
                size += records.features.nbytes + records.targets.nbytes
                if number < MOST_LEDGERS:
                    self._ledgers.of(client.site)
            if size > MOST_AHEAD:
                return

    def __call__(self, cohort: Cohort) -> CohortResult:
        """Guard, train, encode, debit for each client; refusals are counted by reason."""
        arrays = received_arrays(cohort[0][0])
        run_id, number = plain.ids(fields(cohort[0][0]))
        tally = _Tally()
        clients = dict(self._permitted(cohort, run_id, number, arrays, tally))
        if clients:
            run = next(iter(clients.values())).run
            executor = "serial" if number == STATISTICS_ROUND else executor_for(run, len(clients))
            if executor == "workers" and isinstance(run.trainer, WorkersTrainer):
                run.trainer.train_ahead(arrays, list(_jobs(clients)), number, run.keys)
            if executor == "stacked":
                clip = next(iter(clients.values())).clip
                encoder = run.encoder(arrays, float(clip) if clip else None)
                self._stacked(Asked(run, run_id, number, arrays, encoder), clients, tally)
            else:
                _one_by_one(clients, run_id, number, arrays, tally)
        return tally.result()

    def _permitted(
        self, cohort: Cohort, run_id: str, number: int, arrays: Arrays, tally: _Tally
    ) -> Iterator[tuple[int, Participant]]:
        """Node and participant of each site that takes part in the round."""
        model: Received | None = None
        content: RecordDict | None = None
        for message, context in cohort:
            node = context.node_id
            try:
                member = self._member(context)
                client = member.client
                if message.content is not content:  # Flower's strategies give one to all of their messages
                    content = message.content
                    in_force = InForce.of(content)
                in_force.applied_to(client)
                if model is None:
                    model = Received.of(client.run, number, arrays)
                member.permit(model)
                if client.run.plan.is_private:
                    with client.site.ledger() as ledger:
                        guard.check_budget(client.run, client.site, ledger, run_id, number)
            except Exception as error:  # the edge of a node, as in the ClientApp
                tally.refused(error)
                continue
            yield node, client

    def _member(self, context: Context) -> Member:
        """Who a node is; kept until the run has ended."""
        member = self._members.get(context.node_id)
        if member is None:
            member = self._members[context.node_id] = HeldMember(participant(context), self._ledgers)
        return member

    def _stacked(self, asked: Asked, clients: dict[int, Participant], tally: _Tally) -> None:
        """All clients at once, a portion after the other."""
        jobs, nodes = [], []
        for node, client in clients.items():
            try:
                jobs.append(client.job)
                nodes.append(node)
            except Exception as error:  # of one site's own file
                tally.refused(error)
        trainer, start = asked.run.trainer, 0
        assert isinstance(trainer, StackedTrainer)
        for stack in trainer.stacks(jobs):
            part = {node: clients[node] for node in nodes[start : start + len(stack.jobs)]}
            start += len(part)
            try:
                deltas = stack.train(asked.arrays, asked.round, asked.run.keys)
                finite = [bool(row) for row in np.asarray(np.isfinite(deltas).all(axis=1))]
                values, clipped = self._encoded(asked, deltas, list(part.values()))
            except Exception as error:  # a task may raise anything: alone, each client meets the same
                LOG.warning("executor serial: training all clients at once failed (%s)", type(error).__name__)
                LOG.debug("where", exc_info=True)
                _one_by_one(part, asked.run_id, asked.round, asked.arrays, tally)
            else:
                paid = [
                    _pays(client, asked, ok, tally) for client, ok in zip(part.values(), finite, strict=True)
                ]
                for (node, client), cut in compress(zip(part.items(), clipped, strict=True), paid):
                    tally.nodes.append(node)
                    client.num_updates += 1
                    client.num_clipped += bool(cut)
                tally.add(values if all(paid) else values[paid], int(clipped[paid].sum()))

    def _encoded(
        self, asked: Asked, deltas: NDArray[np.float32], clients: Sequence[Participant]
    ) -> tuple[Integers, NDArray[np.bool_]]:
        """The vector of each client, with its share of the sum's noise; see `Participant.encode` and `noised`."""
        run, encoder = asked.run, asked.encoder
        keys = SeededKeys(run.experiment.seed) if run.plan.client is None else run.keys
        labels = tuple(client.site.label for client in clients)
        portions = self._portions.get(labels)
        if portions is None:
            portions = Portions.even(labels, encoder.num_uniforms)
            self._portions = {labels: portions}  # of this portion of the cohort: more would grow with the run
        uniforms = in_unit_interval(portions.read(keys, "rounding", asked.round)).reshape(len(labels), -1)
        finite = deltas if np.isfinite(deltas).all() else np.nan_to_num(deltas, posinf=0.0, neginf=0.0)
        metrics = [client.metrics(asked.round, asked.arrays) for client in clients]
        values, clipped = encoder.encode_rows(finite, [c.weight for c in clients], metrics, uniforms)
        noise = run.plan.sum_noise_multiplier
        if noise > 0:
            cohort = run.experiment.cohort_size
            share = Rules.of(run.experiment.secure_aggregation, noise).parameters(cohort).noise_share
            if isinstance(
                run.keys, SystemKeys
            ):  # fresh in any case: the vectors share a stream, and no part of it
                values += discrete_gaussian(run.share_stream("", asked.round, 1), values.size, share).reshape(
                    values.shape
                )
            else:
                for row, label in zip(values, labels, strict=True):
                    row[:] = add_noise(row, share, run.share_stream(label, asked.round, 1))
        return values, clipped


def _pays(client: Participant, asked: Asked, is_finite: bool, tally: _Tally) -> bool:
    """Whether a client's vector may go into the sum: its debit is made by then."""
    try:
        if not is_finite:
            raise Refused("not-finite", "the update has a value that is not a finite number")
        client.debit(asked.run_id, asked.round, attempt=1)
    except Exception as error:  # the edge of a node
        tally.refused(error)
        return False
    return True


class _Tally:
    """What has come of a cohort so far."""

    def __init__(self) -> None:
        self.total: Integers | None = None
        self.nodes: list[int] = []
        self.refusals: Counter[str] = Counter()
        self.num_clipped = 0

    def refused(self, error: Exception) -> None:
        """One site takes no part."""
        self.refusals[reason_of(error)] += 1

    def add(self, values: Integers, num_clipped: int) -> None:
        """Some vectors, shape (clients, size)."""
        total = values.sum(axis=0)
        self.total = total if self.total is None else self.total + total
        self.num_clipped += num_clipped

    def result(self) -> CohortResult:
        """What the server gets."""
        values = np.zeros(0, dtype=np.int64) if self.total is None else self.total
        total = Aggregate(values, len(self.nodes))
        return CohortResult(total, tuple(self.nodes), dict(self.refusals), self.num_clipped)


def _jobs(clients: dict[int, Participant]) -> Iterator[Job]:
    """What a trainer needs of each client whose records can be read; the others meet the reason themselves."""
    for client in clients.values():
        with suppress(Exception):
            yield client.job


def _one_by_one(
    clients: dict[int, Participant], run_id: str, number: int, arrays: Arrays, tally: _Tally
) -> None:
    """The plain loop."""
    for node, client in clients.items():
        try:
            vector = plain.contribution(client, run_id, number, arrays)
        except Exception as error:  # the edge of a node, as in the ClientApp
            tally.refused(error)
            continue
        tally.add(vector.values[None], int(vector.clipped))
        tally.nodes.append(node)
