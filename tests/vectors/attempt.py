"""A whole attempt through the product's machines, from the same description that `tests.reference.rounds` reads."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from datetime import date
from typing import Any

import numpy as np

from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import Invitation
from tacit.secagg.identity import Identity
from tacit.secagg.journal import MemoryJournal
from tacit.secagg.keys import KeyPair
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.roster import Roster, RosterMember
from tacit.secagg.server import ServerMachine
from tacit.update import EncodedUpdate

Described = dict[str, Any]
# step -> how the client is asked, how the server asks, how it takes
STEPS = {
    "M0": ("setup", "setup_request", "collect_setup"),
    "M1": ("deal", "deal_requests", "collect_dealt"),
    "M2": ("mask", "mask_requests", "collect_masked"),
    "M3": ("confirm", "confirm_requests", "collect_confirmed"),
    "M4": ("unmask", "unmask_requests", "collect_unmask"),
}


def draws(seed: str) -> Callable[[int], bytes]:
    """SHAKE-256 of a text, read from the front."""
    at = 0

    def draw(size: int) -> bytes:
        nonlocal at
        at += size
        return hashlib.shake_256(seed.encode()).digest(at)[at - size :]

    return draw


def rules_of(given: Described) -> Rules:
    """Rules as the vectors write them."""
    names = given.get("z", 0.0), given.get("n_min", 0), given.get("n_max", 0)
    return Rules(given["c"], given["D"], given["C_int"], *names)


class Attempt:
    """One attempt with all its machines."""

    def __init__(self, described: Described) -> None:
        self.described, n = described, described["n"]
        self.identities = [Identity.generate(self.draws(f"identity/{u}")) for u in range(n)]
        server = Identity.generate(self.draws("server/identity"))
        members = [Member(u, f"member-{u}", key.public) for u, key in enumerate(self.identities)]
        low, dropouts = described["roster"]
        self.roster = Roster(
            epoch=1,
            enrolled=tuple(RosterMember(m, date(2031, 1, 1), 100 + m.index) for m in members),
            server_key=server.public,
            n_min=low,
            n_max=n,
            max_corrupt=1,
            max_dropouts=dropouts,
            clip=(0.5, 2.0),
            noise=(0.0, 8.0),
            rounds=(1, 100),
        )
        self.journals = [MemoryJournal() for _ in range(n)]
        for attempt in range(1, described["attempt"] + 1):
            key = KeyPair(self.draws(f"server/{attempt}")(32))
            self.invitation = self.invited(attempt, key)
            self.server = ServerMachine(self.invitation, members, server, key)
            self.clients = [
                ClientMachine(
                    u,
                    self.identities[u],
                    self.roster,
                    self.journals[u],
                    date(2030, 1, 1),
                    self.draws(f"client/{u}/{attempt}"),
                )
                for u in range(n)
            ]
            if attempt < described["attempt"]:
                for u in self.present("M0"):
                    self.deliver("M0/request", u, self.server.setup_request())
        self.sent: dict[str, Any] = {"words": {}}

    def draws(self, name: str) -> Callable[[int], bytes]:
        """A stream of secrets."""
        return draws(f"{self.described['seed']}/{name}")

    def invited(self, attempt: int, key: KeyPair) -> Invitation:
        """What the server asks."""
        described = self.described
        return Invitation(
            roster=self.roster.digest(),
            run=described["run"],
            round=described["round"],
            attempt=attempt,
            model=hashlib.sha256(b"model").digest(),
            config=hashlib.sha256(b"config").digest(),
            length=described["length"],
            num_invited=described["n"],
            rules=rules_of(described["rules"]),
            server_pk=key.public,
        )

    def vector(self, u: int) -> EncodedUpdate:
        """The integers of client u."""
        c_int, length = self.described["rules"]["C_int"], self.described["length"]
        values = [(7919 * u + 104729 * j) % (2 * c_int + 1) - c_int for j in range(length)]
        return EncodedUpdate(np.array(values, dtype=np.int64), False)

    def present(self, step: str) -> list[int]:
        """Who has not vanished before answering this step."""
        steps = list(STEPS)
        gone = self.described.get("gone", {})
        out = {u for before in steps[: steps.index(step) + 1] for u in gone.get(before, ())}
        return [u for u in range(self.described["n"]) if u not in out]

    def deliver(self, name: str, u: int, message: bytes) -> bytes:
        """A request to a client; the words of M2 are kept beside."""
        client, step = self.clients[u], name[:2]
        if step == "M0":
            return client.setup(message, self.invitation)
        if step != "M2":
            answer: bytes = getattr(client, STEPS[step][0])(message)
            return answer
        complaint = client.receive(message)
        if complaint is not None:
            return complaint
        answer, words = client.mask(message, self.vector(u))
        self.sent["words"][u] = words
        return answer

    def take(self, name: str, message: bytes, words: bytes = b"") -> None:
        """An answer to the server."""
        more = (words,) if name[:2] == "M2" else ()
        getattr(self.server, STEPS[name[:2]][2])(message, *more)

    def until(self, step: str) -> Attempt:
        """Everything before the answers of a step."""
        for name, (_, ask, _) in STEPS.items():
            asked = getattr(self.server, ask)()
            everybody = range(self.described["n"])
            self.sent[name + "/request"] = dict.fromkeys(everybody, asked) if name == "M0" else dict(asked)
            if name == step:
                break
            self.answers(name)
        return self

    def answers(self, name: str) -> None:
        """Everybody who is still there answers."""
        asked = self.sent[name + "/request"]
        answers = self.sent[name + "/answer"] = {}
        for u in self.present(name):
            if u in asked:
                answers[u] = self.deliver(name + "/request", u, asked[u])
                self.take(name + "/answer", answers[u], self.sent["words"].get(u, b""))

    def run(self) -> dict[str, Any]:
        """Everything that is sent, and the sum."""
        self.until("M4").answers("M4")
        cohort = self.server.cohort
        return self.sent | {
            "ctx0": self.invitation.ctx0(),
            "ctx1": cohort.ctx1,
            "ctx2": cohort.ctx2(sorted(self.sent["M1/answer"])),
            "sum": self.server.aggregate().values.tolist(),
            "journal": {u: bytes.fromhex(journal.head.hash) for u, journal in enumerate(self.journals)},
        }
