"""What has to be refused, each with its code, made with the product's own parts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.secagg import sharing
from tacit.secagg.members import Entry
from tacit.secagg.messages import (
    ConfirmRequest,
    DealRequest,
    MaskAnswer,
    MaskRequest,
    SetupAnswer,
    UnmaskRequest,
)
from tacit.secagg.shamir import PRIME
from tests.vectors.attempt import Attempt
from tests.vectors.cases import FIVE, THREE, Json, seeded
from tests.vectors.product import identity_of

FIELD = 2**255 - 19
ORDER_8 = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
X_ORDER_8 = 325606250916557431795983626356110631294008115727848805560023387167927233504
CODE = "code"


def little(value: int) -> str:
    """32 bytes, little-endian, hexadecimal."""
    return value.to_bytes(32, "little").hex()


def alone() -> dict[str, tuple[str, Json, Json]]:
    """What needs no attempt: name -> kind, given, expected."""
    x25519 = [little(x) for x in (0, 1, X_ORDER_8, FIELD - 1, FIELD, FIELD + 1, FIELD + 9, 9 + 2**255)]
    y_values = (0, 1, FIELD - 1, ORDER_8, FIELD - ORDER_8, 1 + 2**255, FIELD, FIELD + 1, FIELD + 3, 2)
    codes = ["low-order-point"] * 4 + ["key"] * 4
    identity = "identity-key"
    p, high = PRIME.to_bytes(33).hex(), (2**256).to_bytes(33).hex()
    share_cases = [{"0": p, "1": "00" * 33}, {"0": high, "1": high}, {"0": "00" * 32}, {"0": "ff" * 33}]
    last_bit = "00" * 8 + "00" * 8 + "01"  # 8 words of 17 bits: all bits of the plane are used
    words = [
        ["00" * 18 + "0080", 9, 17],
        [last_bit, 8, 17],
        ["00" * 19, 9, 17],
        ["00" * 21, 9, 17],
        ["00", 1, 9],
    ]
    return {
        "public keys of small order or a second spelling": (
            "points",
            {"x25519": x25519, "ed25519": [little(y) for y in y_values]},
            {"codes": {"x25519": codes, "ed25519": [identity] * len(y_values)}},
        ),
        "shares that are none": ("shares", {"cases": share_cases}, {"codes": ["share"] * 4}),
        "packed words with an unused bit or another length": (
            "packed",
            {"cases": words},
            {"codes": ["padding", "", "vector-size", "vector-size", "vector-size"]},
        ),
        "signatures of another label, context, sender, body or key": signatures(),
    }


def signatures() -> tuple[str, Json, Json]:
    """One good signature, and everything that it is none for."""
    key = identity_of(seeded("identity"))
    context, body = seeded("ctx1"), seeded("body")
    signed = key.sign("M1/answer", bytes.fromhex(context), 3, bytes.fromhex(body)).hex()
    good = [key.public.hex(), signed, "M1/answer", context, 3, body]
    order = 2**252 + 27742317777372353535851937790883648493
    s = int.from_bytes(bytes.fromhex(signed)[32:], "little")
    second = signed[:64] + little(s + order)  # RFC 8032, section 5.1.7: s below the order of the group
    changed = [
        (1, second),
        (1, signed[:-2] + "00"),
        (2, "M2/answer"),
        (3, body),
        (4, 4),
        (5, context),
        (0, identity_of(seeded("x")).public.hex()),
    ]
    cases = [good] + [[*good[:at], value, *good[at + 1 :]] for at, value in changed]
    weak = little(1)
    cases += [[weak, weak + "00" * 32, *good[2:]]]  # holds for every message under the identity point
    return "signatures", {"cases": cases}, {"codes": [""] + ["signature"] * len(changed) + ["identity-key"]}


def entry_changed(**fields: Any) -> Callable[[Attempt], bytes]:
    """M1/request with the entry of client 2 changed, and signed by it."""

    def make(one: Attempt) -> bytes:
        request = DealRequest.decode(one.sent["M1/request"][0])
        entry: Entry = replace(request.entries[2], **fields)
        answer = SetupAnswer(request.context, entry).signed(one.identities[2])
        entries = (*request.entries[:2], entry, *request.entries[3:])
        return replace(
            request,
            entries=entries,
            signatures=(*request.signatures[:2], answer.signature, *request.signatures[3:]),
        ).encode()

    return make


def entry_unsigned(one: Attempt) -> bytes:
    """M1/request with the signatures of two clients swapped."""
    request = DealRequest.decode(one.sent["M1/request"][0])
    a, b, c = request.signatures
    return replace(request, signatures=(a, c, b)).encode()


def entry_of_another(one: Attempt) -> bytes:
    """M0/answer of client 1 with the entry of client 2 in it."""
    mine, other = (SetupAnswer.decode(one.sent["M0/answer"][u]) for u in (1, 2))
    message = bytearray(replace(mine, entry=other.entry).signed(one.identities[1]).encode())
    at = message.index(other.entry.index.to_bytes(8))  # the header's sender
    message[at : at + 8] = (1).to_bytes(8)
    return bytes(message)


def row_changed(make_row: Callable[[Attempt, bytes], bytes]) -> Callable[[Attempt], bytes]:
    """M2/request for client 0 with the row of dealer 1 changed."""

    def make(one: Attempt) -> bytes:
        request = MaskRequest.decode(one.sent["M2/request"][0])
        row = make_row(one, request.rows[146:292])
        return replace(request, rows=request.rows[:146] + row + request.rows[292:]).encode()

    return make


def too_large_a_share(one: Attempt, _: bytes) -> bytes:
    """A row that opens and matches its commitment, and holds p."""
    cohort, u, v = one.clients[0].cohort, 1, 0
    shares = sharing._with_hashes(PRIME.to_bytes(33) + bytes(65), cohort.ctx1, u, v)
    enc = one.clients[1]._state.enc
    assert enc
    key = enc.share_key(cohort.entries[v].enc_pk, ctx1=cohort.ctx1, u=u, v=v)
    plain = shares.own_share + shares.key_share + shares.salt
    sealed = AESGCM(key).encrypt(bytes(12), plain, sharing._fields("row", cohort.ctx1, u, v))
    return sealed + sharing._commitment(shares.inner_own, shares.inner_key, cohort.ctx1, u, v)


def request_changed(kind: Any, name: str, **change: Callable[[Any], Any]) -> Callable[[Attempt], bytes]:
    """A request to client 0 with fields computed from what they were."""

    def make(one: Attempt) -> bytes:
        message = kind.decode(one.sent[name][0])
        changed = replace(message, **{f: new(getattr(message, f)) for f, new in change.items()})
        return bytes(changed.encode())

    return make


def words_of(one: Attempt, words: bytes) -> bytes:
    """M2/answer of client 1 for these words, tag and signature good."""
    state = one.clients[1]._state
    assert state.enc
    tag = state.enc.tag(one.invitation.server_pk, ctx2=state.ctx2, sender=1).finish(words)
    return MaskAnswer(state.ctx2, 1, tag).signed(one.identities[1]).encode()


SEVENTEEN = THREE | {"rules": {"c": 1, "D": 0, "C_int": 2**14}}
FOUR = FIVE | {"gone": {"M1": [4]}}
# name -> attempt, message, receiver (a client, or None: the server takes it from client 1), what makes it, code
# Code "" : the answer is a complaint.
REQUESTS: dict[str, tuple[Json, str, Callable[[Attempt], bytes], str]] = {
    "an entry with a key of small order": (
        THREE, "M1/request", entry_changed(enc_pk=bytes.fromhex(little(X_ORDER_8))), "low-order-point",
    ),
    "an entry with a second spelling of a key": (
        THREE, "M1/request", entry_changed(mask_pk=bytes.fromhex(little(FIELD + 9))), "key",
    ),
    "an entry under the signature of another": (THREE, "M1/request", entry_unsigned, "signature"),
    "own entry changed": (
        THREE, "M1/request",
        request_changed(DealRequest, "M1/request",
                        entries=lambda e: (replace(e[0], nonce=bytes(32)), *e[1:])), "own-entry",
    ),
    "a request in another context": (
        THREE, "M2/request", request_changed(MaskRequest, "M2/request", context=lambda c: c[::-1]), "context",
    ),
    "a request with a byte too many": (
        THREE, "M2/request", lambda one: one.sent["M2/request"][0] + b"\0", "encoding",
    ),
    "a row with a share that is not below p": (THREE, "M2/request", row_changed(too_large_a_share), ""),
    "a row whose commitment was changed": (
        THREE, "M2/request", row_changed(lambda _, row: row[:-1] + bytes([row[-1] ^ 1])), "",
    ),
    "a row that was dealt to another": (
        THREE, "M2/request", row_changed(lambda one, _: one.sent["M2/request"][2][-292 :-146]), "",
    ),
    "U3 with somebody who is not in U2": (
        FOUR, "M3/request",
        request_changed(ConfirmRequest, "M3/request", survivors=lambda _: (0, 1, 2, 4)), "unknown-member",
    ),
    "a proof too few": (
        FIVE, "M3/request", request_changed(ConfirmRequest, "M3/request", proofs=lambda p: p[:-1]), "proof",
    ),
    "a signature too few": (
        FIVE, "M4/request",
        request_changed(UnmaskRequest, "M4/request", signatures=lambda s: s[:-1]), "confirmations",
    ),
    "signatures over another U3": (
        FIVE, "M4/request",
        request_changed(UnmaskRequest, "M4/request", survivors=lambda _: (0, 1, 2, 3)), "signature",
    ),
}  # fmt: skip


def in_attempts() -> dict[str, tuple[str, Json, Json]]:
    """What is sent in the middle of an attempt: name -> kind, given, expected; null = a complaint."""
    found: dict[str, tuple[str, Json, Json]] = {}
    for name, (described, message, make, code) in REQUESTS.items():
        one = Attempt(described).until(message[:2])
        given = {"attempt": described, "name": message, "to": 0, "message": make(one).hex()}
        found[name] = ("sent", given, {CODE: code} if code else {})
    one = Attempt(THREE).until("M0")
    one.answers("M0")
    given = {"attempt": THREE, "name": "M0/answer", "of": 1}
    found["an entry of another"] = (
        "sent",
        given | {"message": entry_of_another(one).hex()},
        {CODE: "sender"},
    )
    one = Attempt(SEVENTEEN).until("M2")
    one.deliver("M2/request", 1, one.sent["M2/request"][1])
    words = one.sent["words"][1]
    for name, sent, code in (
        ("words with an unused bit set", words[:-1] + bytes([words[-1] | 2]), "padding"),
        ("words that are too short", words[:-1], "vector-size"),
        ("words of another tag", words[:1] + bytes([words[1] ^ 1]) + words[2:], "tag"),
    ):
        tagged = words if code == "tag" else sent
        given = {"attempt": SEVENTEEN, "name": "M2/answer", "of": 1, "words": sent.hex()}
        found[name] = ("sent", given | {"message": words_of(one, tagged).hex()}, {CODE: code})
    return found
