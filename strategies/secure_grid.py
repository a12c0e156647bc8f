"""Secure aggregation as a grid: a strategy's training messages become the whole protocol and come back as one reply.

The reply carries the weighted mean and the total weight, so every strategy that needs only the mean works unchanged.
"""

from __future__ import annotations

import copy
import json
import secrets
import time
from collections import Counter
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, RecordDict
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Strategy
from numpy.typing import NDArray

from strategies.attempts import AttemptLog, Begun, Step
from strategies.coordinator import Coordinator, SumMemory
from strategies.exchange import exchange
from strategies.grids import RoundFacts, count_refusals, size_of, spelled
from strategies.mean_only import check_mean_only
from strategies.sum_grid import Agreement, SumGrid, clip_of, round_of, scaling_of, variate_of
from tacit.encoding import VARIATE, config_digest
from tacit.errors import ProtocolError, RunFailed
from tacit.npy import header_of_bytes
from tacit.secagg.contexts import Invitation, model_digest
from tacit.secagg.encoder import Encoder
from tacit.secagg.journal import MAX_ATTEMPTS
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair
from tacit.secagg.members import Member
from tacit.secagg.messages import SetupRequest
from tacit.secagg.receipt import Receipt, aggregate_digest, confirmations_digest
from tacit.secagg.ring import packed_size
from tacit.secagg.server import AttemptFailed, ServerMachine
from tacit.update import Aggregate

PHASES = ("keys", "shares", "vectors", "confirmations", "openings")  # M0 to M4
PUT_BACK = (
    ". Some have seen later receipts than this server has: it was put back from a backup. "
    "docs/audit.md says how to bring the missing ones back from a site's log"
)


@dataclass
class _Course:
    """An attempt on its way.

    Attributes:
        machine: the server's.
        models: the training message of everybody who is invited, by roster index.
        steps: those that another process has made, from M0 on.
        fewest: who have to answer M0.
        number: of the next step.
        refusals, bytes_up, seconds: what is told of it: by code, by node, by phase.
    """

    machine: ServerMachine
    models: Mapping[int, Message]
    steps: list[Step]
    fewest: int
    number: int = 0
    refusals: Counter[str] = field(default_factory=Counter)
    bytes_up: Counter[int] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)

    def node(self, index: int) -> int:
        """Flower's number of a member's node."""
        return self.models[index].metadata.dst_node_id

    def replay(self, step: Step, collect: Callable[..., None]) -> None:
        """Gives the machine what a step has brought already."""
        if step.total:
            self.machine.restore_masked(step.answers, step.total)
        else:
            for body in step.answers:
                collect(body)
        self.bytes_up.update(step.bytes_up)
        self.refusals.update(step.refusals)


