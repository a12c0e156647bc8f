"""What each kind of fault does to one message on its way to a site, or to the answer.

A failure or a lie of a site is played behind the real `ClientApp`, a lie of the server in front of it: what the
server receives and what the site refuses is what they would receive and refuse from anybody.
"""

from __future__ import annotations

import copy
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Final

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.common.constant import ErrorCode
from numpy.typing import NDArray

from client.app import REFUSED, body, in_body, participant, received_arrays
from client.participant import Participant
from client.sessions import MemorySessions
from simulations.faults import Fault
from simulations.stacked import StackedTrainer
from simulations.workers import WorkersTrainer
from tacit.secagg.client import ClientMachine
from tacit.secagg.client_state import ClientState
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair
from tacit.secagg.messages import ConfirmRequest, DealAnswer, DealRequest, UnmaskAnswer
from tacit.secagg.prg import KEY_BYTES
from tacit.secagg.sharing import deal
from tacit.tasks import Records
from tacit.tasks.weights import Arrays
from tacit.update import Floats, LocalUpdate

GARBAGE_BYTES: Final = 200


@dataclass(frozen=True)
class Turn:
    """One message on its way to one site.

    Attributes:
        message: what the server has sent.
        context: of the site's node.
        fault: what is to be played.
        handle: the site's honest answer to a message.
        earlier: what the site has answered in this phase before, if anything.
        random: fixed by the seed.
        steady: the same, and equal in every round.
        round: of the run.
    """

    message: Message
    context: Context
    fault: Fault
    handle: Callable[[Message], Message]
    earlier: RecordDict | None
    random: np.random.Generator
    steady: np.random.Generator
    round: int

    @property
    def client(self) -> Participant:
        """The site itself."""
        return participant(self.context)

    @property
    def machine(self) -> ClientMachine:
        """Its state in the attempt that it was invited to."""
        session = self.client.session()
        assert session is not None  # a site that has not been invited is asked nothing more
        return session.machine


Played = tuple[Message, str]  # what the server receives, and what happened in a few words
Play = Callable[[Turn], Played]


def said(answer: Message) -> str:
    """An answer in a few words."""
    return (answer.error.reason or "").replace(":", ": ", 1) if answer.has_error() else "answered"


# --- a site that fails


def lost(turn: Turn) -> Message:
    """What Flower itself gives a server whose message was never answered."""
    return Message(Error(ErrorCode.REPLY_MESSAGE_UNAVAILABLE, "no-answer"), reply_to=turn.message)


def drop(turn: Turn) -> Played:
    """The message does not arrive."""
    return lost(turn), "no answer"


def late(turn: Turn) -> Played:
    """The site does its part, and the answer comes after the deadline."""
    return lost(turn), f"{said(turn.handle(turn.message))}, too late"


def straggle(turn: Turn) -> Played:
    """The site takes its time, by a log-normal law; nobody here waits for it, and the deadline is the run's own."""
    seconds = turn.fault.seconds * float(np.exp(turn.fault.spread * turn.random.standard_normal()))
    answer = turn.handle(turn.message)
    deadline = turn.client.run.experiment.secure_aggregation.deadline_seconds
    if seconds > deadline:
        return lost(turn), f"{said(answer)} after {seconds:.0f} s, too late"
    return answer, f"{said(answer)} after {seconds:.0f} s"


def crash(turn: Turn) -> Played:
    """The site does its part and ends before it has answered; what lay in its memory alone is gone."""
    turn.handle(turn.message)
    turn.client.sessions = MemorySessions()
    return lost(turn), "crashed"


def refuse(turn: Turn) -> Played:
    """The site declines."""
    answer = Message(Error(REFUSED, f"refused:{turn.fault.reason}"), reply_to=turn.message)
    return answer, said(answer)


# --- a site that lies


