"""The whole protocol in one process, through the real machines and their bytes: for tests and measurements.

Neither a client nor a server may import this module, because it has both sides in it.
"""

from __future__ import annotations

import secrets
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import date
from typing import Any, Final

from tacit.secagg.client import ClientMachine, RandomBytes
from tacit.secagg.contexts import NO_HEAD, Invitation
from tacit.secagg.identity import Identity
from tacit.secagg.journal import MemoryJournal
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster, RosterMember
from tacit.secagg.server import ServerMachine
from tacit.update import Aggregate, EncodedUpdate

TODAY: Final = date(2030, 1, 1)
# What the clients do in each step -> how the server asks for it, and takes it.
STEPS: Final = {
    "setup": ("setup_request", "collect_setup"),
    "deal": ("deal_requests", "collect_dealt"),
    "mask": ("mask_requests", "collect_masked"),
    "confirm": ("confirm_requests", "collect_confirmed"),
    "unmask": ("unmask_requests", "collect_unmask"),
}

Gone = Mapping[str, Collection[int]]


class Federation:
    """Members with their keys, and the coordinator, all in one place.

    Args:
        size: how many members.
        rules: what they have agreed on.
        random_bytes: source of all secrets.
    """

    def __init__(self, size: int, rules: Rules, random_bytes: RandomBytes = secrets.token_bytes) -> None:
        self.rules, self.random_bytes = rules, random_bytes
        self.server_identity = Identity.generate(random_bytes)
        self.identities = [Identity.generate(random_bytes) for _ in range(size)]
        members = [Member(i, f"client-{i}", key.public) for i, key in enumerate(self.identities)]
        c = max(1, rules.max_corrupt)
        self.roster = Roster(
            epoch=1,
            enrolled=tuple(RosterMember(member, TODAY.replace(year=2031), 1) for member in members),
            server_key=self.server_identity.public,
            n_min=min(size, c + 2),
            n_max=size,
            max_corrupt=c,
            max_dropouts=0,
        )
        self.journals = [MemoryJournal() for _ in members]

    def invitation(self, length: int, key: KeyPair, *, round_number: int = 1, attempt: int = 1) -> Invitation:
        """An invitation of all members to a sum of vectors of this length."""
        return Invitation(
            roster=self.roster.digest(),
            run="in-process",
            round=round_number,
            attempt=attempt,
            model=NO_HEAD,
            config=NO_HEAD,
            length=length,
            num_invited=len(self.identities),
            rules=self.rules,
            server_pk=key.public,
        )

    def client(self, index: int, threads: int = 1) -> ClientMachine:
        """A machine for a new attempt of one member."""
        return ClientMachine(
            index,
            self.identities[index],
            self.roster,
            self.journals[index],
            TODAY,
            self.random_bytes,
            threads=threads,
        )

    def server(self, invitation: Invitation, key: KeyPair, threads: int = 1) -> ServerMachine:
        """The server's machine for this attempt."""
        return ServerMachine(invitation, self.roster.members, self.server_identity, key, threads=threads)

    def key(self) -> KeyPair:
        """A key of the server for one attempt."""
        return KeyPair(self.random_bytes(SECRET_KEY_BYTES))


class Attempt:
    """One attempt with all its machines.

    Args:
        federation: who takes part.
        encoded: the vector of each member.
        gone: step -> who vanishes before answering it.
        round_number, attempt: of the invitation.
        threads: for the masks, on both sides.
    """

    def __init__(
        self,
        federation: Federation,
        encoded: Sequence[EncodedUpdate],
        gone: Gone | None = None,
        *,
        round_number: int = 1,
        attempt: int = 1,
        threads: int = 1,
    ) -> None:
        key = federation.key()
        self.federation, self.encoded, self.gone = federation, encoded, gone or {}
        self.invitation = federation.invitation(
            encoded[0].values.size, key, round_number=round_number, attempt=attempt
        )
        self.server = federation.server(self.invitation, key, threads)
        self.clients = [federation.client(i, threads) for i in range(len(encoded))]

    def run(self) -> Aggregate:
        """All five steps."""
        for step in STEPS:
            self.deliver(step, self.requests(step))
        return self.server.aggregate()

    def requests(self, step: str) -> Mapping[int, bytes]:
        """What the server asks in this step, by index. Who wants to lie delivers something else."""
        asked: Any = getattr(self.server, STEPS[step][0])()
        return dict.fromkeys(range(len(self.clients)), asked) if step == "setup" else asked

    def deliver(self, step: str, requests: Mapping[int, bytes]) -> None:
        """Everybody's answer to one step, back at the server."""
        if step == "mask":
            self.masked(requests)
            return
        more = (self.invitation,) if step == "setup" else ()
        for index, request in self._present(step, requests):
            answer = getattr(self.clients[index], step)(request, *more)
            getattr(self.server, STEPS[step][1])(answer)

    def masked(self, requests: Mapping[int, bytes]) -> None:
        """Everybody's vector, or complaint."""
        for index, request in self._present("mask", requests):
            complaint = self.clients[index].receive(request)
            if complaint is not None:
                self.server.collect_masked(complaint, b"")
            else:
                self.server.collect_masked(*self.clients[index].mask(request, self.encoded[index]))

    def _present(self, step: str, requests: Mapping[int, bytes]) -> Iterator[tuple[int, bytes]]:
        steps = tuple(STEPS)
        past = steps[: steps.index(step) + 1]
        absent = {index for before in past for index in self.gone.get(before, ())}
        return ((index, request) for index, request in requests.items() if index not in absent)


def secure_sum(
    encoded: Sequence[EncodedUpdate],
    rules: Rules,
    random_bytes: RandomBytes = secrets.token_bytes,
    gone: Gone | None = None,
) -> Aggregate:
    """The sum of the vectors, each of shape (d,), as the protocol computes it.

    Guarantees:
        Bit-equal to `tacit.secagg.ideal.ideal_sum` over the vectors that were sent.
    """
    return Attempt(Federation(len(encoded), rules, random_bytes), encoded, gone).run()
