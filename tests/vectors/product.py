"""What the product makes of each kind of vector: `given` in, `expected` out, all bytes as hexadecimal."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import numpy as np

from tacit.encoding import config_digest
from tacit.errors import ConfigError, ProtocolError
from tacit.secagg import identity as identities
from tacit.secagg import keys, ring, shamir, sharing
from tacit.secagg.contexts import NO_HEAD, Invitation, model_digest
from tacit.secagg.encoding import Writer
from tacit.secagg.graph import Graph
from tacit.secagg.identity import Identity
from tacit.secagg.journal import FileJournal
from tacit.secagg.members import Member
from tacit.secagg.messages import SetupRequest
from tacit.secagg.prg import keystream
from tacit.secagg.receipt import (
    SHOWN,
    Receipt,
    ReceiptChain,
    aggregate_digest,
    check_shown,
    confirmations_digest,
)
from tacit.secagg.roster import Roster, RosterMember
from tacit.secagg.signed_roster import SignedRoster, check_first, check_next
from tacit.update import Aggregate
from tests.vectors.attempt import Attempt, draws, rules_of

Json = dict[str, Any]
unhex = bytes.fromhex


def identity_of(secret: str) -> Identity:
    """An identity with this secret."""
    return Identity.generate(lambda _: unhex(secret))


def canonical_bytes(given: Json) -> Json:
    """Items behind a label."""
    writer = Writer(given["label"])
    for kind, value in given["items"]:
        getattr(writer, kind)(unhex(value) if kind == "data" else value)
    return {"bytes": writer.finish().hex(), "hash": writer.hash().hex()}


def model(given: Json) -> Json:
    """Digest of a model."""
    arrays = {a["name"]: np.array(a["values"], dtype=a["dtype"]).reshape(a["shape"]) for a in given["arrays"]}
    return {"digest": model_digest(arrays).hex()}


def config(given: Json) -> Json:
    """Digest of a configuration."""
    return {"digest": config_digest(given["experiment"], given["scaling"], given["clip"]).hex()}


def key_agreement(given: Json) -> Json:
    """Public keys, derived keys, a tag."""
    names = ("enc_u", "enc_v", "mask_u", "mask_v", "server")
    enc_u, enc_v, mask_u, mask_v, server = (keys.KeyPair(unhex(given[name])) for name in names)
    ctx1, ctx2, packed = unhex(given["ctx1"]), unhex(given["ctx2"]), unhex(given["packed"])
    u, v = given["u"], given["v"]
    found: dict[str, bytes | bytearray] = {
        "enc_pk": enc_u.public,
        "share_uv": enc_v.share_key(enc_u.public, ctx1=ctx1, u=u, v=v),
        "share_vu": enc_u.share_key(enc_v.public, ctx1=ctx1, u=v, v=u),
        "share_uu": enc_u.share_key(enc_u.public, ctx1=ctx1, u=u, v=u),
        "mask_uv": mask_u.mask_seed(mask_v.public, ctx2=ctx2, u=min(u, v), v=max(u, v)),
        "tag": server.tag(enc_u.public, ctx2=ctx2, sender=u).finish(packed),
    }
    return {name: value.hex() for name, value in found.items()}


def prg(given: Json) -> Json:
    """Words of a stream."""
    stream = keystream(unhex(given["seed"]), 4 * given["length"])
    return {"words": stream.view("<u4").tolist()}


def shamir_shares(given: Json) -> Json:
    """Shares of a secret, and what the last t give."""
    points = [sharing.point_of(i) for i in given["members"]]
    shares = shamir.split(unhex(given["secret"]), points, given["t"], draws(given["draws"]))
    last = dict(list(zip(points, shares, strict=True))[-given["t"] :])
    return {"shares": [share.hex() for share in shares], "joined": shamir.join(last).hex()}


def dealing(given: Json) -> Json:
    """The rows of one dealer, and how each recipient would open them."""
    pairs = {int(v): keys.KeyPair(unhex(secret)) for v, secret in given["enc"].items()}
    u, ctx1 = given["u"], unhex(given["ctx1"])
    recipients = [(v, pairs[v].public) for v in sorted(pairs)]
    b, mask = unhex(given["b"]), unhex(given["mask"])
    made = sharing.deal(b, mask, pairs[u], recipients, ctx1, u, given["t"], draws(given["draws"]))
    openings = []
    for place, (v, _) in enumerate(recipients):
        row = made.rows[146 * place : 146 * (place + 1)]
        opened = sharing.open_row(pairs[v], pairs[u].public, ctx1, u, v, row[:114], row[114:])
        for kind in ("own", "key"):
            openings.append(opened.opening(kind))
            assert sharing.check_opening(row[114:], ctx1, u, v, kind, openings[-1])
    shown = [opening.encode().hex() for opening in openings]
    return {"rows": made.rows.hex(), "own": made.own_commitment.hex(), "openings": shown}


def packing(given: Json) -> Json:
    """Words in planes."""
    words, found = np.array(given["words"], dtype=np.uint32), {}
    for bits in given["bits"]:
        low = ring.keep_low(words.copy(), bits)
        found[str(bits)] = (packed := ring.pack(low, bits)).hex()
        assert ring.unpack(packed, bits, low.size).tolist() == low.tolist()
    return {"packed": found}


def parameters_of(given: Json) -> Json:
    """The numbers of each cohort; null where there is none."""

    def one(n: int, rules: Json) -> list[Any] | None:
        try:
            p = rules_of(rules).parameters(n)
        except ConfigError:
            return None
        numbers = [p.n, p.threshold, p.share_threshold, p.neighbours, p.bits]
        return [*numbers, p.noise_share, p.max_dropouts, p.present]

    return {"parameters": [one(n, rules) for n, rules in given["cohorts"]]}


def graph(given: Json) -> Json:
    """The order of a ring, and the neighbours of some."""
    members = given["members"]
    made = Graph.of(unhex(given["ctx1"]), members, rules_of(given["rules"]).parameters(len(members)))
    return {"order": list(made.order), "neighbours": {str(u): list(made.neighbours(u)) for u in given["of"]}}


def identity(given: Json) -> Json:
    """Key, fingerprint, proof of possession, a signature."""
    key, (label, context, sender, body_hash) = identity_of(given["secret"]), given["statement"]
    proof = key.prove(given["label"])
    identities.check_proof(key.public, given["label"], proof)
    return {
        "public": key.public.hex(),
        "fingerprint": identities.fingerprint(key.public),
        "proof": proof.hex(),
        "signature": key.sign(label, unhex(context), sender, unhex(body_hash)).hex(),
    }


def roster_of(given: Json) -> Roster:
    """A roster as the vectors write it."""
    enrolled = tuple(
        RosterMember(Member(i, m["label"], unhex(m["key"])), date.fromisoformat(m["expires"]), m["rows"])
        for i, m in enumerate(given["members"])
    )
    return Roster(
        epoch=given["epoch"],
        previous=unhex(given["previous"]),
        enrolled=enrolled,
        revoked=frozenset(given["revoked"]),
        strikes=frozenset(given["struck"]),
        server_key=unhex(given["server_key"]),
        root_key=unhex(given["root_key"]),
        n_min=given["clients"][0],
        n_max=given["clients"][1],
        max_corrupt=given["c"],
        max_dropouts=given["D"],
        model_schemas=frozenset(map(unhex, given["schemas"])),
        bundles=frozenset(map(unhex, given["bundles"])),
        clip=tuple(given["clip"]),
        noise=tuple(given["noise"]),
        rounds=tuple(given["rounds"]),
        epsilon_record=given["epsilon_record"] or None,
        epsilon_client=given["epsilon_client"] or None,
    )


def roster(given: Json) -> Json:
    """A roster, its signatures and its file; accepted as the first, or after `before`."""
    signed = SignedRoster(roster_of(given["roster"]))
    for secret in given["signers"].values():
        signed = signed.sign(identity_of(secret))
    if "before" in given:
        check_next(roster_of(given["before"]), signed)
    else:
        check_first(signed, compared=signed.roster.digest())
    whole = signed.encode()
    assert SignedRoster.decode(whole) == signed
    return {"digest": signed.roster.digest().hex(), "file": whole.decode()}


def journal(given: Json) -> Json:
    """A journal's file, line by line, and what an entry shows of it."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "journal.jsonl"
        kept = FileJournal.open(path, durable=False)
        for name, *arguments in given["events"]:
            if name == "torn":
                kept.close()
                path.write_bytes(path.read_bytes() + unhex(arguments[0]))
                kept = FileJournal.open(path, durable=False)
            elif name == "answered":
                run, number, attempt, *hashes = arguments
                kept.answered(run, number, attempt, *map(unhex, hashes))
            elif name == "peers":
                kept.see_peers({int(i): counter for i, counter in arguments[0].items()})
            elif name == "receipts":
                kept.see_receipts({int(i): unhex(digest) for i, digest in arguments[0].items()})
            elif name == "masked":
                kept.masked(*map(unhex, arguments))
            else:
                ctx2 = unhex(arguments[0])
                kept.sign(ctx2, Writer("survivors").data(ctx2).numbers(arguments[1]).hash())
        counter, site_head = kept.counter, kept.site_head(given["run"]).hex()
        kept.close()
        head = path.with_name(path.name + ".head").read_text()
        content = path.read_bytes().decode("latin-1")
    return {"file": content, "head": head, "counter": counter, "site_head": site_head}