def instead(change: Callable[[Turn, RecordDict], RecordDict | None]) -> Play:
    """The site does its part, and sends something else; where `change` gives nothing, the truth."""

    def play(turn: Turn) -> Played:
        answer = turn.handle(turn.message)
        if answer.has_error():
            return answer, said(answer)
        content = change(turn, answer.content)
        if content is None:
            return answer, "had nothing to lie with"
        return Message(content, reply_to=turn.message), "lied"

    return play


def garbage(turn: Turn, content: RecordDict) -> RecordDict:
    """Bytes that mean nothing."""
    return in_body(turn.random.bytes(GARBAGE_BYTES))


def replay(turn: Turn, content: RecordDict) -> RecordDict | None:
    """Its own answer of an earlier attempt or round."""
    return turn.earlier


def wrong_length(turn: Turn, content: RecordDict) -> RecordDict | None:
    """A vector that lacks its last byte."""
    if "vector" not in content:
        return None  # a complaint
    words = content.array_records["vector"]["words"].numpy()[:-1]
    return RecordDict({"tacit": content["tacit"], "vector": ArrayRecord({"words": Array(words)})})


def bad_share(turn: Turn, content: RecordDict) -> RecordDict:
    """Shares that do not open, under the site's own good signature."""
    answer = _body_of(content)
    signer = turn.client.site.identity()
    if turn.fault.phase == "shares":
        honest = DealAnswer.decode(answer)
        return in_body(replace(honest, rows=_rows_of_nothing(turn.machine)).signed(signer).encode())
    opened = UnmaskAnswer.decode(answer)
    openings = bytearray(opened.openings)
    openings[0] ^= 1  # in the first dealer's share
    return in_body(replace(opened, openings=bytes(openings)).signed(signer).encode())


def _rows_of_nothing(machine: ClientMachine) -> bytes:
    """Shares of secrets that are not this dealer's: each opens, and what all of them give is nothing."""
    state = ClientState.decode(machine.export())
    cohort, enc = machine.cohort, state.enc
    assert enc is not None  # it has just dealt
    recipients = [(v, cohort.entries[v].enc_pk) for v in cohort.graph.recipients(machine.index)]
    seed, key = secrets.token_bytes(KEY_BYTES), secrets.token_bytes(SECRET_KEY_BYTES)
    threshold = cohort.parameters.share_threshold
    return deal(seed, key, enc, recipients, cohort.ctx1, machine.index, threshold, secrets.token_bytes).rows


def _body_of(content: RecordDict) -> bytes:
    """The canonical bytes in an answer of the protocol."""
    value = content.config_records["tacit"]["body"]
    assert isinstance(value, bytes)
    return value


def with_update(change: Callable[[Fault, Floats], NDArray[np.float32]]) -> Play:
    """The site trains, and passes on another update than it has trained."""

    def play(turn: Turn) -> Played:
        client, honest = turn.client, turn.client.update

        def update(run_id: str, round_number: int, arrays: Arrays) -> LocalUpdate:
            trained = honest(run_id, round_number, arrays)
            delta = {name: change(turn.fault, values) for name, values in trained.delta.items()}
            return replace(trained, delta=delta)

        setattr(client, "update", update)  # noqa: B010 - of this one site, for this one message
        try:
            answer = turn.handle(turn.message)
        finally:
            delattr(client, "update")
        return answer, said(answer) if answer.has_error() else "lied"

    return play


def flip_labels(turn: Turn) -> Played:
    """The site trains on labels that are wrong, the same ones in every round."""
    client, honest = turn.client, turn.client.records
    poisoned = _flipped(honest("train"), turn)
    trainer = client.run.trainer
    if isinstance(
        trainer, StackedTrainer | WorkersTrainer
    ):  # what it has trained ahead was of the right labels
        trainer.forget(client.site.label, turn.round)
    setattr(client, "records", lambda split: poisoned if split == "train" else honest(split))  # noqa: B010
    try:
        answer = turn.handle(turn.message)
    finally:
        delattr(client, "records")
    return answer, said(answer) if answer.has_error() else "lied"


