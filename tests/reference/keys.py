"""Keys, signatures, sealing and the PRG (sections 3, 4 and 7 of `docs/protocol.md`)."""

from __future__ import annotations

import hashlib
import hmac
from functools import cache

from cryptography.exceptions import InvalidSignature, InvalidTag
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.ciphers.algorithms import AES
from cryptography.hazmat.primitives.ciphers.modes import CTR

from tests.reference.canonical import Refused, data, label, number, require, sha256, text

Q = 2**255 - 19
CURVE_D = -121665 * pow(121666, -1, Q) % Q
ZERO_NONCE = bytes(12)


def public(secret: bytes) -> bytes:
    """The public half of an X25519 secret."""
    return X25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


def exchange(secret: bytes, peer: bytes) -> bytes:
    """X25519 (RFC 7748)."""
    require(len(peer) == 32 and int.from_bytes(peer, "little") < Q, "key")
    try:
        return X25519PrivateKey.from_private_bytes(secret).exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise Refused("low-order-point") from None


@cache  # everybody looks at the same keys and signatures
def check_key(peer: bytes) -> None:
    """An X25519 key that may be used: an exchange with it does not give zero, whatever the secret is."""
    exchange(bytes(range(32)), peer)


def hkdf(secret: bytes, salt: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869) of 32 bytes: one block."""
    return hmac.digest(hmac.digest(salt, secret, "sha256"), info + b"\x01", "sha256")


def share_key(own: bytes, peer: bytes, ctx1: bytes, u: int, v: int) -> bytes:
    """K_share(u->v), from either end."""
    return hkdf(exchange(own, peer), ctx1, label("share") + number(u) + number(v))


def mask_seed(own: bytes, peer: bytes, ctx2: bytes, u: int, v: int) -> bytes:
    """s_uv, from either end."""
    return hkdf(exchange(own, peer), ctx2, label("mask") + number(min(u, v)) + number(max(u, v)))


def tag_key(own: bytes, peer: bytes, ctx2: bytes, u: int) -> bytes:
    """K_tag(u), from either end."""
    return hkdf(exchange(own, peer), ctx2, label("upload") + number(u))


def seal(key: bytes, plain: bytes, associated: bytes) -> bytes:
    """AES-256-GCM with a nonce of zeros."""
    return AESGCM(key).encrypt(ZERO_NONCE, plain, associated)


def unseal(key: bytes, sealed: bytes, associated: bytes) -> bytes:
    """What was sealed."""
    try:
        return AESGCM(key).decrypt(ZERO_NONCE, sealed, associated)
    except InvalidTag:
        raise Refused("share") from None


def prg(seed: bytes, length: int) -> list[int]:
    """The first words of 32 bits of PRG(seed)."""
    stream = Cipher(AES(seed), CTR(bytes(16))).encryptor().update(bytes(4 * length))
    return [int.from_bytes(stream[4 * i : 4 * i + 4], "little") for i in range(length)]


def tag(key: bytes, words: bytes) -> bytes:
    """The tag of packed words."""
    return seal(key, b"", words)


def identity(secret: bytes) -> bytes:
    """The public half of an Ed25519 secret."""
    return Ed25519PrivateKey.from_private_bytes(secret).public_key().public_bytes_raw()


@cache
def check_identity(key: bytes) -> None:
    """32 bytes that are a point of edwards25519 in its one spelling, and not one of small order."""
    require(is_large_point(key), "identity-key")


def is_large_point(encoded: bytes) -> bool:
    """Whether 32 bytes are such a point."""
    y = int.from_bytes(encoded, "little") % 2**255
    squared = (y * y - 1) * pow(CURVE_D * y * y + 1, -1, Q) % Q
    is_point = squared == 0 or pow(squared, (Q - 1) // 2, Q) == 1
    # Order 8: doubling gives a point of order 4, which has y = 0; so x^2 = -y^2 there.
    is_small = y in (0, 1, Q - 1) or (squared + y * y) % Q == 0
    return len(encoded) == 32 and y < Q and is_point and not is_small


def signed_text(name: str, context: bytes, sender: int, body_hash: bytes) -> bytes:
    """What a signature is over."""
    return label("signature") + text(name) + data(context) + number(sender) + data(body_hash)


def sign(secret: bytes, name: str, context: bytes, sender: int, body_hash: bytes) -> bytes:
    """Ed25519 over the signed text."""
    signed = signed_text(name, context, sender, body_hash)
    return Ed25519PrivateKey.from_private_bytes(secret).sign(signed)


@cache
def verify_raw(key: bytes, signature: bytes, signed: bytes) -> bool:
    """Whether this is an Ed25519 signature, by the equation without the cofactor, whose R is not of small order."""
    if not is_large_point(signature[:32]):
        return False
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except InvalidSignature:
        return False
    return True


def verify(key: bytes, signature: bytes, name: str, context: bytes, sender: int, body_hash: bytes) -> None:
    """Refuse what is not this signature."""
    check_identity(key)
    require(verify_raw(key, signature, signed_text(name, context, sender, body_hash)), "signature")


def hash_of(body: bytes) -> bytes:
    """body_hash of a message without its signature."""
    return sha256(body)


class Draws:
    """The randomness of the vectors: SHAKE-256 of a seed, read from the front."""

    def __init__(self, seed: bytes) -> None:
        self.seed, self.at = seed, 0

    def __call__(self, size: int) -> bytes:
        """The next bytes."""
        self.at += size
        return hashlib.shake_256(self.seed).digest(self.at)[-size:]
