"""What a server can lie about once shares are dealt: who masks (M2), whose vectors came (M3), who confirmed it (M4)."""

from __future__ import annotations

import struct
from dataclasses import replace

from tacit.secagg.envelope import start
from tacit.secagg.members import SERVER
from tacit.secagg.messages import ROW_BYTES, Complaint, ConfirmAnswer, DealAnswer, MaskAnswer
from tests.unit.lying_server import VICTIM, lies

OTHER = b"\7" * 32
HUGE = struct.pack(">Q", 2**64 - 1)

# ---- M2


def masking(change):
    """Another U2, the rows as they were."""

    def alter(stage, request):
        writer = start("M2/request", request.context, SERVER).numbers(change(request.masking))
        return writer.data(request.rows).finish()

    return alter


def too_few(stage, request):
    """A smaller U2 with the rows that fit it."""
    left = stage.fewest - 1
    return replace(request, masking=request.masking[:left], rows=request.rows[: left * ROW_BYTES])


def row(change):
    """Other bytes in the row that member 0 has dealt to the victim."""
    return lambda stage, m: replace(m, rows=change(stage, m.rows[:ROW_BYTES]) + m.rows[ROW_BYTES:])


def rows(change):
    return lambda stage, m: replace(m, rows=change(m.rows))


def of_the_earlier_attempt(stage, row):
    """What member 0 has dealt to the victim in the earlier attempt."""
    stored = stage.earlier.clients[0].answered("deal", stage.earlier_deal)
    return DealAnswer.decode(stored[0]).row(VICTIM)


def flipped(at):
    return lambda stage, data: data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def second_first(data):
    return data[ROW_BYTES : 2 * ROW_BYTES] + data[:ROW_BYTES] + data[2 * ROW_BYTES :]


MASK = {
    "B12 another ctx1, so another graph": (lambda s, m: replace(m, context=OTHER), "context"),
    "B12 rows of the wrong neighbours": (rows(second_first), "complaint"),
    "B15 the victim is not in U2": (masking(lambda u: u[:VICTIM] + u[VICTIM + 1 :]), "own-entry"),
    "B15 a stranger in U2": (masking(lambda u: (*u, 10**6)), "unknown-member"),
    "B15 a member twice in U2": (masking(lambda u: (u[0], *u)), "order"),
    "B15 fewer than n - D in U2": (too_few, "cohort-size"),
    "B28 2^64 - 1 members in U2": (
        lambda s, m: start("M2/request", m.context, SERVER).finish() + HUGE,
        "encoding",
    ),
    "B30 a row missing": (rows(lambda r: r[ROW_BYTES:]), "rows"),
    "B30 a row too many": (rows(lambda r: r + r[:ROW_BYTES]), "rows"),
    "a row cut short": (rows(lambda r: r[:-1]), "encoding"),
    "a row for somebody else": (row(lambda s, r: s.dealt[0].row(VICTIM + 1)), "complaint"),
    "B19 a row of the earlier attempt": (row(of_the_earlier_attempt), "complaint"),
    "a sealed share changed": (row(flipped(5)), "complaint"),
    "a commitment changed": (row(flipped(ROW_BYTES - 1)), "complaint"),
}

# ---- M3

