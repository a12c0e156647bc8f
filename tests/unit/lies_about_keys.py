"""What a server can lie about before anybody masks: the invitation (M0) and the list of clients (M1)."""

from __future__ import annotations

import struct
from dataclasses import replace

from tacit.secagg.encoding import Writer
from tacit.secagg.envelope import start
from tacit.secagg.keys import KeyPair
from tacit.secagg.members import SERVER
from tacit.secagg.messages import SetupAnswer, SetupRequest
from tests.unit.lying_server import VICTIM, lies

OTHER, KEY = b"\7" * 32, KeyPair(b"\7" * 32).public
FIELD = 2**255 - 19
ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
LOW_ORDER = {"order 4": 0, "order 1": 1, "order 8": ORDER_8, "order 2": FIELD - 1}
POINTS = {order: number.to_bytes(32, "little") for order, number in LOW_ORDER.items()}
TWICE_SPELLED = (FIELD + 9).to_bytes(32, "little")  # the point with u = 9
HUGE = struct.pack(">Q", 2**64 - 1)

# ---- M0


def invited(by_server=True, **changes):
    """An invitation with other fields, which the server has signed."""

    def alter(stage, request):
        signer = stage.federation.server_identity if by_server else stage.federation.identities[0]
        return SetupRequest(replace(request.invitation, **changes)).signed(signer)

    return alter


def ruled(**changes):
    """An invitation under other rules."""
    return lambda stage, request: invited(rules=replace(stage.federation.rules, **changes))(stage, request)


def with_a_larger_c(stage, request):
    return ruled(max_corrupt=stage.federation.rules.max_corrupt + 1)(stage, request)


def spelled(old, new):
    """Other bytes in the place of some that occur once."""

    def alter(stage, request):
        data = request.encode()
        assert data.count(old) == 1 and len(old) == len(new)
        return data.replace(old, new)

    return alter


def noise_of(value):
    """A noise multiplier that our own code would not spell."""
    return spelled(struct.pack(">d", 0.5), struct.pack(">d", value))


def signed_for_attempt_3(stage, request):
    return replace(request, invitation=replace(request.invitation, attempt=3))


def a_run_of_4_gib(stage, request):
    return Writer("M0/request").data(bytes(32)).finish() + b"\xff" * 4


SETUP = {
    "B33 signed by somebody else": (invited(by_server=False), "signature"),
    "B33 another roster": (invited(roster=OTHER), "context"),
    "B3 signed for another attempt": (signed_for_attempt_3, "signature"),
    "B10 T by other formulas": (spelled(b"floor((n + c)", b"floor((n - c)"), "rules"),
    "B10 T for another c": (with_a_larger_c, "context"),
    "B10 T for no corrupt members": (ruled(max_corrupt=0, allow_no_corrupt=True), "context"),
    "B10 more drop-outs": (ruled(max_dropouts=4), "context"),
    "B10 smaller cohorts": (ruled(max_cohort=5), "context"),
    "B11 another modulus": (ruled(c_int=2048), "context"),
    "B11 no noise": (ruled(noise_multiplier=0.0), "context"),
    "B11 noise of NaN": (noise_of(float("nan")), "encoding"),
    "B11 infinite noise": (noise_of(float("inf")), "encoding"),
    "B11 negative noise": (noise_of(-0.5), "rules"),
    "B11 noise of minus zero": (noise_of(-0.0), "encoding"),
    "B11 another length": (invited(length=9), "context"),
    "B13 another model than came along": (invited(model=OTHER), "context"),
    "B14 another configuration": (invited(config=OTHER), "context"),
    "B20 a fourth attempt": (invited(attempt=4), "attempt"),
    "B20 an attempt 0": (invited(attempt=0), "attempt"),
    "B19 an attempt that was answered": (invited(attempt=1), "attempt"),
    "B23 a round that goes back": (invited(round=0), "round"),
    "B32 another attempt with another model": (invited(model=OTHER), "model", {"model": OTHER}),
    "B32 another attempt with another configuration": (
        invited(config=OTHER),
        "config",
        {"config": OTHER},
    ),
    **{
        f"B5 a server's key of {order}": (invited(server_pk=point), "low-order-point")
        for order, point in POINTS.items()
    },
    "B5 a second spelling of a server's key": (invited(server_pk=TWICE_SPELLED), "key"),
    "B28 a run's name without end": (invited(run="x" * 65), "run"),
    "B28 a text of 4 GiB": (a_run_of_4_gib, "encoding"),
}

# ---- M1


def listed(context, pairs):
    """U1 as any bytes, in any order."""
    writer = start("M1/request", context, SERVER).number(len(pairs))
    for entry, signature in pairs:
        entry.write(writer)
        writer.data(signature)
    return writer.finish()


def pairs_of(change):
    """U1 with another list of entries and signatures."""

    def alter(stage, request):
        pairs = list(zip(request.entries, request.signatures, strict=True))
        return listed(request.context, change(stage, pairs))

    return alter


def entry(at, by=None, context=None, **fields):
    """U1 with one entry changed; `by` has signed it, else the old signature stays."""

    def change(stage, pairs):
        entries = [entry for entry, _ in pairs]
        values = {name: value(entries) if callable(value) else value for name, value in fields.items()}
        changed, signature = replace(entries[at], **values), pairs[at][1]
        if by is not None:
            signature = stage.signed(SetupAnswer(context or stage.attempt.invitation.ctx0(), changed), by)
        made = list(pairs)
        made[at] = changed, signature
        return made

    return pairs_of(change)


