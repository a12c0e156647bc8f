"""On a ring a client sees its neighbours only: what a server can make of that, and the counts that stand against it."""

from __future__ import annotations

import random
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from tacit.errors import ProtocolError
from tacit.secagg.in_process import Attempt, Federation
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import (
    ROW_BYTES,
    Complaint,
    ConfirmAnswer,
    ConfirmRequest,
    MaskAnswer,
    MaskRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from tacit.secagg.parameters import Parameters, Rules
from tacit.secagg.prg import add_masks
from tacit.secagg.ring import centre, unpack
from tacit.secagg.shamir import join
from tacit.secagg.sharing import Opening, point_of
from tests.unit.lying_server import C_INT, LENGTH, VICTIM, vector

N = 201  # the smallest cohort that is a ring
RULES = Rules(max_corrupt=1, max_dropouts=40, c_int=C_INT)


class Ring:
    """An honest attempt up to M1, so everybody is ready to mask."""

    def __init__(self) -> None:
        self.federation = Federation(N, RULES, random.Random(1).randbytes)
        self.attempt = Attempt(self.federation, [vector(i) for i in range(N)])
        for step in ("setup", "deal"):
            self.attempt.deliver(step, self.attempt.requests(step))
        self.requests = self.attempt.requests("mask")
        self.cohort = self.attempt.server.cohort
        self.near = self.cohort.graph.neighbours(VICTIM)
        assert not self.cohort.parameters.complete
        self.t = self.cohort.parameters.share_threshold

    @property
    def victim(self):
        """As it stands after M1."""
        return self.federation.client(VICTIM).restore(self.attempt.clients[VICTIM].export())

    def mask_request(self, masking):
        """M2 to the victim for this U2, with the rows that belong to it."""
        honest = MaskRequest.decode(self.requests[VICTIM])
        dealers = self.cohort.graph.recipients(VICTIM)
        rows = [
            honest.rows[place * ROW_BYTES :][:ROW_BYTES] for place, v in enumerate(dealers) if v in masking
        ]
        return replace(honest, masking=masking, rows=b"".join(rows)).encode()

    def without(self, members):
        """Everybody else."""
        return tuple(i for i in range(N) if i not in set(members))


@cache
def ring() -> Ring:
    return Ring()


def reason_of(call, *arguments):
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    return error.value.reason


# ---- lies


def test_B30_a_u2_with_fewer_than_t_neighbours_is_refused_and_one_with_t_is_not():
    stage = ring()
    for left, reason in ((0, "cohort-size"), (stage.t - 1, "neighbours")):
        victim = stage.victim
        before, request = victim.export(), stage.mask_request(stage.without(stage.near[left:]))
        assert reason_of(victim.receive, request) == reason
        assert victim.export() == before
    assert stage.victim.receive(stage.mask_request(stage.without(stage.near[stage.t :]))) is None


def test_B30_a_neighbours_row_that_is_missing_is_refused():
    stage = ring()
    honest = MaskRequest.decode(stage.requests[VICTIM])
    for rows in (honest.rows[ROW_BYTES:], honest.rows[:-ROW_BYTES], honest.rows + honest.rows[:ROW_BYTES]):
        assert reason_of(stage.victim.receive, replace(honest, rows=rows).encode()) == "rows"


def test_B12_rows_of_another_graph_are_complained_about():
    """Each row is for a pair: one that a stranger on the ring has dealt to somebody else opens for nobody here."""
    stage = ring()
    stranger = next(i for i in range(N) if i not in (*stage.near, VICTIM))
    honest = MaskRequest.decode(stage.requests[VICTIM])
    foreign = stage.attempt.server._dealt[stranger].row(0)
    victim = stage.victim
    complaint = victim.receive(replace(honest, rows=foreign + honest.rows[ROW_BYTES:]).encode())
    assert Complaint.decode(complaint).dealer == stage.cohort.graph.recipients(VICTIM)[0]


def masked_victim(stage):
    victim = stage.victim
    victim._journal = type(victim._journal)()  # the journal of one attempt, so that each test has its own
    invitation = stage.attempt.invitation
    victim._journal.answered(invitation.run, 1, 1, invitation.model, invitation.config, invitation.ctx0())
    assert victim.receive(stage.requests[VICTIM]) is None
    victim.mask(stage.requests[VICTIM], vector(VICTIM))
    return victim


def confirm_request(stage, context, survivors, of):
    """M3 with proofs that all of these have sent vectors."""
    made = []
    for v in of:
        tag = bytes(16)
        signed = MaskAnswer(context, v, tag).signed(stage.federation.identities[v])
        made.append((v, tag, signed.signature))
    return ConfirmRequest(context, survivors, tuple(made))


def test_B30_a_u3_with_fewer_than_t_neighbours_is_neither_confirmed_nor_opened():
    stage, victim = ring(), masked_victim(ring())
    context, recipients = victim._state.ctx2, stage.cohort.graph.recipients(VICTIM)
    for left, reason in ((stage.t - 1, "neighbours"), (stage.t, "")):
        u3 = stage.without(stage.near[left:])
        assert len(u3) >= stage.cohort.fewest
        present = [v for v in recipients if v in u3]
        confirm = confirm_request(stage, context, u3, present)
        signatures = tuple(
            (i, ConfirmAnswer(context, i, u3).signed(stage.federation.identities[i]).signature) for i in u3
        )
        unmask = UnmaskRequest(context, u3, signatures)
        if reason:
            assert reason_of(victim.confirm, confirm.encode()) == reason
            assert reason_of(victim.unmask, unmask.encode()) == reason
        else:
            missing = replace(confirm, proofs=confirm.proofs[1:])
            assert reason_of(victim.confirm, missing.encode()) == "proof"
            assert reason_of(victim.unmask, unmask.encode()) == "phase"  # has not been shown the proofs
            victim.confirm(confirm.encode())
            victim.unmask(unmask.encode())


# ---- the attack


def test_B29_without_the_count_of_neighbours_the_victims_vector_is_recovered_and_with_it_nothing(monkeypatch):
    """No client is corrupt. The victim is shown a U2 without t of its neighbours, everybody else one of all.

    The others then drop the victim's remaining neighbours as late and open: the t that the victim was not shown
    have shares of its own seed, and everybody has shares of the late ones' mask keys, which are all that its
    vector is masked with. Neighbours of the victim would not confirm such a sum (they ask for a vector in *their*
    ctx2), so they are not asked to: T others do. That is the second barrier: who has not confirmed does not open.
    """
    stage = ring()
    ring.cache_clear()  # its clients go on in here
    attempt, graph = stage.attempt, stage.cohort.graph
    hidden, kept = stage.near[: stage.t], stage.near[stage.t :]
    lie = stage.mask_request(stage.without(hidden))
    assert reason_of(stage.victim.receive, lie) == "neighbours"

    monkeypatch.setattr(Parameters, "present", property(lambda self: 0))
    victim = attempt.clients[VICTIM]
    assert victim.receive(lie) is None
    _, words = victim.mask(lie, vector(VICTIM))
    attempt.gone = {"mask": {VICTIM, *kept}}
    attempt.deliver("mask", stage.requests)
    context, u3 = stage.cohort.ctx2(range(N)), stage.without(kept)
    sent = {i: (i, m.tag, m.signature) for i, m in attempt.server._masked.items()}
    own = MaskAnswer.decode(victim.answered("mask", lie)[0])

    def request(i):
        proofs = {**sent, VICTIM: (VICTIM, own.tag, own.signature)}
        return ConfirmRequest(context, u3, tuple(proofs[v] for v in graph.recipients(i) if v in u3)).encode()

    assert reason_of(attempt.clients[hidden[0]].confirm, request(hidden[0])) == "signature"
    far = [i for i in u3 if i not in stage.near and i != VICTIM]
    assert len(far) >= stage.cohort.parameters.threshold
    confirmed = {i: ConfirmAnswer.decode(attempt.clients[i].confirm(request(i)), u3) for i in far}
    unmask = UnmaskRequest(context, u3, tuple((i, a.signature) for i, a in confirmed.items())).encode()
    assert reason_of(attempt.clients[hidden[0]].unmask, unmask) == "phase"
    for i in stage.near:
        attempt.clients[i]._state.phase = "confirmed"  # as if that were not asked
    opened = {i: UnmaskAnswer.decode(attempt.clients[i].unmask(unmask)) for i in u3 if i != VICTIM}

    def secret(dealer):
        shares = {
            point_of(v): Opening.decode(opened[v].opening(graph.recipients(v).index(dealer))).share
            for v in graph.recipients(dealer)
            if v in opened
        }
        return join(dict(list(shares.items())[: stage.t]))

    shown = stage.cohort.ctx2(stage.without(hidden))
    masks = [(bytearray(secret(VICTIM)), -1)]
    for v in kept:
        pair = {"ctx2": shown, "u": min(v, VICTIM), "v": max(v, VICTIM)}
        seed = KeyPair(secret(v)).mask_seed(stage.cohort.entries[VICTIM].mask_pk, **pair)
        masks.append((seed, -1 if v > VICTIM else 1))
    total = unpack(words, stage.cohort.parameters.bits, LENGTH)
    add_masks(total, masks)
    recovered = centre(total, stage.cohort.parameters.bits)
    assert np.array_equal(recovered, vector(VICTIM).values)
