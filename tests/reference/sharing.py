"""Shamir's shares, rows, commitments and openings (section 5 of `docs/protocol.md`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from tests.reference.canonical import data, h, label, number, require
from tests.reference.keys import seal, share_key, unseal

P = 2**256 + 297
SHARE, ROW, OPENING = 33, 146, 97
Random = Callable[[int], bytes]


def coefficient(draw: Random) -> int:
    """One uniform coefficient."""
    while True:
        value = int.from_bytes(draw(33), "big") % 2**257
        if value < P:
            return value


def polynomial(secret: bytes, t: int, draw: Random) -> list[int]:
    """Coefficients, that of the highest degree first, the secret last."""
    return [coefficient(draw) for _ in range(t - 1)] + [int.from_bytes(secret, "big")]


def share_of(polynomial: list[int], member: int) -> bytes:
    """The share of a member, its value at index + 1."""
    x = member + 1
    value = 0
    for term in polynomial:
        value = (value * x + term) % P
    return value.to_bytes(SHARE, "big")


def value_of(share: bytes) -> int:
    """A share as a number below p."""
    require(len(share) == SHARE and int.from_bytes(share, "big") < P, "share")
    return int.from_bytes(share, "big")


def join(shares: dict[int, bytes]) -> bytes:
    """The secret of exactly t shares: Lagrange at 0."""
    total = 0
    for i, share in shares.items():
        product = value_of(share)
        for j in shares:
            if j != i:
                product = product * (j + 1) * pow(j - i, -1, P) % P
        total = (total + product) % P
    require(total < 2**256, "share")
    return total.to_bytes(32, "big")


def inner(name: str, ctx1: bytes, u: int, v: int, share: bytes, salt: bytes) -> bytes:
    """inner_own (name "own") or inner_key (name "key")."""
    return h("share/" + name, data(ctx1), number(u), number(v), data(share), data(salt))


def commitment(ctx1: bytes, u: int, v: int, own: bytes, key: bytes) -> bytes:
    """The commitment of two inner hashes."""
    return h("share", data(ctx1), number(u), number(v), data(own), data(key))


def own_commitment(ctx1: bytes, u: int, b: bytes) -> bytes:
    """The commitment to b_u."""
    return h("own", data(ctx1), number(u), data(b))


def row_text(ctx1: bytes, u: int, v: int) -> bytes:
    """Associated data of a row."""
    return label("row") + data(ctx1) + number(u) + number(v)


@dataclass(frozen=True)
class Dealt:
    """What dealer u gave to v."""

    ctx1: bytes
    u: int
    v: int
    own: bytes
    key: bytes
    salt: bytes

    def inner(self, name: str) -> bytes:
        """One of the two inner hashes."""
        return inner(name, self.ctx1, self.u, self.v, self.own if name == "own" else self.key, self.salt)

    def commitment(self) -> bytes:
        """Over both."""
        return commitment(self.ctx1, self.u, self.v, self.inner("own"), self.inner("key"))

    def row(self, secret: bytes, peer: bytes) -> bytes:
        """Sealed and committed to."""
        key = share_key(secret, peer, self.ctx1, self.u, self.v)
        sealed = seal(key, self.own + self.key + self.salt, row_text(self.ctx1, self.u, self.v))
        return sealed + self.commitment()

    def opening(self, name: str) -> bytes:
        """Shows one share and the hash of the other."""
        if name == "own":
            return self.own + self.salt + self.inner("key")
        return self.key + self.salt + self.inner("own")


def opened_row(row: bytes, secret: bytes, peer: bytes, ctx1: bytes, u: int, v: int) -> Dealt:
    """The row that u dealt to v, as v reads it."""
    require(len(row) == ROW, "rows")
    plain = unseal(share_key(secret, peer, ctx1, u, v), row[:114], row_text(ctx1, u, v))
    dealt = Dealt(ctx1, u, v, plain[:33], plain[33:66], plain[66:])
    require(len(plain) == 98 and dealt.commitment() == row[114:], "share")
    value_of(dealt.own), value_of(dealt.key)
    return dealt


def opened_share(opening: bytes, name: str, committed: bytes, ctx1: bytes, u: int, v: int) -> bytes:
    """The share of an opening that matches its commitment."""
    require(len(opening) == OPENING, "openings")
    share, salt, other = opening[:33], opening[33:65], opening[65:]
    shown = inner(name, ctx1, u, v, share, salt)
    pair = (shown, other) if name == "own" else (other, shown)
    require(commitment(ctx1, u, v, *pair) == committed, "share")
    value_of(share)
    return share