# Of n members the last has dealt nothing and the one before it has sent no vector: U3 ends at n - 3.
SETS = {
    "B15 the victim is not in U3": (
        lambda u: (*(i for i in u if i != VICTIM), u[-1] + 1),
        "survivors",
    ),
    "B15 a stranger in U3": (lambda u: (*u, 10**6), "unknown-member"),
    "B15 one of U3 was not in U2": (lambda u: (*u, u[-1] + 2), "unknown-member"),
    "B15 a member twice in U3": (lambda u: (u[0], *u), "order"),
    "B15 fewer than n - D in U3": (lambda u: u[: len(u) * 3 // 4], "cohort-size"),
    "B15 nobody in U3": (lambda u: (), "cohort-size"),
}


def proved(change):
    """Another U3, with proof for those in it."""

    def alter(stage, request):
        members = change(request.survivors)
        proofs = [proof for proof in request.proofs if proof[0] in members]
        writer = start("M3/request", request.context, SERVER).numbers(members).number(len(proofs))
        for i, tag, signature in proofs:
            writer.number(i).data(tag).data(signature)
        return writer.finish()

    return alter


def proof(make):
    """Another tag and signature as proof that member 0 has sent its vector."""

    def alter(stage, request):
        _, tag, signature = request.proofs[0]
        made = make(stage, request.context, tag, signature)
        return replace(request, proofs=((0, *made), *request.proofs[1:]))

    return alter


def proofs(change):
    return lambda stage, request: replace(request, proofs=change(request.proofs))


def one_that_sent_no_vector(stage, request):
    u3 = (*request.survivors[1:], stage.n - 2)
    return replace(request, survivors=u3, proofs=request.proofs[1:])


CONFIRM = {
    **{name: (proved(change), reason) for name, (change, reason) in SETS.items()},
    "B19 another context": (lambda s, m: replace(m, context=OTHER), "context"),
    "B36 no proof of a vector": (proofs(lambda p: p[1:]), "proof"),
    "B36 no proof of the last vector": (proofs(lambda p: p[:-1]), "proof"),
    "B36 no proof of the victim's own": (proofs(lambda p: p[:VICTIM] + p[VICTIM + 1 :]), "proof"),
    "B36 one that sent no vector": (one_that_sent_no_vector, "proof"),
    "B36 a vector in another ctx2": (
        proof(lambda s, ctx2, tag, _: (tag, s.signed(MaskAnswer(OTHER, 0, tag), 0))),
        "signature",
    ),
    "B36 another vector": (proof(lambda s, ctx2, tag, signature: (bytes(16), signature)), "signature"),
    "B36 signed by another member": (
        proof(lambda s, ctx2, tag, _: (tag, s.signed(MaskAnswer(ctx2, 0, tag), 1))),
        "signature",
    ),
    "B36 a complaint for a vector": (
        proof(lambda s, ctx2, tag, _: (tag, s.signed(Complaint(ctx2, 0, 1), 0))),
        "signature",
    ),
    "B28 2^64 - 1 proofs": (
        lambda s, m: start("M3/request", m.context, SERVER).numbers(m.survivors).finish() + HUGE,
        "encoding",
    ),
}

# ---- M4


def confirmations(stage, members, context):
    """T signatures under a set, of members that are in it, as it stands."""
    others = [i for i in dict.fromkeys(members) if i < stage.n and i != VICTIM]
    return [(i, stage.signed(ConfirmAnswer(context, i, members), i)) for i in others[: stage.threshold]]


def confirmed(change):
    """Another U3 under T signatures."""

    def alter(stage, request):
        members = change(request.survivors)
        return opened(request, members, confirmations(stage, members, request.context))

    return alter


def opened(request, members, signatures):
    """M4's request as any bytes."""
    writer = start("M4/request", request.context, SERVER).numbers(members).number(len(signatures))
    for i, signature in signatures:
        writer.number(i).data(signature)
    return writer.finish()


def signatures(change):
    return lambda stage, m: opened(m, m.survivors, change(stage, m))


def last(make):
    """Another index and signature in the place of the last."""
    return signatures(lambda stage, m: [*m.signatures[:-1], make(stage, m, *m.signatures[-1])])


def an_outsider(stage, m, *_):
    out = stage.n - 2
    return out, stage.signed(ConfirmAnswer(m.context, out, m.survivors), out)


UNMASK = {
    **{name: (confirmed(change), reason) for name, (change, reason) in SETS.items()},
    "B16 a second set of survivors": (confirmed(lambda u: (*u[1:], u[-1] + 1)), "survivors"),
    "B16 a larger set of survivors": (confirmed(lambda u: (*u, u[-1] + 1)), "survivors"),
    "B17 fewer than T signatures": (signatures(lambda s, m: m.signatures[1:]), "confirmations"),
    "B17 no signature": (signatures(lambda s, m: ()), "confirmations"),
    "B17 a forged signature": (last(lambda s, m, i, _: (i, bytes(64))), "signature"),
    "B17 signatures over another set": (
        signatures(lambda s, m: confirmations(s, (*m.survivors, s.n - 2), m.context)),
        "signature",
    ),
    "B17 signatures in another context": (
        signatures(lambda s, m: confirmations(s, m.survivors, OTHER)),
        "signature",
    ),
    "B17 one signature T times": (signatures(lambda s, m: m.signatures[:1] * s.threshold), "order"),
    "B17 the signature of somebody who is not in U3": (last(an_outsider), "unknown-member"),
    "B17 the signature of a stranger": (last(lambda *_: (10**6, bytes(64))), "unknown-member"),
    "B17 a vector's signature": (
        last(lambda s, m, i, _: (i, s.signed(MaskAnswer(m.context, i, bytes(16)), i))),
        "signature",
    ),
    "B18 another context": (lambda s, m: replace(m, context=OTHER), "context"),
    "B28 2^64 - 1 signatures": (
        lambda s, m: start("M4/request", m.context, SERVER).numbers(m.survivors).finish() + HUGE,
        "encoding",
    ),
}

LIES = [*lies("mask", MASK), *lies("confirm", CONFIRM), *lies("unmask", UNMASK)]
