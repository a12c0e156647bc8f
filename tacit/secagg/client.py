"""One client's side of the secure sum. Bytes in, bytes or a typed error out; the caller does all I/O.

    setup    M0: answers the invitation with two public keys
    deal     M1: answers the list of clients with shares of its two secrets, one row for each neighbour
    receive  M2: opens the rows that were dealt to it; a bad one makes a complaint, and no vector leaves
    mask     M2: answers with y = x + own mask + pairwise masks
    confirm  M3: signs whose vectors are in the sum, once
    unmask   M4: gives one share of each client: of the own mask of those in the sum, of the mask key of the others

docs/protocol.md says against which lie each check stands.

Longer than 400 lines because the five steps guard one state, and are read against each other.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from typing import Final, NoReturn, Protocol

from tacit.errors import ProtocolError, Refused, StorageError
from tacit.secagg.client_state import ClientState
from tacit.secagg.contexts import Cohort, Invitation, check_run, cohort_of
from tacit.secagg.encoding import Writer
from tacit.secagg.identity import Identity, verify
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair, check_public, erase
from tacit.secagg.members import NONCE_BYTES, Entry
from tacit.secagg.messages import (
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
from tacit.secagg.prg import KEY_BYTES, add_masks
from tacit.secagg.ring import keep_low, to_words
from tacit.secagg.roster import Roster
from tacit.secagg.sharing import Shares, deal, open_row
from tacit.update import EncodedUpdate, Integers, MaskedUpdate

RandomBytes = Callable[[int], bytes]


class Journal(Protocol):
    """What a machine asks of `tacit.secagg.journal.Journal`, or of one that opens a file for each event."""

    @property
    def counter(self) -> int: ...  # noqa: D102

    def site_head(self, run: str) -> bytes: ...  # noqa: D102

    def answered(  # noqa: D102
        self, run: str, round: int, attempt: int, model: bytes, config: bytes, ctx0: bytes
    ) -> None: ...

    def see_peers(self, peers: Mapping[int, int]) -> None: ...  # noqa: D102

    def has_masked(self, ctx0: bytes, ctx2: bytes) -> bool: ...  # noqa: D102

    def masked(self, ctx0: bytes, ctx2: bytes) -> None: ...  # noqa: D102

    def sign(self, ctx2: bytes, survivors: bytes) -> None: ...  # noqa: D102


# (phase, step) -> the phase after it. What is not here is refused.
TRANSITIONS: Final = {
    ("new", "setup"): "keyed",
    ("keyed", "deal"): "dealt",
    ("dealt", "mask"): "masked",
    ("dealt", "complain"): "complained",
    ("masked", "confirm"): "confirmed",
    ("masked", "unmask"): "unmasked",  # on the complete graph only
    ("confirmed", "unmask"): "unmasked",
}


class ClientMachine:
    """One attempt of one round, as one client sees it. A new attempt is a new machine.

    Guarantees:
        Each step is answered once: the same request again gets the same bytes, another one is refused.
        A refusal changes nothing.
        Of every other client, this one gives a share of the own mask or of the mask key, never of both.
        It does so for one set of survivors per context, which enough others have signed too.

    Args:
        index: who this client is in the roster.
        identity: its signing key.
        roster: the members, as this site has accepted them.
        journal: remembers attempts and signed survivors, on the disk before an answer leaves.
        today: the date, UTC, by which identity keys expire.
        random_bytes: source of secrets; `secrets.token_bytes` outside tests.
        threads: for the masks; the answer is the same for any number.
    """

    def __init__(
        self,
        index: int,
        identity: Identity,
        roster: Roster,
        journal: Journal,
        today: date,
        random_bytes: RandomBytes,
        *,
        threads: int = 1,
    ) -> None:
        self._state = ClientState(index)
        self._identity, self._roster, self._journal, self._today = identity, roster, journal, today
        self._random_bytes, self._threads = random_bytes, threads

    def __repr__(self) -> str:
        return f"<ClientMachine of member {self.index}: {self.phase}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClientMachine is saved by export() alone")

    @property
    def index(self) -> int:
        """This client's roster index."""
        return self._state.index

    @property
    def phase(self) -> str:
        """One of `tacit.secagg.client_state.PHASES`."""
        return self._state.phase

    @property
    def cohort(self) -> Cohort:
        """U1 and what follows from it; its parameters say how much noise is this client's."""
        if self._state.cohort is None:
            raise ProtocolError("phase", "this client knows of no cohort yet")
        return self._state.cohort

    # --- M0

    def setup(self, request: bytes, own: Invitation) -> bytes:
        """M0: draws the keys of this attempt and answers with their public halves.

        Args:
            request: as it came.
            own: the same invitation with everything that this site knows or computes itself put in its place:
                roster, model, configuration, length and rules.

        Raises:
            ProtocolError: the server's figures differ, its signature is not that of the roster's server key,
                the journal allows no such attempt; "phase" after another invitation.
        """
        state = self._state
        if (stored := state.answered("setup", request)) is not None:
            return stored[0]
        after, message = self._next("setup"), SetupRequest.decode(request)
        if message.invitation != own:
            raise ProtocolError("context", "the invitation is for another model, experiment or roster")
        verify(self._roster.server_key, message.signature, *message.statement)
        if own.roster != self._roster.digest():
            raise ProtocolError("context", "the invitation is for another roster")
        check_run(own.run)
        check_public(own.server_pk)
        journal = self._journal
        journal.answered(own.run, own.round, own.attempt, own.model, own.config, own.ctx0())
        state.enc = KeyPair(self._random_bytes(SECRET_KEY_BYTES))
        state.mask = KeyPair(self._random_bytes(SECRET_KEY_BYTES))
        nonce = self._random_bytes(NONCE_BYTES)
        keys = state.enc.public, state.mask.public
        state.entry = Entry(self.index, *keys, nonce, journal.counter, journal.site_head(own.run))
        state.invitation = own
        answer = SetupAnswer(own.ctx0(), state.entry).signed(self._identity)
        return state.advance(after, "setup", request, answer.encode())

    # --- M1

    def deal(self, request: bytes) -> bytes:
        """M1: checks who takes part, and deals shares of the own mask's seed and of the mask key.

        Raises:
            ProtocolError: this client must not deal to such a cohort.
        """
        state = self._state
        if (stored := state.answered("deal", request)) is not None:
            return stored[0]
        after, message, invitation = self._next("deal"), DealRequest.decode(request), self._invitation()
        if message.context != invitation.ctx0():
            raise ProtocolError("context", "the request belongs to another invitation")
        if [entry for entry in message.entries if entry.index == self.index] != [state.entry]:
            raise ProtocolError("own-entry", "this client's own entry is missing or changed")
        cohort = cohort_of(invitation, message.entries)
        self._roster.check_cohort(tuple(cohort.entries), self._today)
        if cohort.fewest < self._roster.n_min - self._roster.max_dropouts:
            raise ProtocolError("cohort-size", "more clients may vanish than the members have agreed on")
        for answer in message.answers():
            verify(self._key_of(answer.sender), answer.signature, *answer.statement)
        self._journal.see_peers({entry.index: entry.counter for entry in message.entries})
        state.own_seed, state.cohort = bytearray(self._random_bytes(KEY_BYTES)), cohort
        recipients = [(v, cohort.entries[v].enc_pk) for v in cohort.graph.recipients(self.index)]
        dealing = deal(
            state.own_seed,
            self._key(state.mask).secret(),
            self._key(state.enc),
            recipients,
            cohort.ctx1,
            self.index,
            cohort.parameters.share_threshold,
            self._random_bytes,
        )
        reply = DealAnswer(cohort.ctx1, self.index, dealing.rows, dealing.own_commitment).signed(
            self._identity
        )
        return state.advance(after, "deal", request, reply.encode())

    # --- M2

    def receive(self, request: bytes) -> bytes | None:
        """M2, first half: checks U2 and opens the rows that were dealt to this client. Nothing leaves yet.

        Returns:
            None if all is well and `mask` may follow; else a signed complaint, which is the answer then.

        Raises:
            ProtocolError: this client must not mask under such a request.
        """
        state = self._state
        if (stored := state.answered("complain", request)) is not None:
            return stored[0]
        after, message, cohort = self._next("complain"), MaskRequest.decode(request), self.cohort
        if message.context != cohort.ctx1:
            raise ProtocolError("context", "the request belongs to another cohort")
        ctx2 = cohort.ctx2(message.masking)
        if self.index not in message.masking:
            raise ProtocolError("own-entry", "this client is not among those that mask")
        dealers = self._among(message.masking)
        if message.num_rows != len(dealers):
            raise ProtocolError("rows", "there is not one row of each neighbour that masks")
        shares: dict[int, Shares] = {}
        for position, dealer in enumerate(dealers):
            try:
                shares[dealer] = self._opened(dealer, *message.row(position))
            except ProtocolError:
                complaint = Complaint(ctx2, self.index, dealer).signed(self._identity)
                for opened in shares.values():
                    opened.erase()
                state.erase()
                return state.advance(after, "complain", request, complaint.encode())
        state.masking, state.ctx2, state.shares = message.masking, ctx2, shares
        return None

    def mask(
        self, request: bytes, encoded: EncodedUpdate, keep: Callable[[MaskAnswer], None] = lambda answer: None
    ) -> tuple[bytes, bytes]:
        """M2, second half: the update under this client's own mask and one mask per neighbour.

        The caller has debited the release. The answer is kept first and journalled then: whoever dies in between has
        these very bytes to send, and nobody ever makes others.

        Args:
            request: what `receive` has just accepted.
            encoded: shape (d,); this client's noise, if any, is already in it.
            keep: puts the state, in which this answer is now, where it outlives the process, before the journal says
                that the answer may be out.

        Returns:
            The message, and the packed words that travel beside it.

        Raises:
            ProtocolError: the request is refused; "phase" after another one.
            Refused: a coordinate is out of range for this cohort.
        """
        state = self._state
        ctx0 = self._invitation().ctx0()
        if (stored := state.answered("mask", request)) is not None:
            if not self._journal.has_masked(ctx0, state.ctx2):
                self._journal.masked(ctx0, state.ctx2)
            return stored
        after, message = self._next("mask"), MaskRequest.decode(request)
        if not state.shares or message.masking != state.masking:
            raise ProtocolError("phase", "these are not the rows that this client has opened")
        self._check_range(encoded.values)
        if self._journal.has_masked(ctx0, state.ctx2):
            raise ProtocolError(
                "masked", "this attempt has masked already: what it sent is not here any more"
            )
        vector = self._masked(encoded.values).to_bytes()
        answer = MaskAnswer(state.ctx2, self.index, self._tag(vector)).signed(self._identity)
        state.advance(after, "mask", request, answer.encode(), vector)
        keep(answer)
        self._journal.masked(ctx0, state.ctx2)
        return answer.encode(), vector

    # --- M3

    def confirm(self, request: bytes) -> bytes:
        """M3: signs U3, having seen that its neighbours in it have sent their vectors.

        Raises:
            ProtocolError: this client must not help to open such a sum.
        """
        state = self._state
        if (stored := state.answered("confirm", request)) is not None:
            return stored[0]
        after, message = self._next("confirm"), ConfirmRequest.decode(request)
        self._check_survivors(message.context, message.survivors)
        answers = message.answers()
        for v in self._among(message.survivors):
            if v not in answers:
                raise ProtocolError(
                    "proof", "a neighbour is in the sum without proof that it sent its vector"
                )
            verify(self._key_of(v), answers[v].signature, *answers[v].statement)
        self._sign_once(message.survivors)
        answer = ConfirmAnswer(state.ctx2, self.index, message.survivors).signed(self._identity)
        return state.advance(after, "confirm", request, answer.encode())

    # --- M4

    def unmask(self, request: bytes) -> bytes:
        """M4: one share of every client that dealt to this one; every secret is erased here.

        Raises:
            ProtocolError: another context or set, or fewer than T of it have signed it.
        """
        state = self._state
        if (stored := state.answered("unmask", request)) is not None:
            return stored[0]
        after, message = self._next("unmask"), UnmaskRequest.decode(request)
        self._check_survivors(message.context, message.survivors)
        if self.phase == "masked" and not self.cohort.parameters.complete:
            # On the ring T who have signed are few of a client's own neighbours: it must have seen their proofs itself.
            raise ProtocolError(
                "phase", "this client has not been shown that its neighbours sent their vectors"
            )
        if len(message.signatures) < self.cohort.parameters.threshold:
            raise ProtocolError(
                "confirmations", f"only {len(message.signatures)} clients have signed this set"
            )
        for answer in message.answers():
            if answer.sender not in message.survivors:
                raise ProtocolError("unknown-member", "a set is signed by somebody who is not in it")
            verify(self._key_of(answer.sender), answer.signature, *answer.statement)
        self._sign_once(message.survivors)
        survivors = frozenset(message.survivors)
        openings = b"".join(
            state.shares[v].opening("own" if v in survivors else "key").encode()
            for v in self._among(state.masking)
        )
        reply = UnmaskAnswer(state.ctx2, self.index, openings).signed(self._identity)
        state.erase()
        return state.advance(after, "unmask", request, reply.encode())

    # --- around the steps

    def answered(self, step: str, request: bytes) -> tuple[bytes, bytes] | None:
        """The stored answer of a step to exactly this request, so that nothing has to be done twice.

        Args:
            step: "setup", "deal", "mask", "complain", "confirm" or "unmask".
            request: the request, byte for byte.
        """
        return self._state.answered(step, request)

    def close(self) -> None:
        """Erases all secrets and stored answers; everything is refused from here on."""
        self._state.erase()
        self._state.answers.clear()
        self._state.phase = "closed"

    def export(self) -> bytes:
        """The whole state, secrets included, for a file that only this participant can read."""
        return self._state.encode()

    def restore(self, exported: bytes) -> ClientMachine:
        """This machine with the state that was exported.

        Raises:
            StorageError: these are not the bytes of an export, or it is another member's.
        """
        state = ClientState.decode(exported)
        if state.index != self.index:
            raise StorageError("the session of a secure sum belongs to another member")
        self._state = state
        return self

    def _next(self, step: str) -> str:
        """The phase after `step`, if it may be taken now."""
        after = TRANSITIONS.get((self.phase, step))
        if after is None:
            raise ProtocolError("phase", f"a client that is {self.phase} does not {step}")
        return after

    def _invitation(self) -> Invitation:
        if self._state.invitation is None:
            raise ProtocolError("phase", "this client has not been invited")
        return self._state.invitation

    def _key(self, pair: KeyPair | None) -> KeyPair:
        if pair is None:
            raise ProtocolError("erased", "this client's key has been erased")
        return pair

    def _key_of(self, index: int) -> bytes:
        """The identity key of a member of the cohort, which has been checked against the roster."""
        return self._roster.members[index].key

    def _among(self, members: tuple[int, ...]) -> list[int]:
        """This client and its neighbours within a set, in increasing order; they hold shares of each other."""
        within = frozenset(members)
        near = [v for v in self.cohort.graph.recipients(self.index) if v in within]
        if len(near) - 1 < self.cohort.parameters.present:
            raise ProtocolError("neighbours", f"only {len(near) - 1} of this client's neighbours take part")
        return near

    def _opened(self, dealer: int, sealed: bytes, commitment: bytes) -> Shares:
        enc_pk, cohort = self.cohort.entries[dealer].enc_pk, self.cohort
        key = self._key(self._state.enc)
        return open_row(key, enc_pk, cohort.ctx1, dealer, self.index, sealed, commitment)

    def _check_survivors(self, context: bytes, survivors: tuple[int, ...]) -> None:
        if context != self._state.ctx2:
            raise ProtocolError("context", "this client has masked in another context")
        self.cohort.check(survivors, self._state.masking)
        if self.index not in survivors:
            raise ProtocolError("survivors", "this client is not among the survivors")
        self._among(survivors)

    def _sign_once(self, survivors: tuple[int, ...]) -> None:
        """Journals the set that this client helps to open; another one in this context is refused for ever."""
        digest = Writer("survivors").data(self._state.ctx2).numbers(survivors).hash()
        self._journal.sign(self._state.ctx2, digest)

    def _check_range(self, values: Integers) -> None:
        """Refuses a vector that is not d long, or has a coordinate that could make the sum wrap around."""
        invitation, bits = self._invitation(), self.cohort.parameters.bits
        noisy = invitation.rules.noise_multiplier > 0
        bound = 2 ** (bits - 1) - 1 if noisy else invitation.rules.c_int
        if values.shape != (invitation.length,):
            raise Refused("vector-size", f"an update of shape {values.shape}, not ({invitation.length},)")
        if values.size and not -bound <= int(values.min()) <= int(values.max()) <= bound:
            raise Refused("range", "a coordinate of the update is out of range")

    def _masked(self, values: Integers) -> MaskedUpdate:
        """y = x + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv), modulo 2^b."""
        state, key, u, bits = (
            self._state,
            self._key(self._state.mask),
            self.index,
            self.cohort.parameters.bits,
        )
        seeds = [(state.own_seed, 1)]
        for v in self._among(state.masking):
            if v != u:
                peer = self.cohort.entries[v].mask_pk
                seeds.append(
                    (key.mask_seed(peer, ctx2=state.ctx2, u=min(u, v), v=max(u, v)), 1 if v > u else -1)
                )
        words = to_words(values)
        add_masks(words, seeds, threads=self._threads)
        for seed, _ in seeds[1:]:
            erase(seed)
        return MaskedUpdate(keep_low(words, bits), bits)

    def _tag(self, vector: bytes) -> bytes:
        """Binds the vector to the signature, under a key that only this client and the server have."""
        state, invitation = self._state, self._invitation()
        key = self._key(state.enc)
        return key.tag(invitation.server_pk, ctx2=state.ctx2, sender=self.index).finish(vector)
