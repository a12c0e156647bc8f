"""Secure aggregation as a grid: a strategy's training messages become the whole protocol and come back as one reply.

The reply carries the weighted mean and the total weight, so every strategy that needs only the mean works unchanged.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray

from strategies.exchange import exchange
from strategies.grids import RoundFacts, WrappedGrid, count_refusals, spelled
from tacit.encoding import config_digest
from tacit.errors import ProtocolError, RunFailed
from tacit.secagg.contexts import Invitation, model_digest, roster_digest
from tacit.secagg.encoder import Encoder
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.server import MembersMissing, ServerMachine
from tacit.update import Aggregate, Integers

MAX_ATTEMPTS = 3


@dataclass(frozen=True)
class Agreement:
    """What server and clients derive alike from one experiment.

    Attributes:
        run: Tacit's own id of the run.
        config: the experiment in canonical TOML.
        members: the roster, with the node that each member is reached at.
        rules: how parameters follow from the size of a cohort.
        encoder: from the global model's arrays to the public encoding.
        deadline_seconds: per phase.
        first_attempt: number of the first attempt of each round; a restarted server begins higher.
    """

    run: str
    config: str
    members: Mapping[int, Member]
    rules: Rules
    encoder: Callable[[Mapping[str, NDArray[Any]]], Encoder]
    deadline_seconds: float
    first_attempt: int = 1


@dataclass(frozen=True)
class CohortResult:
    """What an executor hands over when it has trained a whole cohort at once.

    Attributes:
        aggregate: the ideal sum.
        nodes: whose vectors are in it.
        refusals: how many refused, by reason.
        num_clipped: how many updates were longer than the clip norm.
    """

    aggregate: Aggregate
    nodes: tuple[int, ...]
    refusals: Mapping[str, int]
    num_clipped: int


class TrainsCohorts(Protocol):
    """A grid with the hook for executors (simulation)."""

    def train_cohort(self, messages: list[Message]) -> CohortResult:
        """Trains everyone that the messages go to and adds up their encoded updates."""
        ...


class _SumGrid(WrappedGrid):
    """From one round's messages to one reply with the mean; how the sum comes about is `_sum`'s part."""

    def __init__(self, grid: Grid, agreement: Agreement) -> None:
        super().__init__(grid)
        self._agreement = agreement
        self.facts = RoundFacts()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One combined reply.

        Raises:
            RunFailed: no sum over enough clients came about; says which reasons were given.
        """
        messages = sorted(messages, key=lambda m: self._agreement.members[m.metadata.dst_node_id].index)
        if not messages:
            return []
        arrays = model_of(messages[0])
        encoder = self._agreement.encoder(arrays)
        mean = encoder.decode(self._sum(messages, arrays, encoder))
        # np.asarray: a sum of arrays without dimensions is no array.
        model = {name: np.asarray(arrays[name] + mean.arrays[name].astype(np.float32)) for name in arrays}
        content = RecordDict(
            {
                "arrays": ArrayRecord({name: Array(a) for name, a in model.items()}),
                "metrics": MetricRecord({"num-examples": mean.total_weight, **mean.metrics}),
            }
        )
        return [Message(content, reply_to=messages[0])]

    def _sum(
        self, messages: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder
    ) -> Aggregate:
        raise NotImplementedError

    def _label(self, node: int) -> str:
        return self._agreement.members[node].label


