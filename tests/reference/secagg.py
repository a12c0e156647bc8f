"""A client and the sum of the secure sum (sections 6, 7 and 12 of `docs/protocol.md`), slow and plain."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import floor, sqrt

from tests.reference.canonical import SERVER, Reader, Refused, data, label, number, numbers, require
from tests.reference.journal import Journal
from tests.reference.keys import (
    Draws,
    check_key,
    mask_seed,
    prg,
    public,
    sign,
    tag,
    tag_key,
    verify,
)
from tests.reference.messages import (
    Entry,
    Invitation,
    ctx1_of,
    ctx2_of,
    pack,
    packed_size,
    read_entry,
    read_request,
    signed,
    unpack,
    verify_answer,
)
from tests.reference.parameters import FORMULAS, Parameters, Rules, check_rules, derive, neighbours
from tests.reference.roster import Roster
from tests.reference.sharing import (
    OPENING,
    ROW,
    Dealt,
    join,
    opened_row,
    opened_share,
    own_commitment,
    polynomial,
    share_of,
)


def invite(invitation: Invitation, secret: bytes) -> bytes:
    """M0/request."""
    ctx0 = invitation.ctx0()
    signature = sign(secret, "M0/request", ctx0, SERVER, ctx0)
    return label("M0/request") + invitation.canonical() + data(signature)


def read_invitation(message: bytes) -> tuple[Invitation, bytes]:
    """The invitation and its signature."""
    r = Reader(message, "M0/request")
    roster, run, round_, attempt = r.data(32), r.text(), r.number(), r.number()
    model, config, length, num_invited = r.data(32), r.data(32), r.number(), r.number()
    require(r.text() == "tacit-1" and r.text() == FORMULAS, "rules")
    rules = Rules(r.number(), r.number(), r.number(), r.real(), r.number(), r.number())
    check_rules(rules)
    server_pk, receipt_head = r.data(32), r.data(32)
    shown = Invitation(
        roster, run, round_, attempt, model, config, length, num_invited, rules, server_pk, receipt_head
    )
    signature = r.data(64)
    r.end()
    return shown, signature


class Client:
    """One client in one attempt: bytes in, bytes out, or `Refused`."""

    def __init__(
        self, index: int, secret: bytes, roster: Roster, draws: Draws, journal: Journal, today: int
    ) -> None:
        self.u, self.secret, self.roster, self.draws = index, secret, roster, draws
        self.journal, self.today = journal, today
        self.has_confirmed = False

    def m0(self, message: bytes, model: bytes, config: bytes, length: int, rules: Rules) -> bytes:
        """Answer an invitation."""
        shown, signature = read_invitation(message)
        self.shown, self.ctx0 = shown, shown.ctx0()
        verify(self.roster.server_key, signature, "M0/request", self.ctx0, SERVER, self.ctx0)
        require(rules.c >= self.roster.c, "rules")
        own = (self.roster.digest(), model, config, length, rules)
        require((shown.roster, shown.model, shown.config, shown.length, shown.rules) == own, "context")
        require(1 <= len(shown.run) <= 64 and shown.run.isprintable(), "run")
        check_key(shown.server_pk)
        self.journal.answered(shown.run, shown.round, shown.attempt, model, config, self.ctx0)
        self.enc, self.mask, nonce = (self.draws(32) for _ in range(3))
        head = self.journal.site_head(shown.run)
        self.entry = Entry(self.u, public(self.enc), public(self.mask), nonce, self.journal.counter, head)
        return signed(self.secret, "M0/answer", self.ctx0, self.u, self.entry.canonical())

    def m1(self, message: bytes) -> bytes:
        """Deal to the neighbours."""
        r = read_request(message, "M1/request", self.ctx0)
        listed = [(read_entry(r), r.data(64)) for _ in range(r.count(228))]
        r.end()
        entries = [entry for entry, _ in listed]
        self.check_cohort(entries)
        for entry, signature in listed:
            key = self.roster.members[entry.index].key
            verify_answer(key, "M0/answer", self.ctx0, entry.index, entry.canonical(), signature)
        self.entries = {entry.index: entry for entry in entries}
        self.p = derive(len(entries), self.shown.rules)
        require(self.p.n - self.p.D_eff >= self.roster.clients[0] - self.roster.D, "cohort-size")
        self.ctx1 = ctx1_of(self.ctx0, entries, self.p)
        self.near = neighbours(list(self.entries), self.p, self.ctx1)
        self.journal.peers(self.u, {entry.index: entry.counter for entry in entries})
        return signed(self.secret, "M1/answer", self.ctx1, self.u, self.deal())

    def check_cohort(self, entries: list[Entry]) -> None:
        """U1 as the page allows it, signatures apart."""
        n, rules, invited = len(entries), self.shown.rules, self.shown.num_invited
        require(max(invited - rules.D, rules.c + 2, rules.n_min) <= n <= invited, "cohort-size")
        require(self.roster.clients[0] <= n <= self.roster.clients[1], "cohort-size")
        indices = [entry.index for entry in entries]
        require(len(set(indices)) == n, "duplicate")
        require(indices == sorted(indices), "order")
        keys = [key for entry in entries for key in (entry.enc, entry.mask)]
        require(len(set(keys)) == 2 * n and len({entry.nonce for entry in entries}) == n, "duplicate")
        for key in keys:
            check_key(key)
        require(self.entry in entries, "own-entry")
        require(indices[-1] < len(self.roster.members), "unknown-member")
        for index in indices:
            require(index not in self.roster.revoked, "revoked")
            require(index not in self.roster.struck, "strike-list")
            require(self.today <= self.roster.members[index].expires, "expired")

    def deal(self) -> bytes:
        """Body of M1/answer."""
        recipients = sorted([*self.near[self.u], self.u])
        self.b = self.draws(32)
        own = polynomial(self.b, self.p.t, self.draws)
        key = polynomial(self.mask, self.p.t, self.draws)
        rows = b""
        for v in recipients:
            dealt = Dealt(self.ctx1, self.u, v, share_of(own, v), share_of(key, v), self.draws(32))
            rows += dealt.row(self.enc, self.entries[v].enc)
        return data(rows) + data(own_commitment(self.ctx1, self.u, self.b))

    def m2(self, message: bytes, x: Sequence[int]) -> tuple[bytes, bytes]:
        """Mask x: the answer and the packed words, or a complaint and nothing."""
        r = read_request(message, "M2/request", self.ctx1)
        self.u2, rows = r.members(), r.data()
        r.end()
        require(set(self.u2) <= set(self.entries), "unknown-member")
        require(self.u in self.u2, "own-entry")
        require(len(self.u2) >= self.p.n - self.p.D_eff, "cohort-size")
        require(self.here(self.u2) >= self.p.present, "neighbours")
        dealers = self.dealers()
        require(len(rows) == ROW * len(dealers), "rows")
        self.ctx2 = ctx2_of(self.ctx1, self.u2)
        self.dealt = {}
        for at, dealer in enumerate(dealers):
            row = rows[ROW * at : ROW * (at + 1)]
            try:
                self.dealt[dealer] = opened_row(
                    row, self.enc, self.entries[dealer].enc, self.ctx1, dealer, self.u
                )
            except Refused:
                return signed(self.secret, "M2/complaint", self.ctx2, self.u, number(dealer)), b""
        return self.masked(x)

    def masked(self, x: Sequence[int]) -> tuple[bytes, bytes]:
        """M2/answer and the packed words."""
        rules, half = self.shown.rules, 2 ** (self.p.b - 1)
        bound = half - 1 if rules.z else rules.C_int
        require(len(x) == self.shown.length and all(abs(value) <= bound for value in x), "range")
        self.journal.masked(self.ctx0, self.ctx2)
        y = add(list(x), prg(self.b, len(x)), 1)
        for v in self.near[self.u]:
            if v in self.u2:
                seed = mask_seed(self.mask, self.entries[v].mask, self.ctx2, self.u, v)
                y = add(y, prg(seed, len(x)), 1 if v > self.u else -1)
        words = pack([value % 2**self.p.b for value in y], self.p.b)
        made = tag(tag_key(self.enc, self.shown.server_pk, self.ctx2, self.u), words)
        return signed(self.secret, "M2/answer", self.ctx2, self.u, data(made)), words

    def m3(self, message: bytes) -> bytes:
        """Confirm who survived."""
        r = read_request(message, "M3/request", self.ctx2)
        survivors = r.members()
        proofs = {}
        order = []
        for _ in range(r.count(96)):
            order.append(r.number())
            proofs[order[-1]] = (r.data(16), r.data(64))
        r.end()
        require(order == sorted(set(order)), "order")
        self.check_survivors(survivors)
        for v in sorted(v for v in [*self.near[self.u], self.u] if v in survivors):
            require(v in proofs, "proof")
            made, signature = proofs[v]
            verify_answer(self.roster.members[v].key, "M2/answer", self.ctx2, v, data(made), signature)
        self.journal.signed(self.ctx2, survivors)
        self.has_confirmed = True
        return signed(self.secret, "M3/answer", self.ctx2, self.u, numbers(survivors), sent=False)

    def m4(self, message: bytes) -> bytes:
        """Open one share of each dealer."""
        r = read_request(message, "M4/request", self.ctx2)
        survivors = r.members()
        listed = [(r.number(), r.data(64)) for _ in range(r.count(76))]
        r.end()
        require(self.p.k == self.p.n - 1 or self.has_confirmed, "phase")
        self.check_survivors(survivors)
        signers = [signer for signer, _ in listed]
        require(signers == sorted(set(signers)), "order")
        require(len(signers) >= self.p.T, "confirmations")
        require(set(signers) <= set(survivors), "unknown-member")
        for signer, signature in listed:
            key = self.roster.members[signer].key
            verify_answer(key, "M3/answer", self.ctx2, signer, numbers(survivors), signature)
        self.journal.signed(self.ctx2, survivors)
        openings = [
            self.dealt[dealer].opening("own" if dealer in survivors else "key") for dealer in self.dealers()
        ]
        return signed(self.secret, "M4/answer", self.ctx2, self.u, data(b"".join(openings)))

    def check_survivors(self, survivors: list[int]) -> None:
        """U3 as M3 and M4 allow it."""
        require(set(survivors) <= set(self.u2), "unknown-member")
        require(len(survivors) >= self.p.n - self.p.D_eff, "cohort-size")
        require(self.u in survivors, "survivors")
        require(self.here(survivors) >= self.p.present, "neighbours")

    def dealers(self) -> list[int]:
        """Those in U2 who dealt to this client."""
        return sorted(v for v in [*self.near[self.u], self.u] if v in self.u2)

    def here(self, members: list[int]) -> int:
        """How many neighbours are among these."""
        return len(set(self.near[self.u]) & set(members))


def add(words: list[int], mask: list[int], sign_of: int) -> list[int]:
    """Words plus or minus a mask, modulo 2^32."""
    return [(word + sign_of * other) % 2**32 for word, other in zip(words, mask, strict=True)]


class Sum:
    """What the server of one attempt knows from M2 on, and the sum that it makes of it."""

    def __init__(
        self, shown: Invitation, enc: bytes, entries: list[Entry], keys: Mapping[int, bytes], u2: list[int]
    ) -> None:
        self.shown, self.enc, self.keys, self.u2 = shown, enc, keys, u2
        self.p: Parameters = derive(len(entries), shown.rules)
        self.entries = {entry.index: entry for entry in entries}
        self.ctx1 = ctx1_of(shown.ctx0(), entries, self.p)
        self.ctx2 = ctx2_of(self.ctx1, u2)
        self.near = neighbours(list(self.entries), self.p, self.ctx1)
        self.rows: dict[tuple[int, int], bytes] = {}
        self.own: dict[int, bytes] = {}
        self.words: dict[int, list[int]] = {}

    def recipients(self, u: int) -> list[int]:
        """Whom u deals to."""
        return sorted([*self.near[u], u])

    def read(self, message: bytes, name: str, context: bytes, u: int) -> Reader:
        """An answer of u, up to its body; its signature is good."""
        r = Reader(message, name)
        require(r.data(32) == context, "context")
        require(r.number() == u, "sender")
        body, signature = message[r.at : -68], message[-64:]
        require(message[-68:-64] == number(64)[4:], "encoding")
        verify_answer(self.keys[u], name, context, u, body, signature)
        return r

    def dealt(self, u: int, message: bytes) -> None:
        """M1/answer."""
        r = self.read(message, "M1/answer", self.ctx1, u)
        rows, recipients = r.data(), self.recipients(u)
        require(len(rows) == ROW * len(recipients), "rows")
        self.own[u] = r.data(32)
        r.data(64)
        r.end()
        for at, v in enumerate(recipients):
            self.rows[u, v] = rows[ROW * at : ROW * (at + 1)]

    def masked(self, u: int, message: bytes, packed: bytes) -> None:
        """M2/answer and the words beside it."""
        r = self.read(message, "M2/answer", self.ctx2, u)
        made = r.data(16)
        r.data(64)
        r.end()
        require(len(packed) == packed_size(self.shown.length, self.p.b), "vector-size")
        words = unpack(packed, self.shown.length, self.p.b)
        key = tag_key(self.enc, self.entries[u].enc, self.ctx2, u)
        require(tag(key, packed) == made, "tag")
        self.words[u] = words

    def rows_for(self, v: int) -> bytes:
        """What M2/request brings to v."""
        return b"".join(self.rows[u, v] for u in self.recipients(v) if u in self.u2)

    def open(self, survivors: list[int], answers: Mapping[int, bytes]) -> list[int]:
        """The sum, from M4 answers."""
        shares: dict[int, dict[int, bytes]] = {u: {} for u in self.u2}
        for v in sorted(answers):
            r = self.read(answers[v], "M4/answer", self.ctx2, v)
            openings, dealers = r.data(), [u for u in self.recipients(v) if u in self.u2]
            r.data(64)
            r.end()
            require(len(openings) == OPENING * len(dealers), "openings")
            for at, u in enumerate(dealers):
                opening = openings[OPENING * at : OPENING * (at + 1)]
                name = "own" if u in survivors else "key"
                committed = self.rows[u, v][114:]
                shares[u][v] = opened_share(opening, name, committed, self.ctx1, u, v)
        secrets = {u: join(dict(sorted(found.items())[: self.p.t])) for u, found in shares.items()}
        return self.unmasked(survivors, secrets)

    def unmasked(self, survivors: list[int], secrets: Mapping[int, bytes]) -> list[int]:
        """The sum, from the opened secrets."""
        d = self.shown.length
        total = [sum(column) for column in zip(*(self.words[u] for u in survivors), strict=True)]
        for v, secret in secrets.items():
            if v in survivors:
                require(own_commitment(self.ctx1, v, secret) == self.own[v], "share")
                total = add(total, prg(secret, d), -1)
                continue
            require(public(secret) == self.entries[v].mask, "share")
            for w in self.near[v]:
                if w in survivors:
                    seed = mask_seed(secret, self.entries[w].mask, self.ctx2, v, w)
                    total = add(total, prg(seed, d), -1 if v > w else 1)
        half = 2 ** (self.p.b - 1)
        sums = [(value + half) % (2 * half) - half for value in total]
        rules, sure = self.shown.rules, self.p.n - self.p.D_eff - self.shown.rules.c
        sigma = rules.z * rules.C_int * sqrt(self.p.n / sure)
        limit = len(survivors) * rules.C_int + floor(12 * sigma)
        require(all(abs(value) <= limit for value in sums), "aggregate-range")
        return sums
