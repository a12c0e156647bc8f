"""What the reference makes of each kind of vector: `given` in, `expected` out, all bytes as hexadecimal."""

from __future__ import annotations

import struct
from collections.abc import Callable
from datetime import date
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.reference import canonical, keys, messages, parameters, sharing
from tests.reference.canonical import Refused, sha256
from tests.reference.journal import Journal
from tests.reference.receipts import Receipt, aggregate_digest, confirmations_digest, shown
from tests.reference.roster import Member, Roster, enrolment_text, file_of, fingerprint, possesses
from tests.reference.rounds import Round
from tests.reference.secagg import invite, read_invitation

Json = dict[str, Any]
unhex = bytes.fromhex
FORMATS = {"<f4": "f", "<f8": "d", "|u1": "B"}


def canonical_bytes(given: Json) -> Json:
    """Items behind a label."""
    content = b"".join(
        canonical.data(unhex(value)) if kind == "data" else getattr(canonical, kind)(value)
        for kind, value in given["items"]
    )
    whole = canonical.label(given["label"]) + content
    return {"bytes": whole.hex(), "hash": sha256(whole).hex()}


def model(given: Json) -> Json:
    """Digest of a model."""
    arrays = [
        (a["name"], a["dtype"], a["shape"], struct.pack(f"<{len(v)}{FORMATS[a['dtype']]}", *v))
        for a in given["arrays"]
        for v in [a["values"]]
    ]
    return {"digest": messages.model_digest(arrays).hex()}


def config(given: Json) -> Json:
    """Digest of a configuration."""
    return {"digest": messages.config_digest(**given).hex()}


def key_agreement(given: Json) -> Json:
    """Public keys, derived keys, a tag."""
    names = ("enc_u", "enc_v", "mask_u", "mask_v", "server", "ctx1", "ctx2", "packed")
    enc_u, enc_v, mask_u, mask_v, server, ctx1, ctx2, packed = (unhex(given[name]) for name in names)
    u, v = given["u"], given["v"]
    shared = keys.tag_key(enc_u, keys.public(server), ctx2, u)
    found = {
        "enc_pk": keys.public(enc_u),
        "share_uv": keys.share_key(enc_u, keys.public(enc_v), ctx1, u, v),
        "share_vu": keys.share_key(enc_v, keys.public(enc_u), ctx1, v, u),
        "share_uu": keys.share_key(enc_u, keys.public(enc_u), ctx1, u, u),
        "mask_uv": keys.mask_seed(mask_v, keys.public(mask_u), ctx2, v, u),
        "tag": keys.tag(shared, packed),
    }
    return {name: value.hex() for name, value in found.items()}


def prg(given: Json) -> Json:
    """Words of a stream."""
    return {"words": keys.prg(unhex(given["seed"]), given["length"])}


def shamir(given: Json) -> Json:
    """Shares of a secret, and what the last t give."""
    polynomial = sharing.polynomial(unhex(given["secret"]), given["t"], keys.Draws(given["draws"].encode()))
    shares = {i: sharing.share_of(polynomial, i) for i in given["members"]}
    last = {i: shares[i] for i in given["members"][-given["t"] :]}
    return {"shares": [share.hex() for share in shares.values()], "joined": sharing.join(last).hex()}


def dealing(given: Json) -> Json:
    """The rows of one dealer, and how each recipient would open them."""
    draw, u, ctx1 = keys.Draws(given["draws"].encode()), given["u"], unhex(given["ctx1"])
    secrets = {int(v): unhex(secret) for v, secret in given["enc"].items()}
    b, mask = unhex(given["b"]), unhex(given["mask"])
    own, key = (sharing.polynomial(secret, given["t"], draw) for secret in (b, mask))
    rows, openings = b"", []
    for v in sorted(secrets):
        shares = sharing.share_of(own, v), sharing.share_of(key, v)
        dealt = sharing.Dealt(ctx1, u, v, *shares, draw(32))
        row = dealt.row(secrets[u], keys.public(secrets[v]))
        opened = sharing.opened_row(row, secrets[v], keys.public(secrets[u]), ctx1, u, v)
        for name in ("own", "key"):
            openings.append(opened.opening(name))
            sharing.opened_share(openings[-1], name, row[114:], ctx1, u, v)
        rows += row
    own_commitment = sharing.own_commitment(ctx1, u, b)
    return {"rows": rows.hex(), "own": own_commitment.hex(), "openings": [o.hex() for o in openings]}


