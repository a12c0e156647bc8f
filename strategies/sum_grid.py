"""From one round's messages to one reply with the mean: what every way to a sum has in common, and the ideal one.

The reply carries the weighted mean and the total weight, so every strategy that needs only the mean works unchanged.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace
from math import sqrt
from typing import Any, Protocol

import numpy as np
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord, RecordDict
from flwr.serverapp import Grid
from numpy.typing import NDArray
from pydantic import TypeAdapter

from strategies.exchange import exchange
from strategies.grids import RoundFacts, WrappedGrid, count_refusals, spelled
from tacit.encoding import VARIATE
from tacit.errors import ProtocolError, RunFailed
from tacit.privacy.central import NoNoise
from tacit.secagg.contexts import model_digest
from tacit.secagg.encoder import Encoder
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.update import Aggregate, Integers

_FACTS = TypeAdapter(RoundFacts)


@dataclass(frozen=True)
class Agreement:
    """What server and clients derive alike from one experiment.

    Attributes:
        run: Tacit's own id of the run.
        config: the experiment in canonical TOML.
        members: the member that is reached at each node.
        rules: how parameters follow from the size of a cohort.
        encoder: from the global model's arrays, and the clip norm in force where it adapts, to the public encoding.
        deadline_seconds: per phase.
        waits: whether a phase goes on beyond it while a sum has too few; in a federation, whose sites come back.
        central: noise that this server adds to each sum; none where the clients add it, or nobody does.
        epsilon: what the plan charges up to a round, as text for its receipt; "inf" where nothing is promised.
    """

    run: str
    config: str
    members: Mapping[int, Member]
    rules: Rules
    encoder: Callable[[Mapping[str, NDArray[Any]], float | None], Encoder]
    deadline_seconds: float
    waits: bool = False
    central: NoNoise = field(default_factory=NoNoise)
    epsilon: Callable[[int], str] = lambda round_number: "inf"


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


class SumGrid(WrappedGrid):
    """One combined reply for all of a round's messages; how the sum comes about is `_sum`'s part."""

    def __init__(self, grid: Grid, agreement: Agreement) -> None:
        super().__init__(grid)
        self._agreement = agreement
        self.facts = RoundFacts()

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """One combined reply; of a round that has released its sum already, that sum, and nobody is asked.

        Raises:
            RunFailed: no sum over enough clients came about; says which reasons were given. Or what came about is
                no sum of such vectors, so that somebody has sent garbage.
        """
        messages = sorted(messages, key=lambda m: self._agreement.members[m.metadata.dst_node_id].index)
        if not messages:
            return []
        arrays = model_of(messages[0])
        clip = clip_of(messages[0])
        encoder = self._agreement.encoder(arrays, float(clip) if clip else None)
        number, central = round_of(messages[0]), self._agreement.central
        released = central.released(number, encoder.layout.size)
        if released is None:
            total = self._sum(messages, arrays, encoder)
            released = central.added(total, number)
            proof = self._proof(Aggregate(released.total.values, total.num_clients))
            released = replace(released, facts=_FACTS.dump_json(self.facts).decode(), proof=proof)
        else:
            self.facts = _FACTS.validate_json(released.facts)
        noise = central.std or self.facts.noise_share * sqrt(released.total.num_clients)
        try:
            mean = encoder.decode(released.total, noise)
        except ProtocolError as error:
            raise RunFailed(f"the sum of a round is spoilt: {error}") from None
        central.keep(released)
        self._opened(released.proof)
        self.facts = replace(self.facts, below_clip=mean.below_clip)
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

    def _proof(self, total: Aggregate) -> str:
        """What the receipt of the sum that was made last says, as text; empty where it has none."""
        return ""

    def _opened(self, proof: str) -> None:
        """Called before anything of a sum is used, and perhaps again by the next process."""

    def _label(self, node: int) -> str:
        return self._agreement.members[node].label


class IdealSumGrid(SumGrid):
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
            noise_share=rules.parameters(len(messages)).noise_share,  # a vector is made for a whole cohort
        )
        return result.aggregate

    def _collect(self, messages: list[Message]) -> CohortResult:
        """Over messages, where the grid has no hook: each vector travels in the clear, inside the simulation."""
        requests = [
            Message(content=m.content, message_type="train.ideal", dst_node_id=m.metadata.dst_node_id)
            for m in messages
        ]
        answers = list(exchange(self._grid, requests, self._agreement.deadline_seconds))
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


def variate_of(message: Message) -> str:
    """The digest of the control variate that goes with a training message, in hexadecimal; empty without."""
    record = message.content.array_records.get(VARIATE)
    if record is None:
        return ""
    return model_digest({name: array.numpy() for name, array in record.items()}).hex()


def clip_of(message: Message) -> str:
    """The clip norm in force that goes with a training message, as text; empty where it does not adapt."""
    record = message.content.get("clip")
    return str(record["norm"]) if isinstance(record, ConfigRecord) else ""