class SecureAggregationGrid(SumGrid):
    """The cryptographic protocol, driven over Flower messages.

    Guarantees:
        The server's code receives masked updates only, and learns their sum or nothing.
        Who is proven to have cheated is asked no more.
        A sum has its receipt before anything of it is used.

    Args:
        grid: carries the messages.
        strategy: the strategy that will use this grid; refused if it needs more than the mean.
        agreement: of this run.
        coordinator: who this server is.
        mean_only: take the word of the caller that `strategy` needs the mean only.
    """

    def __init__(
        self,
        grid: Grid,
        strategy: Strategy,
        agreement: Agreement,
        coordinator: Coordinator,
        *,
        mean_only: bool = False,
    ) -> None:
        super().__init__(grid, agreement)
        if not mean_only:
            check_mean_only(strategy)
        self._coordinator = coordinator
        self._machine: tuple[ServerMachine, Invitation] | None = None  # of the sum that was opened last

    def beside(self, grid: Grid, memory: SumMemory, attempts: AttemptLog) -> SecureAggregationGrid:
        """Another one, for sums of other members that are made at the same time; both have one line of receipts."""
        other = copy.copy(self)
        other._grid, other.facts, other._machine = grid, RoundFacts(), None
        other._coordinator = replace(self._coordinator, memory=memory, attempts=attempts)
        return other

    def _sum(
        self, messages: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder
    ) -> Aggregate:
        coordinator, memory = self._coordinator, self._coordinator.memory
        fewest = self._agreement.rules.fewest(len(messages))
        invited = everybody = self._without(messages, self._barred())
        refused, blamed, failed = Counter[str](), set[Member](), 0
        if (kept := self._kept(messages, arrays, encoder)) is None:
            memory.reopen(round_of(messages[0]))
        while kept or memory.next_attempt(round_of(messages[0])) <= MAX_ATTEMPTS:
            if kept:
                begun, steps = kept
                invited = [message for message in messages if self._member(message).index in begun.invited]
            elif len(invited) < fewest:
                break
            else:
                begun, steps = self._begin(invited, arrays, encoder), []
            kept = None
            invitation = SetupRequest.decode(begun.request).invitation
            machine = ServerMachine(
                invitation,
                [self._member(m) for m in invited],
                coordinator.identity,
                KeyPair(begun.secret),
                counters=begun.counters,
                threads=coordinator.threads,
            )
            try:
                aggregate = self._attempt(machine, invited, fewest, steps)
                self._machine = machine, invitation
                refused |= Counter(self.facts.refusals)
                labels = tuple(member.label for member in sorted({*blamed, *machine.blamed}))
                self.facts = replace(self.facts, refusals=refused, attempts=failed + 1, blamed=labels)
                return aggregate
            except AttemptFailed as error:
                coordinator.attempts.drop()
                failed += 1
                refused |= Counter(self.facts.refusals)  # a site that refuses every attempt is one site
                blamed.update(machine.blamed, error.guilty)
                for member in error.guilty:
                    memory.strike(member.index)
                left = self._without(invited, {member.index for member in error.without})
                everybody = self._without(everybody, self._barred())
                # A message may also just have been late.
                invited = left if len(left) >= fewest else everybody
            except ProtocolError:
                coordinator.attempts.drop()
                raise
        if left_out := len(messages) - len(everybody):
            refused["barred"] = left_out  # who is not even asked: see `_barred`
        raise RunFailed(
            f"no sum over at least {fewest} of {len(messages)} sites in {failed} attempts; "
            f"sites refused: {spelled(refused)}{PUT_BACK if 'receipts' in refused else ''}"
        )

    def _proof(self, total: Aggregate) -> str:
        """See `SumGrid`."""
        assert self._machine is not None
        (machine, invitation), receipts = self._machine, self._coordinator.receipts
        receipt = Receipt(
            context=machine.ctx2,
            number=len(receipts.receipts) + 1,
            previous=receipts.head,
            roster=invitation.roster,
            run=invitation.run,
            round=invitation.round,
            attempt=invitation.attempt,
            model=invitation.model,
            survivors=machine.survivors,
            confirmations=confirmations_digest(machine.confirmations),
            aggregate=aggregate_digest(total),
            epsilon=self._agreement.epsilon(invitation.round),
        )
        signed = receipt.signed(self._coordinator.identity).encode().hex()
        return json.dumps([signed, {i: signature.hex() for i, signature in machine.confirmations.items()}])

    def _opened(self, proof: str) -> None:
        """Writes the receipt of a sum."""
        signed, signatures = json.loads(proof)
        receipt, receipts = Receipt.decode(bytes.fromhex(signed)), self._coordinator.receipts
        confirmations = {int(i): bytes.fromhex(signature) for i, signature in signatures.items()}
        with receipts.opening:
            if any(written.context == receipt.context for written in receipts.receipts):
                return  # by a process that was killed then; another run may have written more since
            receipt = replace(receipt, number=len(receipts.receipts) + 1, previous=receipts.head)
            receipts.add(receipt.signed(self._coordinator.identity), confirmations)

    def _begin(self, invited: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder) -> Begun:
        """A new attempt, which is noted down."""
        memory, secret = self._coordinator.memory, secrets.token_bytes(SECRET_KEY_BYTES)
        invitation = self._invitation(invited, arrays, encoder, memory.attempt, KeyPair(secret).public)
        request = SetupRequest(invitation).signed(self._coordinator.identity).encode()
        indices = tuple(self._member(message).index for message in invited)
        begun = Begun(request, secret, indices, dict(memory.counters))
        self._coordinator.attempts.begin(begun)
        return begun

    def _kept(
        self, messages: list[Message], arrays: Mapping[str, NDArray[Any]], encoder: Encoder
    ) -> tuple[Begun, list[Step]] | None:
        """The attempt that another process has begun, if it is at this sum and all invited are still asked."""
        kept, memory = self._coordinator.attempts.kept(), self._coordinator.memory
        if kept is None:
            return None
        invitation = SetupRequest.decode(kept[0].request).invitation
        if round_of(messages[0]) != invitation.round:  # whose members may be others
            return None
        invited = [message for message in messages if self._member(message).index in kept[0].invited]
        own = self._invitation(invited, arrays, encoder, memory.attempt, invitation.server_pk)
        # The head is another one when the receipt of this very sum is what was written last.
        same = replace(own, receipt_head=invitation.receipt_head) == invitation
        return kept if same and memory.round == invitation.round else None

    def _attempt(
        self, machine: ServerMachine, invited: list[Message], fewest: int, steps: list[Step]
    ) -> Aggregate:
        """M0 keys, M1 shares, M2 masked vectors, M3 confirmations, M4 openings; first those that are kept."""
        course = _Course(machine, {self._member(m).index: m for m in invited}, steps, fewest)
        self.facts = RoundFacts(refusals=course.refusals)
        self._phase(course, dict.fromkeys(course.models, machine.setup_request()), machine.collect_setup)
        if len(invited) - len(machine.missing) < fewest:
            # Below n - D of the whole cohort, though it may be enough for an attempt with fewer invited.
            raise AttemptFailed("keys", machine.missing)
        requests: Mapping[int, bytes] = machine.deal_requests()
        self._coordinator.memory.show({i: e.counter for i, e in machine.cohort.entries.items()})
        self._phase(course, requests, machine.collect_dealt)
        requests = machine.mask_requests()
        size = packed_size(machine.length, machine.cohort.parameters.bits)
        self._phase(course, requests, machine.collect_masked, size)
        course.refusals.update({"complaint": len(machine.complaints)} if machine.complaints else {})
        self._phase(course, machine.confirm_requests(), machine.collect_confirmed)
        self._phase(course, machine.unmask_requests(), machine.collect_unmask)
        self.facts = RoundFacts(
            survivors=tuple(self._label(course.node(i)) for i in machine.survivors),
            refusals=course.refusals,
            bytes_up=max(course.bytes_up.values()),
            bits=machine.cohort.parameters.bits,
            threshold=machine.cohort.parameters.threshold,
            noise_share=machine.cohort.parameters.noise_share,
            phases=course.seconds,
        )
        return machine.aggregate()

    def _phase(
        self,
        course: _Course,
        requests: Mapping[int, bytes],
        collect: Callable[..., None],
        size: int = -1,
    ) -> None:
        """Sends one phase's requests and takes what comes; an answer that is refused counts as none."""
        number, started, before = course.number, time.perf_counter(), course.refusals.copy()
        shown = self._coordinator.receipts.shown(course.machine.receipt_head) if number == 0 else []
        course.number += 1
        if number < len(course.steps):
            course.replay(course.steps[number], collect)
            return

        indices = {course.node(i): i for i in requests}

        def request(node: int) -> Message:
            model = course.models[indices[node]] if number == 0 else None
            return self._request(f"tacit{number}", node, requests[indices[node]], model, shown)

        accepted, sizes, deadline = list[bytes](), Counter[int](), self._agreement.deadline_seconds
        enough, needed = self._waited_for(course, number)
        for answer in exchange(self._grid, map(request, indices), deadline, request, enough, needed):
            if answer.has_error():
                course.refusals.update(count_refusals([answer]))
                continue
            try:
                body = _body(answer)
                sizes[answer.metadata.src_node_id] += size_of(answer.content) + len(body)
                collect(body, *([_vector(answer, size)] if size >= 0 else []))
                accepted.append(body)
            except ProtocolError as error:
                course.refusals[error.reason] += 1
        course.bytes_up.update(sizes)
        total = course.machine.masked_total if size >= 0 else b""
        step = Step(tuple(accepted), total, sizes, dict(course.refusals - before))
        self._coordinator.attempts.keep(number, step)
        course.seconds[PHASES[number]] = time.perf_counter() - started

    def _waited_for(self, course: _Course, number: int) -> tuple[int, int]:
        """How many answers a step had better have, and how many it waits for beyond its deadline.

        In M1 nothing has left the sites but keys: another attempt costs nothing, and asks those who were late for M0.
        """
        if number == 0:
            enough = needed = course.fewest
        else:
            enough, threshold = course.machine.cohort.fewest, course.machine.cohort.parameters.threshold
            is_last = self._coordinator.memory.attempt == MAX_ATTEMPTS
            needed = (0, enough if is_last else 0, enough, threshold, threshold)[number]
        return enough, needed if self._agreement.waits else 0

    def _request(
        self, step: str, node: int, body: bytes, model: Message | None, receipts: list[bytes]
    ) -> Message:
        content = RecordDict({"tacit": ConfigRecord({"body": body})})
        if receipts:
            content.config_records["tacit"]["receipts"] = receipts
        for name in ("arrays", "scaling", "clip", VARIATE):
            if model is not None and name in model.content:
                content[name] = model.content[name]
        return Message(content=content, message_type=f"train.{step}", dst_node_id=node)

    def _invitation(
        self,
        messages: list[Message],
        arrays: Mapping[str, NDArray[Any]],
        encoder: Encoder,
        attempt: int,
        server_pk: bytes,
    ) -> Invitation:
        agreement = self._agreement
        return Invitation(
            roster=self._coordinator.roster.digest(),
            run=agreement.run,
            round=round_of(messages[0]),
            attempt=attempt,
            model=model_digest(arrays),
            config=config_digest(
                agreement.config, scaling_of(messages[0]), clip_of(messages[0]), variate_of(messages[0])
            ),
            length=encoder.layout.size,
            num_invited=len(messages),
            rules=agreement.rules,
            server_pk=server_pk,
            receipt_head=self._coordinator.receipts.head,
        )

    def _barred(self) -> set[int]:
        """Members that clients refuse to sum with today: proven to have cheated, revoked, or with an old key."""
        today, barred = datetime.now(UTC).date(), set(self._coordinator.memory.strikes)
        for member in self._agreement.members.values():
            try:
                self._coordinator.roster.check_member(member.index, today)
            except ProtocolError:
                barred.add(member.index)
        return barred

    def _without(self, messages: list[Message], members: Collection[int]) -> list[Message]:
        return [message for message in messages if self._member(message).index not in members]

    def _member(self, message: Message) -> Member:
        return self._agreement.members[message.metadata.dst_node_id]


def _vector(answer: Message, size: int) -> memoryview:
    """The packed words beside a message, which are `size` bytes or refused; nothing is reserved on a header's word."""
    record = answer.content.get("vector")
    array = record.get("words") if isinstance(record, ArrayRecord) else None
    if not isinstance(array, Array) or array.dtype != "uint8":
        return memoryview(b"")  # a complaint has none
    header = header_of_bytes(size)
    if len(array.data) != len(header) + size or not array.data.startswith(header):
        raise ProtocolError("vector-size", "a vector of another length, or not of bytes")
    return memoryview(array.data)[len(header) :]


def _body(answer: Message) -> bytes:
    record = answer.content.get("tacit")
    value = record.get("body") if isinstance(record, ConfigRecord) else None
    if not isinstance(value, bytes):
        raise ProtocolError("body", "the answer has no body")
    return value