def of(name, at):
    """The same field of another entry."""
    return lambda entries: getattr(entries[at], name)


def from_another(**changes):
    """Member 0's own signature under its entry, from another invitation."""

    def alter(stage, request):
        return entry(0, by=0, context=replace(stage.attempt.invitation, **changes).ctx0())(stage, request)

    return alter


def of_the_earlier_attempt(stage, pairs):
    old = stage.earlier.server._setups[0]
    return [(old.entry, old.signature), *pairs[1:]]


def in_each_others_name(stage, pairs):
    (first, by_first), (second, by_second), *rest = pairs
    return [(replace(second, index=0), by_second), (replace(first, index=1), by_first), *rest]


def stranger(stage, pairs):
    keys = {"enc_pk": KeyPair(b"\1" * 32).public, "mask_pk": KeyPair(b"\2" * 32).public}
    return [(replace(pairs[0][0], index=stage.n, nonce=OTHER, **keys), bytes(64))]


DEAL = {
    "B1 a mask key substituted": (entry(0, mask_pk=KEY), "signature"),
    "B1 a sealing key substituted": (entry(0, enc_pk=KEY), "signature"),
    "B1 a key substituted in the last entry": (entry(-1, mask_pk=KEY), "signature"),
    "B1 no signature": (pairs_of(lambda s, p: [(p[0][0], bytes(64)), *p[1:]]), "signature"),
    "B2 signed by another member": (entry(0, by=1), "signature"),
    "B2 two entries in each other's name": (pairs_of(in_each_others_name), "signature"),
    "B3 an entry of the earlier attempt": (pairs_of(of_the_earlier_attempt), "signature"),
    "B3 signed in another run": (from_another(run="other"), "signature"),
    "B3 signed in another round": (from_another(round=2), "signature"),
    "B3 signed in another attempt": (from_another(attempt=3), "signature"),
    "B3 signed for another key of the server": (from_another(server_pk=KEY), "signature"),
    "B3 signed on other receipts": (from_another(receipt_head=OTHER), "signature"),
    "B13 signed for another model": (from_another(model=OTHER), "signature"),
    "B14 signed for another configuration": (from_another(config=OTHER), "signature"),
    **{
        f"B5 a {use} of {order}": (entry(0, by=0, **{use: point}), "low-order-point")
        for order, point in POINTS.items()
        for use in ("mask_pk", "enc_pk")
    },
    "B5 a second spelling of a key": (entry(0, by=0, mask_pk=TWICE_SPELLED), "key"),
    "B7 own entry missing": (pairs_of(lambda s, p: p[:VICTIM] + p[VICTIM + 1 :]), "own-entry"),
    "B7 own key changed": (entry(VICTIM, mask_pk=KEY), "own-entry"),
    "B7 own nonce changed": (entry(VICTIM, nonce=OTHER), "own-entry"),
    "B7 own counter changed": (entry(VICTIM, counter=9), "own-entry"),
    "B7 own entry twice": (pairs_of(lambda s, p: p[: VICTIM + 1] + p[VICTIM:]), "order"),
    "B7 own mask key at another member": (entry(0, by=0, mask_pk=of("mask_pk", VICTIM)), "duplicate"),
    "B8 a member twice": (pairs_of(lambda s, p: [p[0], *p]), "order"),
    "B8 members out of order": (pairs_of(lambda s, p: [p[1], p[0], *p[2:]]), "order"),
    "B8 one mask key at two": (entry(0, by=0, mask_pk=of("mask_pk", 1)), "duplicate"),
    "B8 one sealing key at two": (entry(0, by=0, enc_pk=of("enc_pk", 1)), "duplicate"),
    "B8 one key for two uses": (entry(0, by=0, enc_pk=of("mask_pk", 0)), "duplicate"),
    "B8 one nonce at two": (entry(0, by=0, nonce=of("nonce", 1)), "duplicate"),
    "B9 fewer than n - D": (pairs_of(lambda s, p: p[: s.fewest - 1]), "cohort-size"),
    "B9 nobody else": (pairs_of(lambda s, p: [p[VICTIM]]), "cohort-size"),
    "B9 more than were invited": (pairs_of(lambda s, p: p + stranger(s, p)), "cohort-size"),
    "B9 a stranger": (pairs_of(lambda s, p: p[:-1] + stranger(s, p)), "unknown-member"),
    "B19 the request of the earlier attempt": (lambda s, m: s.earlier_deal, "context"),
    "B28 2^64 - 1 entries": (
        lambda s, m: start("M1/request", m.context, SERVER).finish() + HUGE,
        "encoding",
    ),
    "B28 a byte too many": (lambda s, m: m.encode() + b"\0", "encoding"),
    "B34 a peer whose counter stands still": (entry(0, by=0, counter=1), "peer-counter"),
    "B34 a peer whose counter goes back": (entry(-1, by=-1, counter=0), "peer-counter"),
}

LIES = [*lies("setup", SETUP), *lies("deal", DEAL)]