def invitation(given: Json) -> Json:
    """M0/request, read again."""
    fields = dict(given["invitation"])
    for name in ("roster", "model", "config", "server_pk", "receipt_head"):
        fields[name] = unhex(fields[name])
    shown = Invitation(**fields | {"rules": rules_of(fields["rules"])})
    message = SetupRequest(shown).signed(identity_of(given["secret"])).encode()
    assert SetupRequest.decode(message).invitation == shown
    return {"ctx0": shown.ctx0().hex(), "message": message.hex()}


def receipts(given: Json) -> Json:
    """A chain of receipts, one for each sum, as it travels; and what is said of each part of it that is shown."""
    server, made = identity_of(given["secret"]), ReceiptChain()
    for one in given["receipts"]:
        signatures = {int(i): unhex(signature) for i, signature in one["confirmations"].items()}
        aggregate = Aggregate(np.array(one["sum"], dtype=np.int64), len(one["survivors"]))
        receipt = Receipt(
            **{name: unhex(one[name]) for name in ("context", "roster", "model")},
            **{name: one[name] for name in ("run", "round", "attempt", "epsilon")},
            number=len(made.receipts) + 1,
            previous=made.head,
            survivors=tuple(one["survivors"]),
            confirmations=confirmations_digest(signatures),
            aggregate=aggregate_digest(aggregate),
        )
        made.add(receipt.signed(server), signatures)
    messages = [receipt.encode() for receipt in made.receipts]
    assert made.shown(made.head) == messages[-SHOWN:]

    def code(places: list[int], head: int) -> str:
        digest = made.receipts[head].digest if head >= 0 else NO_HEAD
        return code_of(check_shown, digest, [messages[place] for place in places], server.public)

    return {
        "messages": [message.hex() for message in messages],
        "digests": [receipt.digest.hex() for receipt in made.receipts],
        "codes": [code(places, head) for places, head in given["shown"]],
    }


