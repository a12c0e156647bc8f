"""Key agreement: X25519 (RFC 7748) with HKDF-SHA256 (RFC 5869), bound to a context and a pair."""

from __future__ import annotations

from functools import lru_cache
from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.errors import ProtocolError
from tacit.secagg.encoding import Writer
from tacit.secagg.prg import KEY_BYTES

PUBLIC_KEY_BYTES: Final = 32
SECRET_KEY_BYTES: Final = 32

_FIELD: Final = 2**255 - 19
_ANY_SECRET: Final = X25519PrivateKey.from_private_bytes(bytes(SECRET_KEY_BYTES))


class KeyPair:
    """An X25519 key pair. The secret half stays in the library's memory, which wipes it when it is freed."""

    def __init__(self, secret: bytes | bytearray) -> None:
        self._key: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return "<KeyPair: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("a KeyPair must not leave the process that made it")

    def secret(self) -> bytes:
        """The secret half, for a session file and nothing else."""
        return self._live().private_bytes_raw()

    def mask_seed(self, peer: bytes, *, ctx2: bytes, u: int, v: int) -> bytearray:
        """s_uv, 32 bytes: the same at both ends, and good for the one vector that `ctx2` names.

        Args:
            peer: the other side's public key, checked with `check_public`.
            ctx2: salt of the derivation.
            u: the smaller roster index of the two.
            v: the larger one.

        Raises:
            ProtocolError: the peer's key is a point of small order.
        """
        info = Writer("mask").number(u).number(v).finish()
        seed = bytearray(KEY_BYTES)
        kdf = HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=ctx2, info=info)
        kdf.derive_into(_exchange(self._live(), peer), seed)
        return seed

    def erase(self) -> None:
        """Drops the secret half; the key is of no use afterwards."""
        self._key = None

    def _live(self) -> X25519PrivateKey:
        if self._key is None:
            raise ProtocolError("erased", "this key has been erased")
        return self._key


@lru_cache(maxsize=4096)  # a simulation shows the same keys to every client of a cohort
def check_public(key: bytes) -> None:
    """Refuses an X25519 public key that is not the one spelling of a point of large order.

    RFC 7748 accepts 2^255 - 19 to 2^255 - 1 and ignores the top bit, so that one point has several encodings.
    With a point of small order every exchange gives zero (its section 6.1), which the library refuses.

    Raises:
        ProtocolError: with the reason "key" or "low-order-point".
    """
    if len(key) != PUBLIC_KEY_BYTES or int.from_bytes(key, "little") >= _FIELD:
        raise ProtocolError("key", "a public key is not in its canonical form")
    _exchange(_ANY_SECRET, key)  # any secret will do: clamped scalars are multiples of the cofactor


def erase(secret: bytearray) -> None:
    """Overwrites a secret with zeros, in place. Best effort: Python may have made copies before."""
    secret[:] = bytes(len(secret))


def _exchange(secret: X25519PrivateKey, peer: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise ProtocolError("low-order-point", "a public key is a point of small order") from None