class SecureAggregationGrid(_SumGrid):
    """The cryptographic protocol, driven over Flower messages.

    Guarantees:
        The server's code receives masked updates only, and learns their sum or nothing.
    """

    def _sum(
        self, messages: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder
    ) -> Aggregate:
        agreement, invited = self._agreement, list(messages)
        fewest = agreement.rules.fewest(len(messages))
        for attempt in range(agreement.first_attempt, agreement.first_attempt + MAX_ATTEMPTS):
            invitation = self._invitation(messages, arrays, encoder, attempt, len(invited))
            members = [agreement.members[m.metadata.dst_node_id] for m in invited]
            machine = ServerMachine(invitation, members)
            try:
                return self._attempt(machine, invitation, invited, fewest)
            except MembersMissing as error:
                gone = {member.index for member in error.missing}
                left = [m for m in invited if agreement.members[m.metadata.dst_node_id].index not in gone]
                # A message may also just have been late.
                invited = left if len(left) >= fewest else list(messages)
        raise RunFailed(
            f"no sum over at least {fewest} of {len(messages)} sites in {MAX_ATTEMPTS} attempts; "
            f"sites refused in the last: {spelled(self.facts.refusals)}"
        )

    def _attempt(
        self, machine: ServerMachine, invitation: Invitation, invited: list[Message], fewest: int
    ) -> Aggregate:
        """M0 keys, M2 masked vectors, M4 seeds."""
        nodes = {
            self._agreement.members[m.metadata.dst_node_id].index: m.metadata.dst_node_id for m in invited
        }
        refusals = Counter[str]()
        self.facts = RoundFacts(refusals=refusals)
        first = [self._request("tacit0", m.metadata.dst_node_id, invitation.encode(), m) for m in invited]
        refusals.update(self._phase(first, machine.collect_setup))
        if len(invited) - len(machine.missing) < fewest:
            # Below n - D of the whole cohort, though it may be enough for an attempt with fewer invited.
            raise MembersMissing(machine.missing, machine.phase)
        requests = machine.mask_requests()
        second = [self._request("tacit2", nodes[i], request) for i, request in requests.items()]
        sizes: list[int] = []

        def collect(answer: bytes) -> None:
            machine.collect_masked(answer)
            sizes.append(len(answer))

        refusals.update(self._phase(second, collect))
        third = [self._request("tacit4", nodes[i], r) for i, r in machine.unmask_requests().items()]
        refusals.update(self._phase(third, machine.collect_unmask))
        parameters = machine.cohort.parameters
        self.facts = RoundFacts(
            survivors=tuple(self._label(nodes[i]) for i in sorted(requests)),
            refusals=refusals,
            bytes_up=max(sizes),
            bits=parameters.bits,
            threshold=parameters.threshold,
        )
        return machine.aggregate()

    def _phase(self, requests: list[Message], collect: Callable[[bytes], None]) -> dict[str, int]:
        """Sends one phase's requests and takes what comes; an answer that is refused counts as none."""
        answers = exchange(self._grid, requests, self._agreement.deadline_seconds)
        refusals = count_refusals(answers)
        for answer in answers:
            if answer.has_error():
                continue
            try:
                collect(_body(answer))
            except ProtocolError as error:
                refusals[error.reason] = refusals.get(error.reason, 0) + 1
        return refusals

    def _request(self, step: str, node: int, body: bytes, model: Message | None = None) -> Message:
        content = RecordDict({"tacit": ConfigRecord({"body": body})})
        for name in ("arrays", "scaling"):
            if model is not None and name in model.content:
                content[name] = model.content[name]
        return Message(content=content, message_type=f"train.{step}", dst_node_id=node)

    def _invitation(
        self,
        messages: list[Message],
        arrays: Mapping[str, NDArray[Any]],
        encoder: Encoder,
        attempt: int,
        num_invited: int,
    ) -> Invitation:
        agreement = self._agreement
        return Invitation(
            roster=roster_digest(agreement.members.values()),
            run=agreement.run,
            round=round_of(messages[0]),
            attempt=attempt,
            model=model_digest(arrays),
            config=config_digest(agreement.config, scaling_of(messages[0])),
            length=encoder.layout.size,
            num_invited=num_invited,
            rules=agreement.rules,
        )


class IdealSumGrid(_SumGrid):
    """The ideal functionality (simulation): the same encoding and the same integer sum, without cryptography."""

    def _sum(
        self, messages: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder
    ) -> Aggregate:
        hook = getattr(self._grid, "train_cohort", None)
        result: CohortResult = hook(messages) if hook else self._collect(messages)
        rules, n = self._agreement.rules, len(result.nodes)
        if n < rules.fewest(len(messages)):
            refusals = spelled(result.refusals)
            raise RunFailed(f"only {n} of {len(messages)} sites took part; sites refused: {refusals}")
        parameters = rules.parameters(n)
        self.facts = RoundFacts(
            survivors=tuple(self._label(node) for node in result.nodes),
            refusals=result.refusals,
            bytes_up=-(-encoder.layout.size * parameters.bits // 8),
            bits=parameters.bits,
            threshold=parameters.threshold,
            num_clipped=result.num_clipped,
        )
        return result.aggregate

    def _collect(self, messages: list[Message]) -> CohortResult:
        """Over messages, where the grid has no hook: each vector travels in the clear, inside the simulation."""
        requests = [
            Message(content=m.content, message_type="train.ideal", dst_node_id=m.metadata.dst_node_id)
            for m in messages
        ]
        answers = exchange(self._grid, requests, self._agreement.deadline_seconds)
        good = [answer for answer in answers if not answer.has_error()]
        good.sort(key=lambda answer: self._agreement.members[answer.metadata.src_node_id].index)
        vectors = [answer.content.array_records["encoded"]["values"].numpy() for answer in good]
        clipped = [bool(answer.content.config_records["tacit"]["clipped"]) for answer in good]
        total: Integers = np.zeros(len(vectors[0]) if vectors else 0, dtype=np.int64)
        for vector in vectors:
            total += vector
        nodes = tuple(answer.metadata.src_node_id for answer in good)
        return CohortResult(Aggregate(total, len(good)), nodes, count_refusals(answers), sum(clipped))


def model_of(message: Message) -> dict[str, NDArray[Any]]:
    """The global model in a training message."""
    return {name: array.numpy() for name, array in message.content.array_records["arrays"].items()}


def round_of(message: Message) -> int:
    """Tacit's round number in a training message."""
    return int(str(message.content.config_records["tacit"]["round"]))


def scaling_of(message: Message) -> str:
    """The scaling constants that go with a training message, as text; empty without."""
    record = message.content.get("scaling")
    return str(record["constants"]) if isinstance(record, ConfigRecord) else ""


def _body(answer: Message) -> bytes:
    record = answer.content.get("tacit")
    value = record.get("body") if isinstance(record, ConfigRecord) else None
    if not isinstance(value, bytes):
        raise ProtocolError("body", "the answer has no body")
    return value
