"""Rows of shares: what a dealer u seals for each recipient v, and how a share is opened against its commitment.

A row holds a share of the dealer's own seed ("own"), one of its mask key ("key") and a salt. The commitment hashes
two inner hashes, one for each share, so that either can be opened alone and the other stays closed:

    inner_own  = H("share/own" | ctx1 | u | v | own share | salt)
    inner_key  = H("share/key" | ctx1 | u | v | key share | salt)
    commitment = H("share" | ctx1 | u | v | inner_own | inner_key)
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from struct import Struct
from typing import Final, Literal, NoReturn

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.errors import ProtocolError
from tacit.secagg.encoding import HASH_BYTES, Writer
from tacit.secagg.keys import KeyPair, erase
from tacit.secagg.shamir import SHARE_BYTES, check_share, split

Kind = Literal["own", "key"]

SALT_BYTES: Final = 32
SEALED_BYTES: Final = 2 * SHARE_BYTES + SALT_BYTES + 16  # the last are the tag of AES-GCM
COMMITMENT_BYTES: Final = HASH_BYTES
OPENING_BYTES: Final = SHARE_BYTES + SALT_BYTES + HASH_BYTES

_PLAIN_BYTES: Final = SEALED_BYTES - 16
_NONCE: Final = bytes(12)  # a key seals one row
_LABELS: Final = {name: Writer(name).finish() for name in ("row", "share", "share/own", "share/key")}
_PAIR: Final = Struct(">QQ")


@dataclass(frozen=True)
class Dealing:
    """What a dealer sends; nothing in it is secret.

    Attributes:
        rows: for each recipient in their order 114 sealed bytes and the commitment, 32 bytes.
        own_commitment: to the dealer's own seed, 32 bytes.
    """

    rows: bytes
    own_commitment: bytes


@dataclass(frozen=True, repr=False)
class Opening:
    """One share of a row, shown to the server.

    Attributes:
        share: 33 bytes.
        salt: 32 bytes.
        other: inner hash of the share that stays closed, 32 bytes.
    """

    share: bytes
    salt: bytes
    other: bytes

    def encode(self) -> bytes:
        """The three fields, 97 bytes."""
        return self.share + self.salt + self.other

    @classmethod
    def decode(cls, data: bytes) -> Opening:
        """The reverse of `encode`.

        Raises:
            ProtocolError: these are not 97 bytes.
        """
        if len(data) != OPENING_BYTES:
            raise ProtocolError("share", f"an opening has {OPENING_BYTES} bytes")
        return cls(data[:SHARE_BYTES], data[SHARE_BYTES:-HASH_BYTES], data[-HASH_BYTES:])


class Shares:
    """What a row held, at its recipient.

    The salt is told with the first opening. The closed share stays hidden all the same: nobody can guess its 256 bits.

    Attributes:
        own_share: of the dealer's own seed, 33 bytes.
        key_share: of its mask key, 33 bytes.
        salt: 32 bytes.
        inner_own: inner hash of `own_share`, 32 bytes.
        inner_key: that of `key_share`.
    """

    __slots__ = ("inner_key", "inner_own", "key_share", "own_share", "salt")

    def __init__(self, plain: bytes | bytearray, inner_own: bytes, inner_key: bytes) -> None:
        """Copies the 98 bytes of a row into buffers of its own."""
        self.own_share = bytearray(plain[:SHARE_BYTES])
        self.key_share = bytearray(plain[SHARE_BYTES:-SALT_BYTES])
        self.salt = bytearray(plain[-SALT_BYTES:])
        self.inner_own, self.inner_key = inner_own, inner_key

    def __repr__(self) -> str:
        return "<Shares: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("shares must not leave the process that opened them")

    def opening(self, kind: Kind) -> Opening:
        """The share of the dealer's own seed ("own") or of its mask key ("key"). Never give away both.

        Raises:
            ProtocolError: the shares have been erased.
        """
        if not self.salt:
            raise ProtocolError("erased", "these shares have been erased")
        share, other = (self.own_share, self.inner_key) if kind == "own" else (self.key_share, self.inner_own)
        return Opening(bytes(share), bytes(self.salt), other)

    def erase(self) -> None:
        """Overwrites both shares and the salt; nothing can be opened afterwards."""
        for secret in (self.own_share, self.key_share, self.salt):
            erase(secret)
        self.salt = bytearray()

    def encode(self) -> bytes:
        """All of it, for a session file and nothing else: 162 bytes."""
        return bytes(self.own_share + self.key_share + self.salt) + self.inner_own + self.inner_key

    @classmethod
    def decode(cls, data: bytes) -> Shares:
        """The reverse of `encode`.

        Raises:
            ProtocolError: these are not 162 bytes.
        """
        if len(data) != _PLAIN_BYTES + 2 * HASH_BYTES:
            raise ProtocolError("encoding", "shares are cut short")
        return cls(data[:_PLAIN_BYTES], data[_PLAIN_BYTES:-HASH_BYTES], data[-HASH_BYTES:])


def deal(
    own_seed: bytes | bytearray,
    mask_secret: bytes | bytearray,
    enc: KeyPair,
    recipients: Sequence[tuple[int, bytes]],
    ctx1: bytes,
    u: int,
    threshold: int,
    random_bytes: Callable[[int], bytes],
) -> Dealing:
    """Shares the seed of the own mask and the mask key among the recipients.

    To be called once for a ctx1: the keys that seal the rows follow from it, and each may seal one message only.

    Args:
        own_seed: b_u, 32 bytes.
        mask_secret: secret half of the mask key, 32 bytes.
        enc: the dealer's key for sealing.
        recipients: roster index and public sealing key of each, in increasing order, the dealer among them.
        ctx1: context of the clients that sent keys.
        u: roster index of the dealer.
        threshold: t, shares that open a secret.
        random_bytes: gives that many random bytes. Drawn in this order: coefficients for the seed, those for the
            mask key, then the salts.

    Raises:
        ProtocolError: a recipient's key is a point of small order.
    """
    indices = [v for v, _ in recipients]
    if indices != sorted(set(indices)) or u not in indices:
        raise ValueError("recipients come in increasing order, the dealer among them")
    points = [point_of(v) for v in indices]
    own_shares = split(own_seed, points, threshold, random_bytes)
    key_shares = split(mask_secret, points, threshold, random_bytes)
    rows = []
    for (v, enc_pk), own_share, key_share in zip(recipients, own_shares, key_shares, strict=True):
        shares = _with_hashes(own_share + key_share + random_bytes(SALT_BYTES), ctx1, u, v)
        key = enc.share_key(enc_pk, ctx1=ctx1, u=u, v=v)
        plain = shares.own_share + shares.key_share + shares.salt
        rows += [AESGCM(key).encrypt(_NONCE, plain, _fields("row", ctx1, u, v))]
        rows += [_commitment(shares.inner_own, shares.inner_key, ctx1, u, v)]
        shares.erase()
        erase(plain)
        erase(key)
    return Dealing(b"".join(rows), own_commitment(ctx1, u, own_seed))


def open_row(
    enc: KeyPair, dealer_enc_pk: bytes, ctx1: bytes, u: int, v: int, sealed: bytes, commitment: bytes
) -> Shares:
    """What `u` has dealt to `v`, checked against its commitment.

    Raises:
        ProtocolError: with the reason "share": it does not open under this context and pair, does not match the
            commitment, or holds what is no share.
    """
    if len(sealed) != SEALED_BYTES:
        raise ProtocolError("share", f"a sealed row has {SEALED_BYTES} bytes")
    key, plain = enc.share_key(dealer_enc_pk, ctx1=ctx1, u=u, v=v), bytearray(_PLAIN_BYTES)
    try:
        AESGCM(key).decrypt_into(_NONCE, sealed, _fields("row", ctx1, u, v), plain)
    except InvalidTag:
        raise ProtocolError("share", "a row does not open") from None
    finally:
        erase(key)
    shares = _with_hashes(plain, ctx1, u, v)
    erase(plain)
    try:
        if _commitment(shares.inner_own, shares.inner_key, ctx1, u, v) != commitment:
            raise ProtocolError("share", "a row does not match its commitment")
        check_share(shares.own_share)
        check_share(shares.key_share)
    except ProtocolError:
        shares.erase()
        raise
    return shares


def check_opening(commitment: bytes, ctx1: bytes, u: int, v: int, kind: Kind, opening: Opening) -> bool:
    """Whether this is the share of that kind which `u` committed to for `v`."""
    shown = _hash(f"share/{kind}", ctx1, u, v, opening.share, opening.salt)
    own, key = (shown, opening.other) if kind == "own" else (opening.other, shown)
    return _commitment(own, key, ctx1, u, v) == commitment


def own_commitment(ctx1: bytes, u: int, seed: bytes | bytearray) -> bytes:
    """What the dealer's own seed is checked against once it has been joined."""
    return Writer("own").data(ctx1).number(u).data(seed).hash()


def point_of(index: int) -> int:
    """Where a member's shares are evaluated: never at 0, where the secret is."""
    return index + 1


def _with_hashes(plain: bytes | bytearray, ctx1: bytes, u: int, v: int) -> Shares:
    shares = Shares(plain, b"", b"")
    shares.inner_own = _hash("share/own", ctx1, u, v, shares.own_share, shares.salt)
    shares.inner_key = _hash("share/key", ctx1, u, v, shares.key_share, shares.salt)
    return shares


def _commitment(inner_own: bytes, inner_key: bytes, ctx1: bytes, u: int, v: int) -> bytes:
    return _hash("share", ctx1, u, v, inner_own, inner_key)


def _hash(label: str, ctx1: bytes, u: int, v: int, *values: bytes | bytearray) -> bytes:
    return sha256(_fields(label, ctx1, u, v, *values)).digest()


# There are four of these for each row, so they do what a `Writer` does in a third of its time.
def _fields(label: str, ctx1: bytes, u: int, v: int, *values: bytes | bytearray) -> bytes:
    return b"".join([_LABELS[label], _data(ctx1), _PAIR.pack(u, v), *map(_data, values)])


def _data(value: bytes | bytearray) -> bytes:
    return len(value).to_bytes(4) + value
