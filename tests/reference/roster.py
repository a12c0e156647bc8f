"""The roster, its file and enrolment (section 10 of `docs/protocol.md`)."""

from __future__ import annotations

import json
from dataclasses import dataclass
from datetime import date

from tests.reference.canonical import ROOT, data, each, h, label, number, numbers, real, require, sha256, text
from tests.reference.keys import check_identity, sign, verify, verify_raw


@dataclass(frozen=True)
class Member:
    """One member; `expires` is a day number."""

    label: str
    key: bytes
    expires: int
    rows: int


@dataclass(frozen=True)
class Roster:
    """What the members sign."""

    members: tuple[Member, ...]
    server_key: bytes
    clients: tuple[int, int]
    c: int
    D: int
    rounds: tuple[int, int]
    clip: tuple[float, float]
    noise: tuple[float, float]
    epoch: int = 1
    previous: bytes = bytes(32)
    revoked: tuple[int, ...] = ()
    struck: tuple[int, ...] = ()
    root_key: bytes = b""
    schemas: tuple[bytes, ...] = ()
    bundles: tuple[bytes, ...] = ()
    epsilon_record: float = 0.0
    epsilon_client: float = 0.0

    def canonical(self) -> bytes:
        """What is hashed."""
        members = b"".join(
            number(i) + text(m.label) + data(m.key) + number(m.expires) + number(m.rows)
            for i, m in enumerate(self.members)
        )
        limits = each([*self.clients, self.c, self.D, *self.rounds])
        reals = (*self.clip, *self.noise, self.epsilon_record, self.epsilon_client)
        return b"".join(
            (
                label("roster"),
                number(self.epoch),
                data(self.previous),
                number(len(self.members)),
                members,
                numbers(self.revoked),
                numbers(self.struck),
                data(self.server_key),
                data(self.root_key),
                limits,
                *(number(len(d)) + b"".join(map(data, sorted(d))) for d in (self.schemas, self.bundles)),
                *map(real, reals),
            )
        )

    def digest(self) -> bytes:
        """What all agree on."""
        return sha256(self.canonical())

    def active(self) -> list[int]:
        """Members neither revoked nor struck."""
        return [i for i in range(len(self.members)) if i not in self.revoked and i not in self.struck]

    def check(self) -> None:
        """A roster that may exist."""
        keys = [m.key for m in self.members] + [self.server_key] + [self.root_key] * bool(self.root_key)
        for key in keys:
            check_identity(key)
        low, high = self.clients
        labels = [m.label for i, m in enumerate(self.members) if i not in self.revoked]
        reals = (*self.clip, *self.noise)
        sizes = [m.rows for m in self.members] + [self.epoch, *self.rounds]
        sound = (
            len(set(keys)) == len(keys)
            and (self.epoch == 1) == (self.previous == bytes(32))
            and {*self.revoked, *self.struck} <= set(range(len(self.members)))
            and len(self.members) <= 65536
            and len(set(labels)) == len(labels)
            and all(m.label.isprintable() and 1 <= len(m.label.encode()) <= 1024 for m in self.members)
            and self.c >= 1
            and low - self.D >= (low + self.c) // 2 + 1
            and low - self.D - self.c >= 2
            and low <= len(self.active())
            and low <= high <= 65536
            and 0 < reals[0] <= reals[1]
            and 0 <= reals[2] <= reals[3]
            and 1 <= self.rounds[0] <= self.rounds[1]
            and self.epsilon_record >= 0
            and self.epsilon_client >= 0
            and all(size < 2**48 for size in sizes)
        )
        require(sound, "roster")

    def sign(self, secret: bytes, signer: int) -> bytes:
        """A member's signature, or the root's."""
        return sign(secret, "roster", self.previous, signer, self.digest())

    def verify(self, signatures: dict[int, bytes], keys: dict[int, bytes]) -> None:
        """Every signature is by one of these."""
        for signer, signature in signatures.items():
            require(signer in keys, "roster-signature")
            verify(keys[signer], signature, "roster", self.previous, signer, self.digest())

    def accept_first(self, signatures: dict[int, bytes], compared: bytes) -> None:
        """The first epoch: all active members; or its root, if people have compared the digest."""
        self.check()
        require(self.epoch == 1, "roster-epoch")
        self.verify(signatures, self.signers(self.root_key))
        if self.root_key:
            require(ROOT in signatures and compared == self.digest(), "roster-signature")
        else:
            require(set(signatures) >= set(self.active()), "roster-signature")

    def signers(self, root_key: bytes) -> dict[int, bytes]:
        """Whose signatures may be under this roster."""
        return {i: m.key for i, m in enumerate(self.members)} | ({ROOT: root_key} if root_key else {})

    def accept_next(self, after: Roster, signatures: dict[int, bytes]) -> None:
        """This epoch, then `after`."""
        after.check()
        require(after.epoch == self.epoch + 1 and after.previous == self.digest(), "roster-epoch")
        before = [(m.label, m.key) for m in self.members]
        require([(m.label, m.key) for m in after.members[: len(before)]] == before, "roster")
        require(self.server_key not in [after.root_key, *(m.key for m in after.members)], "roster")
        require(set(self.revoked) <= set(after.revoked), "revoked")
        after.verify(signatures, after.signers(self.root_key))
        enough = (len(self.active()) + self.c) // 2 + 1
        if self.root_key:
            require(ROOT in signatures, "roster-signature")
        else:
            require(len(set(signatures) & set(self.active())) >= enough, "roster-signature")


def grouped(content: bytes) -> str:
    """Hexadecimal in groups of four."""
    shown = content.hex()
    return " ".join(shown[i : i + 4] for i in range(0, len(shown), 4))


def for_people(roster: Roster) -> dict[str, object]:
    """The key `roster` of the file."""
    members = [
        {
            "index": i,
            "label": m.label,
            "key": m.key.hex(),
            "expires": date.fromordinal(m.expires).isoformat(),
            "rows": m.rows,
            "revoked": i in roster.revoked,
            "struck": i in roster.struck,
        }
        for i, m in enumerate(roster.members)
    ]
    return {
        "epoch": roster.epoch,
        "previous": roster.previous.hex(),
        "members": members,
        "server_key": roster.server_key.hex(),
        "root_key": roster.root_key.hex(),
        "clients": list(roster.clients),
        "max_corrupt": roster.c,
        "max_dropouts": roster.D,
        "model_schemas": sorted(x.hex() for x in roster.schemas),
        "bundles": sorted(x.hex() for x in roster.bundles),
        "clip": list(roster.clip),
        "noise": list(roster.noise),
        "rounds": list(roster.rounds),
        "epsilon_record": roster.epsilon_record or None,
        "epsilon_client": roster.epsilon_client or None,
    }


def file_of(roster: Roster, signatures: dict[int, bytes]) -> str:
    """`roster.json`."""
    content = {
        "tacit_roster": 1,
        "digest": grouped(roster.digest()),
        "roster": for_people(roster),
        "canonical": roster.canonical().hex(),
        "signatures": {str(i): signatures[i].hex() for i in sorted(signatures)},
    }
    return json.dumps(content, indent=2, ensure_ascii=False) + "\n"


def fingerprint(key: bytes) -> str:
    """What people compare."""
    return grouped(h("identity", data(key)))


def enrolment_text(name: str, key: bytes) -> bytes:
    """What a proof of possession is over."""
    return label("enrolment") + text(name) + data(key)


def possesses(name: str, key: bytes, proof: bytes) -> bool:
    """Whether the proof of possession holds."""
    return verify_raw(key, proof, enrolment_text(name, key))