def packing(given: Json) -> Json:
    """Words in planes."""
    found = {}
    for bits in given["bits"]:
        words = [word % 2**bits for word in given["words"]]
        packed = messages.pack(words, bits)
        assert messages.unpack(packed, len(words), bits) == words
        found[str(bits)] = packed.hex()
    return {"packed": found}


def parameters_of(given: Json) -> Json:
    """The numbers of each cohort; null where there is none."""

    def one(n: int, rules: Json) -> list[Any] | None:
        try:
            p = parameters.derive(n, parameters.Rules(**rules))
        except Refused:
            return None
        return [p.n, p.T, p.t, p.k, p.b, p.share, p.D_eff, p.present]

    return {"parameters": [one(n, rules) for n, rules in given["cohorts"]]}


def graph(given: Json) -> Json:
    """The order of a ring, and the neighbours of some."""
    found = parameters.derive(len(given["members"]), parameters.Rules(**given["rules"]))
    ctx1 = unhex(given["ctx1"])
    near = parameters.neighbours(given["members"], found, ctx1)
    order = parameters.ring_order(given["members"], ctx1)
    return {"order": order, "neighbours": {str(u): near[u] for u in given["of"]}}


def identity(given: Json) -> Json:
    """Key, fingerprint, proof of possession, a signature."""
    secret, label = unhex(given["secret"]), given["label"]
    key = keys.identity(secret)
    proof = Ed25519PrivateKey.from_private_bytes(secret).sign(enrolment_text(label, key))
    assert possesses(label, key, proof)
    statement = given["statement"]
    signature = keys.sign(secret, statement[0], unhex(statement[1]), statement[2], unhex(statement[3]))
    return {
        "public": key.hex(),
        "fingerprint": fingerprint(key),
        "proof": proof.hex(),
        "signature": signature.hex(),
    }


def roster_of(given: Json) -> Roster:
    """A roster as the vectors write it."""
    fields = dict(given)
    fields["members"] = tuple(
        Member(m["label"], unhex(m["key"]), date.fromisoformat(m["expires"]).toordinal(), m["rows"])
        for m in given["members"]
    )
    for name in ("server_key", "previous", "root_key"):
        fields[name] = unhex(given[name])
    for name in ("schemas", "bundles"):
        fields[name] = tuple(map(unhex, given[name]))
    for name in ("clients", "rounds", "clip", "noise", "revoked", "struck"):
        fields[name] = tuple(given[name])
    return Roster(**fields)


def roster(given: Json) -> Json:
    """A roster, its signatures and its file; accepted as the first, or after `before`."""
    shown = roster_of(given["roster"])
    signatures = {int(i): shown.sign(unhex(secret), int(i)) for i, secret in given["signers"].items()}
    if "before" in given:
        roster_of(given["before"]).accept_next(shown, signatures)
    else:
        shown.accept_first(signatures, shown.digest())
    whole = file_of(shown, signatures)
    return {"digest": shown.digest().hex(), "file": whole}


def journal(given: Json) -> Json:
    """A journal's file, line by line, and what an entry shows of it."""
    kept = Journal()
    for name, *arguments in given["events"]:
        if name == "torn":
            kept.tear(unhex(arguments[0]))
        elif name == "answered":
            run, round_, attempt, *hashes = arguments
            kept.answered(run, round_, attempt, *map(unhex, hashes))
        elif name == "peers":
            kept.peers(int(min(arguments[0])), {int(i): counter for i, counter in arguments[0].items()})
        elif name == "receipts":
            kept.receipts({int(i): unhex(digest) for i, digest in arguments[0].items()})
        elif name == "masked":
            kept.masked(*map(unhex, arguments))
        else:
            kept.signed(unhex(arguments[0]), arguments[1])
    return {
        "file": kept.content.decode("latin-1"),
        "head": kept.head,
        "counter": kept.counter,
        "site_head": kept.site_head(given["run"]).hex(),
    }