def code_of(call: Callable[..., object], *arguments: Any) -> str:
    """The code of a refusal, or nothing."""
    try:
        call(*arguments)
    except ProtocolError as error:
        return error.reason
    return ""


def points(given: Json) -> Json:
    """Public keys that are refused, by the check of each sort."""
    checks = {"x25519": keys.check_public, "ed25519": identities.check_identity}
    return {
        "codes": {
            sort: [code_of(checks[sort], unhex(key)) for key in listed] for sort, listed in given.items()
        }
    }


def shares(given: Json) -> Json:
    """Shares that do not join."""
    listed = [{int(i) + 1: unhex(share) for i, share in case.items()} for case in given["cases"]]
    return {"codes": [code_of(shamir.join, case) for case in listed]}


def packed(given: Json) -> Json:
    """Packed words that are none."""
    cases = [(unhex(content), bits, length) for content, length, bits in given["cases"]]
    return {"codes": [code_of(ring.unpack, *case) for case in cases]}


def signatures(given: Json) -> Json:
    """Signatures that are not the sender's."""

    def check(key: str, signature: str, name: str, context: str, sender: int, body_hash: str) -> None:
        identities.verify(unhex(key), unhex(signature), name, unhex(context), sender, unhex(body_hash))

    return {"codes": [code_of(check, *case) for case in given["cases"]]}


def sent(given: Json) -> Json:
    """A message in an attempt: what its receiver says."""
    one = Attempt(given["attempt"]).until(given["name"][:2])
    name, message = given["name"], unhex(given["message"])
    try:
        if name.endswith("request"):
            return {"answer": one.deliver(name, given["to"], message).hex()}
        one.take(name, message, unhex(given.get("words", "")))
    except ProtocolError as error:
        return {"code": error.reason}
    return {}


def attempt(given: Json) -> Json:
    """Everything that is sent in an attempt."""
    return Attempt(given["attempt"]).run()


KINDS: dict[str, Callable[[Json], Json]] = {
    "canonical": canonical_bytes,
    "model": model,
    "config": config,
    "keys": key_agreement,
    "prg": prg,
    "shamir": shamir_shares,
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
