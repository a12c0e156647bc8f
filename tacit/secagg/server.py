"""The server's side of the secure sum. Bytes in, bytes or a typed error out; the caller does all I/O.

collect_setup    M0: takes the clients' keys until the caller stops waiting
mask_requests    M2: tells everyone who takes part
collect_masked   M2: adds up masked vectors; nothing else about an update ever comes in
unmask_requests  M4: tells everyone whose vectors are in the sum
collect_unmask   M4: takes the seeds of the own masks
aggregate        removes them: what is left is the sum
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import Final

import numpy as np

from tacit.errors import ProtocolError
from tacit.secagg.contexts import Cohort, Invitation, cohort_of
from tacit.secagg.keys import check_public, erase
from tacit.secagg.members import Entry, Member, check_distinct
from tacit.secagg.messages import MaskAnswer, MaskRequest, SetupAnswer, UnmaskAnswer, UnmaskRequest
from tacit.secagg.prg import add_mask
from tacit.secagg.ring import centre, sum_noise
from tacit.update import Aggregate, Words

# (phase, step) -> the phase after it. What is not here is refused.
TRANSITIONS: Final = {
    ("keys", "collect_setup"): "keys",
    ("keys", "mask_requests"): "vectors",
    ("vectors", "collect_masked"): "vectors",
    ("vectors", "unmask_requests"): "seeds",
    ("seeds", "collect_unmask"): "seeds",
    ("seeds", "aggregate"): "done",
}


class MembersMissing(ProtocolError):
    """An attempt cannot go on without members that did not answer: start another one without them.

    Attributes:
        missing: who they are, by increasing index.
    """

    def __init__(self, missing: Iterable[Member], phase: str) -> None:
        self.missing, self.phase = tuple(sorted(missing)), phase
        names = ", ".join(member.label for member in self.missing)
        super().__init__("members-missing", f"no {phase} from {names}")


class ServerMachine:
    """One attempt of one round, as the server sees it.

    Guarantees:
        The aggregate is the exact integer sum over every client of U3, or there is none.
        A refused answer changes nothing; an identical repeat of an accepted one is accepted again.

    Args:
        invitation: what the clients were invited to.
        members: whom. As many as `invitation.num_invited`.

    Raises:
        ConfigError: the rules do not allow a cohort of that size.
    """

    def __init__(self, invitation: Invitation, members: Iterable[Member]) -> None:
        self.phase = "keys"
        self._invitation, self._ctx0 = invitation, invitation.ctx0()
        self._members = {member.index: member for member in members}
        if len(self._members) != invitation.num_invited:
            raise ValueError("the invitation is for another number of members")
        invitation.rules.parameters(invitation.num_invited)
        self._entries: dict[int, Entry] = {}
        self._cohort: Cohort | None = None
        self._total: Words = np.zeros(invitation.length, dtype=np.uint32)
        self._seeds: dict[int, bytearray] = {}
        self._answered: dict[str, set[int]] = {"keys": set(), "vectors": set(), "seeds": set()}
        self._accepted: set[bytes] = set()  # hashes of the answers taken so far

    def __repr__(self) -> str:
        return f"<ServerMachine: {self.phase}, {len(self.missing)} members still to answer>"

    @property
    def cohort(self) -> Cohort:
        """U1, U2, parameters and contexts; known once `mask_requests` has been called."""
        if self._cohort is None:
            raise ProtocolError("phase", "the cohort is not settled yet")
        return self._cohort

    @property
    def missing(self) -> tuple[Member, ...]:
        """Who has not answered in this phase, by increasing index."""
        if self.phase == "done":
            return ()
        expected = self._members if self._cohort is None else self._cohort.masking
        return tuple(self._members[i] for i in sorted(set(expected) - self._answered[self.phase]))

    def collect_setup(self, answer: bytes) -> None:
        """Takes one client's keys.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if (digest := self._unless_repeated(answer)) is None:
            return
        self._next("collect_setup")
        message = SetupAnswer.decode(answer)
        entry = message.entry
        self._check_sender(message.context, self._ctx0, entry.index)
        if self._members[entry.index] != entry.member:
            raise ProtocolError("member", "an entry has another label than the roster")
        check_public(entry.enc_pk)
        check_public(entry.mask_pk)
        check_distinct([*self._entries.values(), entry])
        self._entries[entry.index] = entry
        self._accept(digest, entry.index)

    def mask_requests(self) -> dict[int, bytes]:
        """Settles the cohort: the request of M2 for each of its members, by index.

        Raises:
            MembersMissing: more than D of those invited have sent no keys, or fewer than c + 2 have.
        """
        after = self._next("mask_requests")
        if len(self._entries) < self._invitation.rules.fewest(self._invitation.num_invited):
            raise MembersMissing(self.missing, self.phase)
        entries = tuple(self._entries[index] for index in sorted(self._entries))
        request = MaskRequest(self._ctx0, entries, tuple(entry.index for entry in entries))
        self._cohort = cohort_of(self._invitation, entries, request.masking)
        self.phase = after
        return dict.fromkeys(request.masking, request.encode())

    def collect_masked(self, answer: bytes) -> None:
        """Adds one masked vector to the sum.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if (digest := self._unless_repeated(answer)) is None:
            return
        self._next("collect_masked")
        message = MaskAnswer.decode(answer)
        self._check_sender(message.context, self.cohort.ctx2, message.sender)
        if (message.bits, message.length) != (self.cohort.parameters.bits, self._invitation.length):
            raise ProtocolError("vector-size", "a vector of another width or length")
        np.add(self._total, message.masked_update().words, out=self._total)
        self._accept(digest, message.sender)

    def unmask_requests(self) -> dict[int, bytes]:
        """Settles the sum: the request of M4 for each client in it, by index.

        Raises:
            MembersMissing: a vector is missing, so that pairwise masks would stay in the sum.
        """
        after = self._next("unmask_requests")
        if self.missing:
            raise MembersMissing(self.missing, self.phase)
        self.phase = after
        request = UnmaskRequest(self.cohort.ctx2, self.cohort.masking)
        return dict.fromkeys(request.survivors, request.encode())

    def collect_unmask(self, answer: bytes) -> None:
        """Takes the seed of one client's own mask.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if (digest := self._unless_repeated(answer)) is None:
            return
        self._next("collect_unmask")
        message = UnmaskAnswer.decode(answer)
        self._check_sender(message.context, self.cohort.ctx2, message.sender)
        self._seeds[message.sender] = bytearray(message.seed)
        self._accept(digest, message.sender)

    def aggregate(self) -> Aggregate:
        """The sum, once every seed is there.

        Raises:
            MembersMissing: a seed is missing.
            ProtocolError: "aggregate-range": what is left cannot be a sum of such vectors.
        """
        after = self._next("aggregate")
        if self.missing:
            raise MembersMissing(self.missing, self.phase)
        for seed in self._seeds.values():
            add_mask(self._total, seed, -1)
            erase(seed)
        self._seeds.clear()
        self.phase = after
        values = centre(self._total, self.cohort.parameters.bits)
        bound = self._bound()
        if values.size and not -bound <= int(values.min()) <= int(values.max()) <= bound:
            raise ProtocolError("aggregate-range", "the sum has a coordinate that is out of range")
        return Aggregate(values, len(self.cohort.masking))

    def _bound(self) -> int:
        """Largest absolute value of a coordinate of an honest sum, in integer units."""
        rules, parameters, n = self._invitation.rules, self.cohort.parameters, len(self.cohort.masking)
        noise = sum_noise(
            parameters.n, parameters.max_dropouts, rules.max_corrupt, rules.c_int, rules.noise_multiplier
        )
        return n * rules.c_int + int(12 * noise)

    def _next(self, step: str) -> str:
        """The phase after `step`, if it may be taken now."""
        after = TRANSITIONS.get((self.phase, step))
        if after is None:
            raise ProtocolError("phase", f"no {step} in the phase of {self.phase}")
        return after

    def _check_sender(self, context: bytes, expected: bytes, sender: int) -> None:
        """Refuses an answer to another request, from a stranger, or a second one that differs."""
        if context != expected:
            raise ProtocolError("context", "an answer belongs to another context")
        if sender not in (self._members if self._cohort is None else self._cohort.masking):
            raise ProtocolError("unknown-member", f"member {sender} is not asked")
        if sender in self._answered[self.phase]:
            raise ProtocolError("duplicate", f"member {sender} has answered otherwise before")

    def _unless_repeated(self, answer: bytes) -> bytes | None:
        """The hash of an answer, or None where exactly this one has been accepted before."""
        digest = hashlib.sha256(answer).digest()
        return None if digest in self._accepted else digest

    def _accept(self, digest: bytes, sender: int) -> None:
        self._accepted.add(digest)
        self._answered[self.phase].add(sender)
