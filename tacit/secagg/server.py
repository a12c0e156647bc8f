"""The server's side of the secure sum. Bytes in, bytes or a typed error out; the caller does all I/O.

setup_request     M0: the signed invitation
collect_setup         takes the clients' keys until the caller stops waiting
deal_requests     M1: tells everyone who takes part
collect_dealt         takes the rows of shares, which only their recipients can open
mask_requests     M2: passes the rows on
collect_masked        adds up masked vectors; nothing else about an update ever comes in
confirm_requests  M3: says whose vectors have come
collect_confirmed     takes the signatures under that
unmask_requests   M4: shows enough of them
collect_unmask        takes shares
aggregate             opens and removes the masks: what is left is the sum

Longer than 400 lines because the five steps share one state, and are read against the client's.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from hmac import compare_digest
from typing import Final

import numpy as np

from tacit.errors import ProtocolError
from tacit.secagg.contexts import Cohort, Invitation, cohort_of
from tacit.secagg.envelope import Signed, Signer
from tacit.secagg.identity import verify
from tacit.secagg.keys import KeyPair, check_public, erase
from tacit.secagg.members import Member
from tacit.secagg.messages import (
    ROW_BYTES,
    Complaint,
    ConfirmAnswer,
    ConfirmRequest,
    DealAnswer,
    DealRequest,
    MaskAnswer,
    MaskRequest,
    SetupAnswer,
    SetupRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from tacit.secagg.packed_sum import PackedSum
from tacit.secagg.prg import add_masks
from tacit.secagg.ring import MIN_BITS, centre, sum_noise
from tacit.secagg.unmasking import Commitments, Openings, opened_masks
from tacit.update import Aggregate

# (phase, step) -> the phase after it. What is not here is refused.
TRANSITIONS: Final = {
    ("keys", "collect_setup"): "keys",
    ("keys", "deal_requests"): "shares",
    ("shares", "collect_dealt"): "shares",
    ("shares", "mask_requests"): "vectors",
    ("vectors", "collect_masked"): "vectors",
    ("vectors", "confirm_requests"): "confirmations",
    ("confirmations", "collect_confirmed"): "confirmations",
    ("confirmations", "unmask_requests"): "openings",
    ("openings", "collect_unmask"): "openings",
    ("openings", "aggregate"): "done",
}


class AttemptFailed(ProtocolError):
    """An attempt cannot go on: start another one without some members.

    Attributes:
        without: whom to leave out, by increasing index.
        guilty: those of them that are proven to have cheated.
    """

    def __init__(self, phase: str, without: Iterable[Member], guilty: Iterable[Member] = ()) -> None:
        self.without, self.guilty = tuple(sorted(without)), tuple(sorted(guilty))
        names = ", ".join(member.label for member in self.without)
        what = "cheated" if self.guilty else f"not enough {phase}, none"
        super().__init__("attempt-failed", f"{what} from {names}")


class Requests(Mapping[int, bytes]):
    """Requests that differ from member to member. Each is made when it is looked up, because all weigh a lot.

    Args:
        asked: indices of the members.
        make: makes the request of one.
    """

    def __init__(self, asked: Sequence[int], make: Callable[[int], bytes]) -> None:
        self._asked, self._make = asked, make

    def __getitem__(self, index: int) -> bytes:
        return self._make(index)

    def __iter__(self) -> Iterator[int]:
        return iter(self._asked)

    def __len__(self) -> int:
        return len(self._asked)


class ServerMachine:
    """One attempt of one round, as the server sees it.

    Guarantees:
        The aggregate is the exact integer sum over every client of U3, or there is none.
        A refused answer changes nothing; an identical repeat of an accepted one is accepted again.
        Who sent a share that is not the one dealt, or dealt shares of nothing, is named by proof.
        No share comes in before T clients have signed one set of survivors.

    Args:
        invitation: what the clients are invited to; its `server_pk` is that of `key`.
        members: whom. As many as `invitation.num_invited`.
        identity: signs the invitation.
        key: the server's key of this attempt.
        counters: the last counter of each member's journal that any client was shown. Clients refuse a cohort in
            which one goes back, so whoever does that is kept out of it.
        threads: for the masks; the sum is the same for any number.

    Raises:
        ConfigError: the rules do not allow a cohort of that size.
    """

    def __init__(
        self,
        invitation: Invitation,
        members: Iterable[Member],
        identity: Signer,
        key: KeyPair,
        *,
        counters: Mapping[int, int] | None = None,
        threads: int = 1,
    ) -> None:
        self.phase = "keys"
        self._invitation, self._ctx0, self._identity, self._key = invitation, invitation.ctx0(), identity, key
        self._members = {member.index: member for member in members}
        if len(self._members) != invitation.num_invited or invitation.server_pk != key.public:
            raise ValueError("the invitation is for another number of members, or another key")
        invitation.rules.parameters(invitation.num_invited)
        self._counters, self._threads = counters or {}, threads
        self._setups: dict[int, SetupAnswer] = {}
        self._drawn: set[bytes] = set()  # their keys and nonces
        self._cohort: Cohort | None = None
        self._dealt: dict[int, DealAnswer] = {}
        self._commitments: dict[int, Commitments] = {}
        self._masking: tuple[int, ...] = ()
        self._ctx2 = b""
        self._total = PackedSum(0, MIN_BITS)  # of the masked vectors
        self._masked: dict[int, MaskAnswer] = {}
        self._complaints: dict[int, int] = {}
        self._survivors: tuple[int, ...] = ()
        self._confirmed: dict[int, bytes] = {}
        self._openings: Openings | None = None
        self.blamed: tuple[Member, ...] = ()  # who sent shares that were not those dealt to them
        self._asked: Collection[int] = self._members
        self._answered: set[int] = set()
        self._accepted: set[Hashable] = set()  # the answers taken so far
        self._spare: list[bytes] = []  # answers to M4 beyond those that it takes

    def __repr__(self) -> str:
        return f"<ServerMachine: {self.phase}, {len(self.missing)} members still to answer>"

    @property
    def cohort(self) -> Cohort:
        """U1, its parameters, its graph; known once `deal_requests` has been called."""
        if self._cohort is None:
            raise ProtocolError("phase", "the cohort is not settled yet")
        return self._cohort

    @property
    def length(self) -> int:
        """d, coordinates of a vector."""
        return self._invitation.length

    @property
    def receipt_head(self) -> bytes:
        """Digest of the last receipt that the invitation knows, 32 bytes."""
        return self._invitation.receipt_head

    @property
    def survivors(self) -> tuple[int, ...]:
        """U3, once `confirm_requests` has been called."""
        return self._survivors

    @property
    def ctx2(self) -> bytes:
        """The context of U2, once `mask_requests` has been called."""
        return self._ctx2

    @property
    def confirmations(self) -> Mapping[int, bytes]:
        """The signatures under U3, by index."""
        return self._confirmed

    @property
    def complaints(self) -> Mapping[int, int]:
        """Who has complained about whom instead of sending a vector."""
        return self._complaints

    @property
    def missing(self) -> tuple[Member, ...]:
        """Who was asked in this phase and has not answered, by increasing index."""
        return tuple(self._members[i] for i in sorted(set(self._asked) - self._answered))

    # --- M0

    def setup_request(self) -> bytes:
        """The invitation, the same for everybody. The model travels beside it."""
        return SetupRequest(self._invitation).signed(self._identity).encode()

    def collect_setup(self, answer: bytes) -> None:
        """Takes one client's keys.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        message = SetupAnswer.decode(answer)
        if (key := self._admit("collect_setup", message, self._ctx0)) is None:
            return
        entry = message.entry
        check_public(entry.enc_pk)
        check_public(entry.mask_pk)
        own = {entry.enc_pk, entry.mask_pk, entry.nonce}
        if len(own) < 3 or own & self._drawn:
            raise ProtocolError("duplicate", "two entries share a nonce or a key")
        if entry.counter <= self._counters.get(entry.index, -1):
            raise ProtocolError("peer-counter", f"the journal of member {entry.index} has not gone on")
        self._setups[entry.index] = message
        self._drawn |= own
        self._accept(key, entry.index)

    # --- M1

    def deal_requests(self) -> dict[int, bytes]:
        """Settles U1: the request of M1 for each of its members, by index.

        Raises:
            AttemptFailed: more than D of those invited have sent no keys, or fewer than c + 2 have.
        """
        after = self._next("deal_requests")
        if len(self._setups) < self._invitation.rules.fewest(self._invitation.num_invited):
            raise AttemptFailed("keys", self.missing)
        setups = [self._setups[index] for index in sorted(self._setups)]
        entries = tuple(setup.entry for setup in setups)
        self._cohort = cohort_of(self._invitation, entries)
        request = DealRequest(self._ctx0, entries, tuple(setup.signature for setup in setups))
        return self._ask(after, self.cohort.entries, request.encode())

    def collect_dealt(self, answer: bytes) -> None:
        """Takes one client's rows of shares.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        message = DealAnswer.decode(answer)
        if (key := self._admit("collect_dealt", message, self.cohort.ctx1)) is None:
            return
        if message.num_rows != len(self.cohort.graph.recipients(message.sender)):
            raise ProtocolError("rows", "a dealer has not one row for each of its neighbours and itself")
        self._dealt[message.sender] = message
        self._accept(key, message.sender)

    # --- M2

    def mask_requests(self) -> Mapping[int, bytes]:
        """Settles U2: the request of M2 for each of its members, by index. They are to be had until the next step.

        Raises:
            AttemptFailed: more than D clients have dealt no shares.
        """
        after, cohort = self._next("mask_requests"), self.cohort
        if len(self._dealt) < cohort.fewest:
            raise AttemptFailed("shares", self.missing)
        self._total = PackedSum(self.length, cohort.parameters.bits)
        self._masking = tuple(sorted(self._dealt))
        self._ctx2 = cohort.ctx2(self._masking)
        recipients = {dealer: cohort.graph.recipients(dealer) for dealer in self._masking}

        def request(index: int) -> bytes:
            near = [
                dealer for dealer in recipients[index] if dealer in recipients
            ]  # who has dealt to it, too
            if cohort.parameters.complete:  # its row is at one place everywhere
                place = slice(ROW_BYTES * (at := bisect_left(recipients[index], index)), ROW_BYTES * (at + 1))
                rows = [self._dealt[dealer].rows[place] for dealer in near]
            else:
                rows = [self._dealt[v].row(bisect_left(recipients[v], index)) for v in near]
            return MaskRequest(cohort.ctx1, self._masking, b"".join(rows)).encode()

        self._ask(after, self._masking, b"")
        return Requests(self._masking, request)

    def collect_masked(self, answer: bytes, vector: bytes | memoryview) -> None:
        """Adds one masked vector to the sum, or takes a complaint in its place.

        Args:
            answer: a `MaskAnswer` or a `Complaint`.
            vector: the packed words, of no other length than this cohort's.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if Complaint.is_one(answer):
            complaint = Complaint.decode(answer)
            if (key := self._admit("collect_masked", complaint, self._ctx2)) is None:
                return
            dealers = self.cohort.graph.recipients(complaint.sender)
            if complaint.dealer not in dealers or complaint.dealer not in self._masking:
                raise ProtocolError("unknown-member", "a complaint about somebody who has dealt no such row")
            self._complaints[complaint.sender] = complaint.dealer
            self._accept(key, complaint.sender)
            return
        message = MaskAnswer.decode(answer)
        if (key := self._admit("collect_masked", message, self._ctx2)) is None:
            return
        entry = self.cohort.entries[message.sender]
        tag = self._key.tag(entry.enc_pk, ctx2=self._ctx2, sender=message.sender)
        self._total.add(vector, tag.update)  # in one pass: a vector does not stay in the cache
        if not compare_digest(tag.finish(), message.tag):
            self._total.subtract(vector)
            raise ProtocolError("tag", "a vector is not the one that its sender signed for")
        self._masked[message.sender] = message
        self._accept(key, message.sender)

    @property
    def masked_total(self) -> bytes:
        """The sum of the masked vectors so far, little-endian words of 32 bits."""
        return self._total.words().astype("<u4").tobytes()

    def restore_masked(self, answers: Iterable[bytes], total: bytes) -> None:
        """Takes the answers of M2 that another process of this server has accepted, and the sum of their vectors.

        Args:
            answers: without the vectors.
            total: its `masked_total` after them.

        Raises:
            ProtocolError: they do not belong to this attempt.
        """
        for answer in answers:
            message = (Complaint if Complaint.is_one(answer) else MaskAnswer).decode(answer)
            if (key := self._admit("collect_masked", message, self._ctx2)) is None:
                continue
            if isinstance(message, Complaint):
                self._complaints[message.sender] = message.dealer
            else:
                self._masked[message.sender] = message
            self._accept(key, message.sender)
        words = np.frombuffer(total, dtype="<u4")
        if words.shape != (self.length,):
            raise ProtocolError("vector-size", "a sum of another length")
        self._total.restore(words)

    # --- M3

    def confirm_requests(self) -> Mapping[int, bytes]:
        """Settles U3, the senders of vectors: the request of M3 for each of its members, by index.

        Raises:
            AttemptFailed: more than D clients have sent no vector; says whom complaints name, too.
        """
        after, cohort = self._next("confirm_requests"), self.cohort
        if len(self._masked) < cohort.fewest:
            raise AttemptFailed("vectors", {*self.missing, *self._accused()})
        self._survivors = tuple(sorted(self._masked))
        self._commitments = {i: Commitments.of(dealt) for i, dealt in self._dealt.items()}
        self._dealt.clear()  # sealed shares are of no more use
        proofs = {i: (i, self._masked[i].tag, self._masked[i].signature) for i in self._survivors}
        if cohort.parameters.complete:
            request = ConfirmRequest(self._ctx2, self._survivors, tuple(proofs.values())).encode()
            return self._ask(after, self._survivors, request)

        def request_of(index: int) -> bytes:
            near = tuple(proofs[v] for v in cohort.graph.recipients(index) if v in proofs)
            return ConfirmRequest(self._ctx2, self._survivors, near).encode()

        self._ask(after, self._survivors, b"")
        return Requests(self._survivors, request_of)

    def collect_confirmed(self, answer: bytes) -> None:
        """Takes one client's signature under U3.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if len(self._confirmed) >= self.cohort.parameters.threshold and self.phase == "confirmations":
            return  # T are enough, and nobody asks for more
        message = ConfirmAnswer.decode(answer, self._survivors)
        if (key := self._admit("collect_confirmed", message, self._ctx2)) is None:
            return
        self._confirmed[message.sender] = message.signature
        self._accept(key, message.sender)

    # --- M4

    def unmask_requests(self) -> dict[int, bytes]:
        """The request of M4 for each member of U3, by index.

        Raises:
            AttemptFailed: fewer than T clients have signed U3.
        """
        after, threshold = self._next("unmask_requests"), self.cohort.parameters.threshold
        if len(self._confirmed) < threshold:
            raise AttemptFailed("confirmations", self.missing)
        signatures = tuple((i, self._confirmed[i]) for i in sorted(self._confirmed)[:threshold])
        self._openings = Openings(self.cohort, self._masking, self._survivors, self._commitments)
        request = UnmaskRequest(self._ctx2, self._survivors, signatures)
        return self._ask(after, self._survivors, request.encode())

    def collect_unmask(self, answer: bytes) -> None:
        """Takes one client's shares.

        Raises:
            ProtocolError: the answer is refused; the attempt goes on.
        """
        if self._openings is not None and self._openings.enough:
            self._spare.append(answer)  # looked at only if one of the others is wrong
            return
        message = UnmaskAnswer.decode(answer)
        if (key := self._admit("collect_unmask", message, self._ctx2)) is None:
            return
        assert self._openings is not None
        self._openings.add(message)
        self._accept(key, message.sender)

    def aggregate(self) -> Aggregate:
        """The sum.

        Raises:
            AttemptFailed: too few shares came to open a secret; or a dealer is proven guilty, and named.
            ProtocolError: "aggregate-range": what is left cannot be a sum of such vectors.
        """
        after = self._next("aggregate")
        assert self._openings is not None
        masks, blamed = opened_masks(self._openings)
        if blamed.anybody and self._spare:
            self._take_spare(masks)
            masks, blamed = opened_masks(self._openings)
        self.blamed = tuple(self._members[i] for i in sorted(blamed.wrong_shares))
        failed = blamed.guilty or blamed.unopened
        total = self._total.words()
        if not failed:
            add_masks(total, masks, threads=self._threads)
        for seed, _ in masks:
            erase(seed)
        if failed:
            guilty = [self._members[i] for i in blamed.guilty]
            raise AttemptFailed("shares", {*guilty, *self.missing, *self.blamed}, guilty)
        self.phase, self._openings, self._asked = after, None, ()
        values = centre(total, self.cohort.parameters.bits)
        bound = self._bound()
        if values.size and not -bound <= int(values.min()) <= int(values.max()) <= bound:
            raise ProtocolError("aggregate-range", "the sum has a coordinate that is out of range")
        return Aggregate(values, len(self._survivors))

    def _take_spare(self, masks: Iterable[tuple[bytearray, int]]) -> None:
        """Takes every answer to M4 that is good, where t of them were not enough."""
        for seed, _ in masks:
            erase(seed)
        assert self._openings is not None
        self._openings.take_all()
        spare, self._spare = self._spare, []
        for answer in spare:
            with suppress(ProtocolError):  # whose it is nobody knows: it is forged, or of no use
                self.collect_unmask(answer)

    # --- around the steps

    def _bound(self) -> int:
        """Largest absolute value of a coordinate of an honest sum, in integer units."""
        rules, parameters, n = self._invitation.rules, self.cohort.parameters, len(self._survivors)
        noise = sum_noise(
            parameters.n, parameters.max_dropouts, rules.max_corrupt, rules.c_int, rules.noise_multiplier
        )
        return n * rules.c_int + int(12 * noise)

    def _accused(self) -> set[Member]:
        """Whom complaints leave out of the next attempt: one named by more than c, else both of a pair."""
        named: dict[int, list[int]] = {}
        for sender, dealer in self._complaints.items():
            named.setdefault(dealer, []).append(sender)
        out: set[int] = set()
        for dealer, senders in named.items():
            out |= {dealer} if len(senders) > self._invitation.rules.max_corrupt else {dealer, *senders}
        return {self._members[i] for i in out}

    def _ask(self, phase: str, asked: Collection[int], request: bytes) -> dict[int, bytes]:
        """Enters the phase in which these members are asked."""
        self.phase, self._asked, self._answered = phase, asked, set()
        return dict.fromkeys(asked, request)

    def _next(self, step: str) -> str:
        """The phase after `step`, if it may be taken now."""
        after = TRANSITIONS.get((self.phase, step))
        if after is None:
            raise ProtocolError("phase", f"no {step} in the phase of {self.phase}")
        return after

    def _admit(self, step: str, message: Signed, context: bytes) -> Hashable | None:
        """What to remember an answer by, or None where exactly this one has been accepted before.

        Refuses an answer to another request, from a stranger, without its signature, or a second one.
        """
        statement, sender = message.statement, message.sender
        if (key := (statement, message.signature)) in self._accepted:
            return None
        self._next(step)
        if message.context != context:
            raise ProtocolError("context", "an answer belongs to another context")
        if sender not in self._asked:
            raise ProtocolError("unknown-member", f"member {sender} is not asked")
        if sender in self._answered:
            raise ProtocolError("duplicate", f"member {sender} has answered otherwise before")
        verify(self._members[sender].key, message.signature, *statement)
        return key

    def _accept(self, key: Hashable, sender: int) -> None:
        self._accepted.add(key)
        self._answered.add(sender)
