"""A whole attempt in one place, from a description that the golden vectors hold: who, which rules, which numbers.

All secrets come from SHAKE-256 of `<seed>/<name>`: `identity/<u>` and `server/identity` (Ed25519), `server/<attempt>`
(X25519), `client/<u>/<attempt>` (the draws of section 5). Coordinate j of client u is (7919 u + 104729 j) mod
(2 C_int + 1) - C_int.
"""

from __future__ import annotations

from datetime import date
from typing import Any

from tests.reference.canonical import Reader, data, numbers, require, sha256
from tests.reference.journal import Journal
from tests.reference.keys import Draws, check_key, identity, public
from tests.reference.messages import (
    Entry,
    Invitation,
    confirmations_body,
    entries_body,
    proofs_body,
    read_entry,
    request,
    verify_answer,
)
from tests.reference.parameters import Rules
from tests.reference.roster import Member, Roster
from tests.reference.secagg import Client, Sum, invite

TODAY, EXPIRY = date(2030, 1, 1).toordinal(), date(2031, 1, 1).toordinal()
Described = dict[str, Any]


def drawn(described: Described, name: str) -> Draws:
    """A stream of secrets."""
    return Draws(f"{described['seed']}/{name}".encode())


def vector(described: Described, u: int) -> list[int]:
    """The integers of client u."""
    c_int = described["rules"]["C_int"]
    return [(7919 * u + 104729 * j) % (2 * c_int + 1) - c_int for j in range(described["length"])]


def read_setup(message: bytes, ctx0: bytes, keys: dict[int, bytes]) -> tuple[Entry, bytes]:
    """M0/answer, as the server takes it."""
    r = Reader(message, "M0/answer")
    require(r.data(32) == ctx0, "context")
    sender = r.number()
    entry, signature = read_entry(r), r.data(64)
    r.end()
    require(entry.index == sender, "sender")
    require(sender in keys, "unknown-member")
    verify_answer(keys[sender], "M0/answer", ctx0, sender, entry.canonical(), signature)
    check_key(entry.enc)
    check_key(entry.mask)
    return entry, signature


