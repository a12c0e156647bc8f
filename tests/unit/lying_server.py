"""A recorded round of a secure sum, in which one client can be told anything else at any step.

The server has everybody's identity key but the victim's: far more than c members that help it.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

import numpy as np

from tacit.errors import ProtocolError
from tacit.secagg import identity
from tacit.secagg.client import ClientMachine
from tacit.secagg.envelope import Signed
from tacit.secagg.in_process import STEPS, TODAY, Attempt, Federation
from tacit.secagg.journal import MemoryJournal
from tacit.secagg.messages import (
    Complaint,
    ConfirmRequest,
    DealAnswer,
    DealRequest,
    MaskRequest,
    SetupRequest,
    UnmaskRequest,
)
from tacit.secagg.parameters import Rules
from tacit.update import EncodedUpdate

VICTIM, C_INT, LENGTH = 3, 1024, 8
RULES = {10: Rules(1, 2, C_INT, 0.5), 100: Rules(10, 20, C_INT, 0.5), 200: Rules(20, 40, C_INT, 0.5)}
REQUESTS: Mapping[str, Any] = {
    "setup": SetupRequest,
    "deal": DealRequest,
    "mask": MaskRequest,
    "confirm": ConfirmRequest,
    "unmask": UnmaskRequest,
}


@dataclass(frozen=True)
class Moment:
    """The victim before a step, and what an honest server asks it then."""

    exported: bytes
    journal: MemoryJournal
    request: bytes


class Scene:
    """Attempt 2 of a round; attempt 1 ended when its shares were dealt.

    The last member deals nothing and the one before it sends no vector, so that U1, U2 and U3 differ.
    """

    def __init__(self, n: int) -> None:
        self.n, self.federation = n, Federation(n, RULES[n], random.Random(n).randbytes)
        encoded = [vector(i) for i in range(n)]
        self.earlier = Attempt(self.federation, encoded)
        self.earlier.deliver("setup", self.earlier.requests("setup"))
        self.earlier_deal = self.earlier.requests("deal")[VICTIM]
        for client in (self.earlier.clients[0], self.earlier.clients[VICTIM]):
            client.deal(self.earlier_deal)
        self.attempt = Attempt(self.federation, encoded, {"deal": [n - 1], "mask": [n - 2]}, attempt=2)
        self.moments: dict[str, Moment] = {}
        self.dealt: dict[int, DealAnswer] = {}
        for step in STEPS:
            requests = self.attempt.requests(step)
            journal = deepcopy(self.federation.journals[VICTIM])
            self.moments[step] = Moment(self.attempt.clients[VICTIM].export(), journal, requests[VICTIM])
            self.attempt.deliver(step, requests)
            self.dealt = self.dealt or dict(self.attempt.server._dealt)  # the server forgets it
        expected = sum(vector(i).values for i in range(n - 2))
        assert np.array_equal(self.attempt.server.aggregate().values, expected)

    @property
    def fewest(self) -> int:
        """n - D."""
        return self.attempt.server.cohort.fewest

    @property
    def threshold(self) -> int:
        """T."""
        return self.attempt.server.cohort.parameters.threshold

    def victim(self, step: str, journal: MemoryJournal | None = None) -> ClientMachine:
        """A client in the state that the victim had before this step."""
        moment, federation = self.moments[step], self.federation
        return ClientMachine(
            VICTIM,
            federation.identities[VICTIM],
            federation.roster,
            deepcopy(moment.journal) if journal is None else journal,
            TODAY,
            federation.random_bytes,
        ).restore(moment.exported)

    def signed(self, message: Signed, by: int) -> bytes:
        """A member's signature under anything."""
        return message.signed(self.federation.identities[by]).signature


@cache
def scene(n: int) -> Scene:
    return Scene(n)


@dataclass(frozen=True)
class Lie:
    """One altered request.

    Attributes:
        name: as in the catalogue, and in words.
        step: in which it is told.
        alter: from the honest request to the altered one, or its bytes.
        reason: the code expected; "complaint" = a signed complaint about member 0 in place of a vector.
        shown: what the victim computes itself under this lie, because the model that it was sent is another one.
    """

    name: str
    step: str
    alter: Callable[[Scene, Any], Any]
    reason: str
    shown: Mapping[str, Any] = field(default_factory=dict)

    def request(self, stage: Scene) -> bytes:
        told = self.alter(stage, REQUESTS[self.step].decode(stage.moments[self.step].request))
        return told if isinstance(told, bytes) else told.encode()


def lies(step: str, table: Mapping[str, tuple[Any, ...]]) -> list[Lie]:
    """A table of name -> how the request is altered, the reason code, and perhaps what is shown."""
    return [Lie(name, step, *fields) for name, fields in table.items()]


def honest(step: str) -> Lie:
    """No lie."""
    return Lie("", step, lambda stage, request: request, "")


def vector(index: int) -> EncodedUpdate:
    values = np.random.default_rng(index).integers(-C_INT, C_INT + 1, LENGTH)
    return EncodedUpdate(values, False)


def answer(stage: Scene, machine: ClientMachine, step: str, request: bytes, **shown: Any) -> bytes:
    """As `client.submission` does it: the invitation is compared with what the site knows itself."""
    if step == "setup":
        honest = stage.attempt.invitation
        known = {name: getattr(honest, name) for name in ("roster", "model", "config", "length", "rules")}
        invitation = SetupRequest.decode(request).invitation
        return machine.setup(request, replace(invitation, **{**known, **shown}))
    if step == "mask":
        for name in ("mask", "complain"):
            if (stored := machine.answered(name, request)) is not None:
                return stored[0]
        complaint = machine.receive(request)
        return machine.mask(request, vector(VICTIM))[0] if complaint is None else complaint
    made: bytes = getattr(machine, step)(request)
    return made


def outcome(stage: Scene, machine: ClientMachine, lie: Lie, request: bytes) -> str:
    """The reason code, "complaint", or "" where an answer left."""
    try:
        made = answer(stage, machine, lie.step, request, **lie.shown)
    except ProtocolError as error:
        return error.reason
    return "complaint" if Complaint.is_one(made) else ""


def seconds_to_refuse(stage: Scene, lie: Lie) -> float:
    """CPU time of one refusal in a process that has seen none of these keys and signatures."""
    machine, request = stage.victim(lie.step), lie.request(stage)
    identity._check_signature.cache_clear()
    start = time.process_time()
    assert outcome(stage, machine, lie, request) == lie.reason
    return time.process_time() - start


def secrets_of(machine: ClientMachine) -> list[bytes]:
    """Everything that must not leave."""
    state = machine._state
    pairs = [pair.secret() for pair in (state.enc, state.mask) if pair is not None]
    shares = [bytes(s) for held in state.shares.values() for s in (held.own_share, held.key_share)]
    return [*pairs, *([bytes(state.own_seed)] if state.own_seed else []), *shares]
