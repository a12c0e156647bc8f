"""A federation's kits as the commands leave them, without the commands: every key made, every request collected."""

import os
from collections.abc import Mapping
from pathlib import Path

import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)

from server.epochs import add_signatures, collect, proposal, propose
from server.provisioning import CoordinatorKit, provision
from tacit.federation import EnrolmentRequest, Invitation
from tacit.secagg.identity import Identity
from tacit.secagg.signed_roster import RosterFile, SignedRoster


def enrolled(
    out: Path,
    rows: Mapping[str, int],
    *,
    address: str = "localhost:9443",
    rules: Mapping[str, object] | None = None,
) -> CoordinatorKit:
    """Kits of a coordinator and of sites with so many rows, up to a roster that nobody has signed."""
    file = out / "federation.toml"
    out.mkdir(parents=True, exist_ok=True)
    sites = {"name": "clinics", "address": address, "sites": list(rows), "rules": dict(rules or {})}
    file.write_text(tomli_w.dumps(sites))
    kit, _ = provision(file, out / "kits")
    requests = []
    for label, number in rows.items():
        folder = out / "kits" / label
        identity, key = Identity.create(folder / "identity.key"), ec.generate_private_key(ec.SECP384R1())
        secret = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
        with open(os.open(folder / "node.key", os.O_CREAT | os.O_WRONLY, 0o600), "wb") as opened:
            opened.write(secret)
        public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
        invitation = Invitation.load(folder / "federation.toml")
        request = EnrolmentRequest.make(invitation, identity, public, number)
        (folder / "request.json").write_bytes(request.encode())
        requests.append(folder / "request.json")
    collect(kit, requests)
    return kit


def signed(kit: CoordinatorKit, *labels: str) -> SignedRoster:
    """The newest epoch, signed by these members; by all without any."""
    newest = proposal(kit)
    assert newest is not None
    for member in newest.roster.members:
        if member.index in newest.roster.active and member.label in (labels or [member.label]):
            newest = newest.sign(Identity.load(kit.folder.parent / member.label / "identity.key"))
    return add_signatures(kit, newest)


def accepted(kit: CoordinatorKit) -> None:
    """All sites take the newest epoch, which is complete."""
    newest = proposal(kit)
    assert newest is not None
    for index in newest.roster.active:
        folder = kit.folder.parent / newest.roster.members[index].label
        own = Identity.load(folder / "identity.key").public
        with RosterFile.open(folder / "roster.jsonl") as file:
            file.accept(newest, own)


def revoked(kit: CoordinatorKit, label: str) -> None:
    """The next epoch, without a member, signed by all others."""
    propose(kit, revoke=[label])
    signed(kit)