class Round:
    """One attempt with everybody in it."""

    def __init__(self, described: Described) -> None:
        self.described = described
        n = described["n"]
        secrets = [drawn(described, f"identity/{u}")(32) for u in range(n)]
        self.server = drawn(described, "server/identity")(32)
        self.keys = {u: identity(secret) for u, secret in enumerate(secrets)}
        members = tuple(Member(f"member-{u}", self.keys[u], EXPIRY, 100 + u) for u in range(n))
        low, dropouts = described["roster"]
        self.roster = Roster(
            members, identity(self.server), (low, n), 1, dropouts, (1, 100), (0.5, 2.0), (0.0, 8.0)
        )
        self.roster.check()
        self.rules = Rules(**described["rules"])
        journals = [Journal() for _ in range(n)]
        for attempt in range(1, described["attempt"] + 1):
            self.shown = self.invitation(attempt)
            self.clients = [
                Client(
                    u, secrets[u], self.roster, drawn(described, f"client/{u}/{attempt}"), journals[u], TODAY
                )
                for u in range(n)
            ]
            if attempt < described["attempt"]:
                self.setup()
        self.made: dict[str, Any] = {}

    def invitation(self, attempt: int) -> Invitation:
        """What the server asks."""
        self.enc = drawn(self.described, f"server/{attempt}")(32)
        described = self.described
        return Invitation(
            self.roster.digest(),
            described["run"],
            described["round"],
            attempt,
            sha256(b"model"),
            sha256(b"config"),
            described["length"],
            described["n"],
            self.rules,
            public(self.enc),
        )

    def present(self, step: str) -> list[int]:
        """Who has not vanished before answering this step."""
        steps = ["M0", "M1", "M2", "M3", "M4"]
        gone = self.described.get("gone", {})
        out = {u for before in steps[: steps.index(step) + 1] for u in gone.get(before, ())}
        return [u for u in range(self.described["n"]) if u not in out]

    def setup(self) -> dict[int, bytes]:
        """M0 of everybody who is there."""
        self.m0 = invite(self.shown, self.server)
        return {u: self.deliver("M0/request", u, self.m0) for u in self.present("M0")}

    def deliver(self, name: str, u: int, message: bytes) -> bytes:
        """A request to a client; the words of M2 are kept beside."""
        client, shown = self.clients[u], self.shown
        if name == "M0/request":
            return client.m0(message, shown.model, shown.config, shown.length, self.rules)
        if name == "M1/request":
            return client.m1(message)
        if name == "M2/request":
            answer, words = client.m2(message, vector(self.described, u))
            self.made.setdefault("words", {})[u] = words
            return answer
        return client.m3(message) if name == "M3/request" else client.m4(message)

    def take(self, name: str, u: int, message: bytes, words: bytes = b"") -> None:
        """An answer to the server."""
        if name == "M0/answer":
            read_setup(message, self.shown.ctx0(), self.keys)
        elif name == "M1/answer":
            self.sum.dealt(u, message)
        elif name == "M2/answer":
            self.sum.masked(u, message, words)

    def asked(self, step: str) -> dict[int, bytes]:
        """The requests of a step."""
        made, step_before = self.made, {"M1": "M0", "M2": "M1", "M3": "M2", "M4": "M3"}.get(step, "")
        if step == "M0":
            self.m0 = invite(self.shown, self.server)
            return dict.fromkeys(range(self.described["n"]), self.m0)
        answers = made[step_before + "/answer"]
        if step == "M1":
            entries = [read_setup(answers[u], self.shown.ctx0(), self.keys) for u in sorted(answers)]
            self.entries = [entry for entry, _ in entries]
            return dict.fromkeys(answers, request("M1/request", self.shown.ctx0(), entries_body(entries)))
        if step == "M2":
            self.u2 = sorted(answers)
            self.sum = Sum(self.shown, self.enc, self.entries, self.keys, self.u2)
            for u in self.u2:
                self.sum.dealt(u, answers[u])
            front = request("M2/request", self.sum.ctx1, numbers(self.u2))
            return {u: front + data(self.sum.rows_for(u)) for u in self.u2}
        if step == "M3":
            self.u3 = sorted(answers)
            for u in self.u3:
                self.sum.masked(u, answers[u], made["words"][u])
            proofs = {u: (answers[u][-84:-68], answers[u][-64:]) for u in self.u3}
            near = {u: [*self.sum.near[u], u] for u in self.u3}
            return {
                u: request(
                    "M3/request",
                    self.sum.ctx2,
                    proofs_body(self.u3, {v: proofs[v] for v in near[u] if v in proofs}),
                )
                for u in self.u3
            }
        chosen = sorted(answers)[: self.sum.p.T]
        body = confirmations_body(self.u3, {u: answers[u][-64:] for u in chosen})
        return dict.fromkeys(self.u3, request("M4/request", self.sum.ctx2, body))

    def until(self, step: str) -> Round:
        """Everything before the answers of a step."""
        for name in ("M0", "M1", "M2", "M3", "M4"):
            asked = self.made[name + "/request"] = self.asked(name)
            if name == step:
                break
            there = [u for u in self.present(name) if u in asked]
            self.made[name + "/answer"] = {u: self.deliver(name + "/request", u, asked[u]) for u in there}
        return self

    def run(self) -> dict[str, Any]:
        """Everything that is sent, and the sum."""
        self.until("M4")
        made = self.made
        there = [u for u in self.present("M4") if u in self.u3]
        made["M4/answer"] = {u: self.deliver("M4/request", u, made["M4/request"][u]) for u in there}
        return made | {
            "ctx0": self.shown.ctx0(),
            "ctx1": self.sum.ctx1,
            "ctx2": self.sum.ctx2,
            "sum": self.sum.open(self.u3, made["M4/answer"]),
            "journal": {u: bytes.fromhex(client.journal.hash) for u, client in enumerate(self.clients)},
        }
