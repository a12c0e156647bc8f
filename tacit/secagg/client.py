"""One client's side of the secure sum. Bytes in, bytes or a typed error out; the caller does all I/O.

    setup   M0: answers the invitation with two public keys
    mask    M2: answers the list of clients with y = x + own mask + pairwise masks
    unmask  M4: answers the list of survivors with the seed of the own mask

This is the preview: no signatures and no shares yet. It holds between honest parties, and a client that
vanishes after `setup` ends the attempt (docs/protocol.md).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final, NoReturn

from tacit.errors import ProtocolError, Refused
from tacit.secagg.client_state import ClientState
from tacit.secagg.contexts import NO_HEAD, Cohort, Invitation, cohort_of
from tacit.secagg.keys import SECRET_KEY_BYTES, KeyPair, erase
from tacit.secagg.members import NONCE_BYTES, Entry, Member
from tacit.secagg.messages import MaskAnswer, MaskRequest, SetupAnswer, UnmaskAnswer, UnmaskRequest
from tacit.secagg.prg import KEY_BYTES, add_mask
from tacit.secagg.ring import keep_low, to_words
from tacit.update import EncodedUpdate, Integers, MaskedUpdate

RandomBytes = Callable[[int], bytes]

# (phase, step) -> the phase after it. What is not here is refused.
TRANSITIONS: Final = {
    ("new", "setup"): "keyed",
    ("keyed", "mask"): "masked",
    ("masked", "unmask"): "unmasked",
}


class ClientMachine:
    """One attempt of one round, as one client sees it. A new attempt is a new machine.

    Guarantees:
        Each step is answered once: the same request again gets the same bytes, another one is refused.
        A refusal changes nothing.
        The seed of the own mask leaves only in the context that this client has masked in, and only for a sum
        over every client of that context.

    Args:
        member: who this client is.
        random_bytes: source of secrets; `secrets.token_bytes` outside tests.
    """

    def __init__(self, member: Member, random_bytes: RandomBytes) -> None:
        self._state = ClientState(member)
        self._random_bytes = random_bytes

    def __repr__(self) -> str:
        return f"<ClientMachine of {self.member.label!r}: {self.phase}>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClientMachine is saved by export() alone")

    @property
    def member(self) -> Member:
        """Who this client is."""
        return self._state.member

    @property
    def phase(self) -> str:
        """new, keyed, masked, unmasked or closed."""
        return self._state.phase

    def setup(self, invitation: Invitation, *, counter: int = 0, site_head: bytes = NO_HEAD) -> bytes:
        """M0: draws the keys of this attempt and answers with their public halves.

        Args:
            invitation: built from what this client has received and computed itself.
            counter: attempts that this member has answered in this federation.
            site_head: head of its own journal, 32 bytes.

        Raises:
            ProtocolError: "phase" after another invitation.
        """
        state, request = self._state, invitation.encode()
        if (stored := state.answered("setup", request)) is not None:
            return stored
        after = self._next("setup")
        state.enc = KeyPair(self._random_bytes(SECRET_KEY_BYTES))
        state.mask = KeyPair(self._random_bytes(SECRET_KEY_BYTES))
        nonce = self._random_bytes(NONCE_BYTES)
        state.entry = Entry(state.member, state.enc.public, state.mask.public, nonce, counter, site_head)
        state.invitation = invitation
        return state.advance(after, "setup", request, SetupAnswer(invitation.ctx0(), state.entry).encode())

    def cohort(self, request: bytes) -> Cohort:
        """Checks the request of M2 without answering it; its parameters say how much noise is this client's.

        Raises:
            ProtocolError: this client must not mask under such a request.
        """
        self._next("mask")
        invitation, index = self._invitation(), self.member.index
        message = MaskRequest.decode(request)
        if message.context != invitation.ctx0():
            raise ProtocolError("context", "the request belongs to another invitation")
        if [entry for entry in message.entries if entry.index == index] != [self._state.entry]:
            raise ProtocolError("own-entry", "this client's own entry is missing or changed")
        if index not in message.masking:
            raise ProtocolError("own-entry", "this client is not among those that mask")
        return cohort_of(invitation, message.entries, message.masking)

    def mask(self, request: bytes, encoded: EncodedUpdate) -> bytes:
        """M2: the update under this client's own mask and one mask per peer.

        The caller has journalled and debited the release before it lets these bytes out.

        Args:
            request: U1 and U2.
            encoded: shape (d,); this client's noise, if any, is already in it.

        Raises:
            ProtocolError: the request is refused; "phase" after another one.
            Refused: a coordinate is out of range for this cohort.
        """
        state = self._state
        if (stored := state.answered("mask", request)) is not None:
            return stored
        after, cohort = self._next("mask"), self.cohort(request)
        self._check_range(encoded.values, cohort)
        state.own_seed = bytearray(self._random_bytes(KEY_BYTES))
        update = self._masked(encoded.values, cohort)
        state.ctx2, state.masking = cohort.ctx2, cohort.masking
        answer = MaskAnswer.of(cohort.ctx2, self.member.index, update).encode()
        return state.advance(after, "mask", request, answer)

    def unmask(self, request: bytes) -> bytes:
        """M4: the seed of the own mask; every secret is erased here.

        Raises:
            ProtocolError: another context, or the survivors are not exactly the clients that masked.
        """
        state = self._state
        if (stored := state.answered("unmask", request)) is not None:
            return stored
        after, message = self._next("unmask"), UnmaskRequest.decode(request)
        if message.context != state.ctx2:
            raise ProtocolError("context", "this client has masked in another context")
        if message.survivors != state.masking:  # these are at least n - D: mask() has seen to that
            raise ProtocolError("survivors", "the preview opens a sum over all clients that masked, or none")
        answer = UnmaskAnswer(state.ctx2, self.member.index, bytes(state.own_seed)).encode()
        state.erase()
        return state.advance(after, "unmask", request, answer)

    def answered(self, step: str, request: bytes) -> bytes | None:
        """The stored answer of a step to exactly this request, so that nothing has to be encoded twice.

        Args:
            step: "setup", "mask" or "unmask".
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

    @classmethod
    def restore(cls, exported: bytes, random_bytes: RandomBytes) -> ClientMachine:
        """The machine that was exported.

        Raises:
            StorageError: these are not the bytes of an export.
        """
        state = ClientState.decode(exported)
        machine = cls(state.member, random_bytes)
        machine._state = state
        return machine

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

    def _mask_key(self) -> KeyPair:
        if self._state.mask is None:
            raise ProtocolError("erased", "this client's key has been erased")
        return self._state.mask

    def _check_range(self, values: Integers, cohort: Cohort) -> None:
        """Refuses a vector that is not d long, or has a coordinate that could make the sum wrap around."""
        invitation, bits = self._invitation(), cohort.parameters.bits
        noisy = invitation.rules.noise_multiplier > 0
        bound = 2 ** (bits - 1) - 1 if noisy else invitation.rules.c_int
        if values.shape != (invitation.length,):
            raise Refused("vector-size", f"an update of shape {values.shape}, not ({invitation.length},)")
        if values.size and not -bound <= int(values.min()) <= int(values.max()) <= bound:
            raise Refused("range", "a coordinate of the update is out of range")

    def _masked(self, values: Integers, cohort: Cohort) -> MaskedUpdate:
        """y = x + PRG(b_u) + sum over v > u of PRG(s_uv) - sum over v < u of PRG(s_uv), modulo 2^b."""
        key, u = self._mask_key(), self.member.index
        words = to_words(values)
        add_mask(words, self._state.own_seed, 1)
        for v in cohort.masking:
            if v == u:
                continue
            peer = cohort.entries[v].mask_pk
            seed = key.mask_seed(peer, ctx2=cohort.ctx2, u=min(u, v), v=max(u, v))
            add_mask(words, seed, 1 if v > u else -1)
            erase(seed)
        return MaskedUpdate(keep_low(words, cohort.parameters.bits), cohort.parameters.bits)
