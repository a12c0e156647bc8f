"""One attempt with all its machines, driven step by step by a test that may lie in anybody's name."""

import random
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from tacit.errors import ProtocolError
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.in_process import Federation
from tacit.secagg.parameters import Rules
from tacit.secagg.server import AttemptFailed, ServerMachine
from tacit.update import Aggregate, EncodedUpdate

C_INT, LENGTH = 1024, 20
RULES = Rules(max_corrupt=1, max_dropouts=1, c_int=C_INT)
# step -> how the server asks for it, and takes it
STEPS = {
    "setup": ("setup_request", "collect_setup"),
    "deal": ("deal_requests", "collect_dealt"),
    "mask": ("mask_requests", "collect_masked"),
    "confirm": ("confirm_requests", "collect_confirmed"),
    "unmask": ("unmask_requests", "collect_unmask"),
}

Answer = bytes | tuple[bytes, bytes]
Lies = Mapping[int, Callable[[Any], Answer]]


def vector(index: int, length: int = LENGTH, c_int: int = C_INT) -> EncodedUpdate:
    return EncodedUpdate(np.random.default_rng(index).integers(-c_int, c_int + 1, length), False)


def plain_sum(indices: Collection[int], length: int = LENGTH) -> list[int]:
    values: list[int] = ideal_sum([vector(i, length) for i in indices]).values.tolist()
    return values


class Round:
    """Honest parties; `lies` changes what one of them answers, `gone` are silent from that step on."""

    def __init__(
        self,
        n: int = 5,
        rules: Rules = RULES,
        seed: int = 0,
        *,
        length: int = LENGTH,
        federation: Federation | None = None,
        members: Collection[int] | None = None,
        attempt: int = 1,
        counters: Mapping[int, int] | None = None,
    ) -> None:
        self.federation = federation or Federation(n, rules, random.Random(seed).randbytes)
        everybody = self.federation.roster.members
        invited = sorted(members) if members is not None else range(len(everybody))
        self.key = self.federation.key()
        self.invitation = replace(
            self.federation.invitation(length, self.key, attempt=attempt), num_invited=len(invited)
        )
        self.server = ServerMachine(
            self.invitation,
            [everybody[i] for i in invited],
            self.federation.server_identity,
            self.key,
            counters=counters,
        )
        self.clients = {i: self.federation.client(i) for i in invited}
        self.encoded = {i: vector(i, length, rules.c_int) for i in invited}
        self.requests: dict[str, dict[int, bytes]] = {}
        self.answers: dict[str, dict[int, Answer]] = {}
        self.gone: set[int] = set()

    def identity(self, index: int) -> Any:
        return self.federation.identities[index]

    def ask(self, step: str) -> dict[int, bytes]:
        asked = getattr(self.server, STEPS[step][0])()
        self.requests[step] = dict.fromkeys(self.clients, asked) if step == "setup" else dict(asked)
        return self.requests[step]

    def answer(self, step: str, index: int) -> Answer:
        """An honest client's answer; a complaint comes with an empty vector."""
        client, request = self.clients[index], self.requests[step][index]
        if step == "setup":
            return client.setup(request, self.invitation)
        if step == "mask":
            if (stored := client.answered("mask", request)) is not None:
                return stored
            complaint = client.receive(request)
            return client.mask(request, self.encoded[index]) if complaint is None else (complaint, b"")
        answer: bytes = getattr(client, step)(request)
        return answer

    def collect(self, step: str, answer: Answer) -> None:
        take = getattr(self.server, STEPS[step][1])
        take(*answer) if isinstance(answer, tuple) else take(answer)

    def step(self, step: str, *, gone: Collection[int] = (), lies: Lies | None = None) -> "Round":
        self.gone |= set(gone)
        answers = self.answers[step] = {}
        for index in self.ask(step):
            if index not in self.gone:
                honest = self.answer(step, index)
                answers[index] = lies[index](honest) if lies and index in lies else honest
                self.collect(step, answers[index])
        return self

    def until(self, last: str, *, gone: Mapping[str, Collection[int]] | None = None) -> "Round":
        """All steps up to and including the last."""
        for step in STEPS:
            if step not in self.requests:
                self.step(step, gone=(gone or {}).get(step, ()))
            if step == last:
                break
        return self

    def run(self, gone: Mapping[str, Collection[int]] | None = None) -> Aggregate:
        return self.until("unmask", gone=gone).server.aggregate()


def reason_of(call: Callable[..., object], *arguments: object) -> str:
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    return error.value.reason


def failure_of(call: Callable[..., object], *arguments: object) -> tuple[list[int], list[int]]:
    """Who has to be left out of the next attempt, and who is proven guilty."""
    with pytest.raises(AttemptFailed) as error:
        call(*arguments)
    return [m.index for m in error.value.without], [m.index for m in error.value.guilty]