def _flipped(records: Records, turn: Turn) -> Records:
    """Some rows with another class; numbers instead of classes are mirrored about the middle of the site's own."""
    targets = records.targets.clone()
    count = round(turn.fault.rate * len(targets))
    rows = torch.from_numpy(np.sort(turn.steady.choice(len(targets), size=count, replace=False)))
    if targets.dtype.is_floating_point:
        targets[rows] = targets.max() + targets.min() - targets[rows]
        return Records(records.features, targets)
    classes = _classes(turn)
    if turn.fault.to:
        targets[rows] = classes.index(turn.fault.to)
    else:
        steps = torch.from_numpy(turn.steady.integers(1, len(classes), size=count))
        targets[rows] = (targets[rows] + steps) % len(classes)
    return Records(records.features, targets)


def _classes(turn: Turn) -> tuple[str, ...]:
    columns = turn.client.run.experiment.data.columns
    return columns.classes if columns is not None else ("0", "1")


# --- a server that lies


def altered(message: Message, **records: ArrayRecord | ConfigRecord) -> Message:
    """The same message with other records."""
    copied = copy.copy(message)
    copied.content = RecordDict({**message.content, **records})
    return copied


def told(change: Callable[[Turn], Message]) -> Play:
    """The site is sent something else."""

    def play(turn: Turn) -> Played:
        answer = turn.handle(change(turn))
        return answer, said(answer)

    return play


def other_model(turn: Turn) -> Message:
    """The invitation that all others get, with another model beside it."""
    arrays = received_arrays(turn.message)
    changed = {name: Array(np.asarray(values + np.float32(1))) for name, values in arrays.items()}
    return altered(turn.message, arrays=ArrayRecord(changed))


def swap_key(turn: Turn) -> Message:
    """The list of clients, with a masking key of the server's own in another one's entry."""
    request, own = DealRequest.decode(body(turn.message)), turn.machine.index
    key = KeyPair(turn.random.bytes(SECRET_KEY_BYTES)).public
    other = next(entry for entry in request.entries if entry.index != own)
    entries = tuple(replace(e, mask_pk=key) if e is other else e for e in request.entries)
    return altered(turn.message, tacit=_fields(replace(request, entries=entries).encode()))


def survivors(turn: Turn) -> Message:
    """As if fewer vectors had come than the clients allow a sum of."""
    return _of_survivors(turn, turn.machine.cohort.fewest - 1)


def two_sets(turn: Turn) -> Played:
    """The site is asked to sign two sets of survivors, so that both kinds of a share could be had."""
    everybody = len(ConfirmRequest.decode(body(turn.message)).survivors)
    first = turn.handle(_of_survivors(turn, everybody - 1))
    second = turn.handle(turn.message)
    return second, f"one set: {said(first)}; another: {said(second)}"


def _of_survivors(turn: Turn, count: int) -> Message:
    """A request of M3 for this site and some others, with the proofs that the server has of them."""
    request, own = ConfirmRequest.decode(body(turn.message)), turn.machine.index
    others = [i for i in request.survivors if i != own]
    chosen = tuple(sorted([own, *others[: count - 1]]))
    proofs = tuple(proof for proof in request.proofs if proof[0] in chosen)
    return altered(turn.message, tacit=_fields(replace(request, survivors=chosen, proofs=proofs).encode()))


def _fields(content: bytes) -> ConfigRecord:
    return ConfigRecord({"body": content})


PLAYS: Final[Mapping[str, Play]] = {
    "drop": drop,
    "late": late,
    "straggle": straggle,
    "crash": crash,
    "refuse": refuse,
    "bad-share": instead(bad_share),
    "wrong-length": instead(wrong_length),
    "replay": instead(replay),
    "garbage": instead(garbage),
    "boost": with_update(lambda fault, values: np.asarray(fault.factor * values, dtype=np.float32)),
    "nan": with_update(lambda fault, values: np.full_like(values, np.nan, dtype=np.float32)),
    "flip-labels": flip_labels,
    "other-model": told(other_model),
    "swap-key": told(swap_key),
    "survivors": told(survivors),
    "two-sets": two_sets,
}