def invitation(given: Json) -> Json:
    """M0/request, read again."""
    fields = dict(given["invitation"])
    for name in ("roster", "model", "config", "server_pk", "receipt_head"):
        fields[name] = unhex(fields[name])
    shown = messages.Invitation(**fields | {"rules": parameters.Rules(**fields["rules"])})
    message = invite(shown, unhex(given["secret"]))
    assert read_invitation(message)[0] == shown
    return {"ctx0": shown.ctx0().hex(), "message": message.hex()}


def receipts(given: Json) -> Json:
    """A chain of receipts, one for each sum, as it travels; and what is said of each part of it that is shown."""
    secret, made = unhex(given["secret"]), list[Receipt]()
    for one in given["receipts"]:
        fields = {name: unhex(one[name]) for name in ("context", "roster", "model")}
        fields |= {name: one[name] for name in ("run", "round", "attempt", "epsilon")}
        signatures = {int(i): unhex(signature) for i, signature in one["confirmations"].items()}
        made.append(
            Receipt(
                **fields,
                number=len(made) + 1,
                previous=made[-1].digest() if made else bytes(32),
                survivors=tuple(one["survivors"]),
                confirmations=confirmations_digest(signatures),
                aggregate=aggregate_digest(len(one["survivors"]), one["sum"]),
            )
        )
    messages = [receipt.message(secret) for receipt in made]
    key = keys.identity(secret)

    def code(places: list[int], head: int) -> str:
        digest = made[head].digest() if head >= 0 else bytes(32)
        return code_of(shown, digest, [messages[place] for place in places], key)

    return {
        "messages": [message.hex() for message in messages],
        "digests": [receipt.digest().hex() for receipt in made],
        "codes": [code(places, head) for places, head in given["shown"]],
    }


def code_of(call: Callable[..., object], *arguments: Any) -> str:
    """The code of a refusal, or nothing."""
    try:
        call(*arguments)
    except Refused as refused:
        return refused.code
    return ""


def points(given: Json) -> Json:
    """Public keys that are refused, by the check of each sort."""
    checks = {"x25519": keys.check_key, "ed25519": keys.check_identity}
    return {
        "codes": {
            sort: [code_of(checks[sort], unhex(key)) for key in listed] for sort, listed in given.items()
        }
    }


def shares(given: Json) -> Json:
    """Shares that do not join."""
    listed = [{int(i): unhex(share) for i, share in case.items()} for case in given["cases"]]
    return {"codes": [code_of(sharing.join, case) for case in listed]}


def packed(given: Json) -> Json:
    """Packed words that are none."""
    cases = [(unhex(content), length, bits) for content, length, bits in given["cases"]]
    return {"codes": [code_of(messages.unpack, *case) for case in cases]}


def signatures(given: Json) -> Json:
    """Signatures that are not the sender's."""

    def check(key: str, signature: str, name: str, context: str, sender: int, body_hash: str) -> None:
        keys.verify(unhex(key), unhex(signature), name, unhex(context), sender, unhex(body_hash))

    return {"codes": [code_of(check, *case) for case in given["cases"]]}


def sent(given: Json) -> Json:
    """A message in an attempt: what its receiver says."""
    one = Round(given["attempt"]).until(given["name"][:2])
    name, message = given["name"], unhex(given["message"])
    try:
        if name.endswith("request"):
            return {"answer": one.deliver(name, given["to"], message).hex()}
        one.take(name, given["of"], message, unhex(given.get("words", "")))
    except Refused as refused:
        return {"code": refused.code}
    return {}


def attempt(given: Json) -> Json:
    """Everything that is sent in an attempt."""
    return Round(given["attempt"]).run()


KINDS: dict[str, Callable[[Json], Json]] = {
    "canonical": canonical_bytes,
    "model": model,
    "config": config,
    "keys": key_agreement,
    "prg": prg,
    "shamir": shamir,
    "dealing": dealing,
    "packing": packing,
    "parameters": parameters_of,
    "graph": graph,
    "identity": identity,
    "roster": roster,
    "journal": journal,
    "invitation": invitation,
    "receipts": receipts,
    "points": points,
    "shares": shares,
    "packed": packed,
    "signatures": signatures,
    "sent": sent,
    "attempt": attempt,
}
