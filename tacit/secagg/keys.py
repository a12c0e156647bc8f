"""Key agreement: X25519 (RFC 7748) with HKDF-SHA256 (RFC 5869), bound to a context and a pair."""

from __future__ import annotations

from typing import Final, NoReturn

from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.errors import ProtocolError
from tacit.secagg.encoding import Writer
from tacit.secagg.prg import KEY_BYTES

PUBLIC_KEY_BYTES: Final = 32
SECRET_KEY_BYTES: Final = 32

_FIELD: Final = 2**255 - 19
# The u of every point whose order divides 8: on the curve 0, 1 and two of order 8, on its twist 0 and -1.
_SMALL_ORDER: Final = frozenset(
    u.to_bytes(PUBLIC_KEY_BYTES, "little")
    for u in (
        0,
        1,
        325606250916557431795983626356110631294008115727848805560023387167927233504,
        39382357235489614581723060781553021112529911719440698176882885853963445705823,
        _FIELD - 1,
    )
)


class Tag:
    """The tag of a masked vector whose bytes come in parts: see `KeyPair.tag`."""

    def __init__(self, key: bytearray) -> None:
        self._context = Cipher(algorithms.AES(key), modes.GCM(bytes(12))).encryptor()
        self.update = self._context.authenticate_additional_data  # bytes in their order

    def __repr__(self) -> str:
        return "<Tag: secret>"

    def finish(self, rest: bytes | memoryview = b"") -> bytes:
        """16 bytes, after what is left of the vector; nothing can be added afterwards."""
        self.update(rest)
        self._context.finalize()
        return self._context.tag


class KeyPair:
    """An X25519 key pair. The secret half stays in the library's memory, which wipes it when it is freed."""

    def __init__(self, secret: bytes | bytearray) -> None:
        self._key: X25519PrivateKey | None = X25519PrivateKey.from_private_bytes(secret)
        self.public = self._key.public_key().public_bytes_raw()
        self._agreed: dict[bytes, bytearray] = {}

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

    def share_key(self, peer: bytes, *, ctx1: bytes, u: int, v: int) -> bytearray:
        """K_share(u->v), 32 bytes: the same at both ends, and good for the one row that u deals to v.

        An exchange takes most of the time, and the way there and the way back need the same one: its result is
        kept, as long as the secret half is.

        Args:
            peer: the other side's public key, checked with `check_public`.
            ctx1: salt of the derivation.
            u: roster index of the dealer.
            v: roster index of the recipient.

        Raises:
            ProtocolError: the peer's key is a point of small order, or this key has been erased.
        """
        secret = self._live()
        if peer not in self._agreed:
            self._agreed[peer] = bytearray(_exchange(secret, peer))
        key = bytearray(KEY_BYTES)
        info = Writer("share").number(u).number(v).finish()
        HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=ctx1, info=info).derive_into(self._agreed[peer], key)
        return key

    def tag(self, peer: bytes, *, ctx2: bytes, sender: int) -> Tag:
        """What binds a masked vector to its sender's signature: its GMAC (NIST SP 800-38D, section 3).

        The key is one that client and server agree on for this vector alone, so nobody between them can put another
        vector under the same tag. A hash of the vector would do the same without a key, at several times the cost
        of the mask under it (docs/decisions/0012-the-tag-of-a-vector.md).

        Args:
            peer: the other side's public key, checked with `check_public`.
            ctx2: salt of the derivation.
            sender: roster index of the client.
        """
        info, key = Writer("upload").number(sender).finish(), bytearray(KEY_BYTES)
        HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=ctx2, info=info).derive_into(
            _exchange(self._live(), peer), key
        )
        tag = Tag(key)
        erase(key)
        return tag

    def erase(self) -> None:
        """Drops the secret half and what it has agreed on; the key is of no use afterwards."""
        self._key = None
        for agreed in self._agreed.values():
            erase(agreed)
        self._agreed.clear()

    def _live(self) -> X25519PrivateKey:
        if self._key is None:
            raise ProtocolError("erased", "this key has been erased")
        return self._key


def check_public(key: bytes) -> None:
    """Refuses an X25519 public key that is not the one spelling of a point of large order.

    RFC 7748 accepts 2^255 - 19 to 2^255 - 1 and ignores the top bit, so that one point has several encodings.
    With a point of small order every exchange gives zero (its section 6.1); the library refuses that too.

    Raises:
        ProtocolError: with the reason "key" or "low-order-point".
    """
    if len(key) != PUBLIC_KEY_BYTES or int.from_bytes(key, "little") >= _FIELD:
        raise ProtocolError("key", "a public key is not in its canonical form")
    if key in _SMALL_ORDER:
        raise ProtocolError("low-order-point", "a public key is a point of small order")


def erase(secret: bytearray) -> None:
    """Overwrites a secret with zeros, in place. Best effort: Python may have made copies before."""
    secret[:] = bytes(len(secret))


def _exchange(secret: X25519PrivateKey, peer: bytes) -> bytes:
    try:
        return secret.exchange(X25519PublicKey.from_public_bytes(peer))
    except ValueError:
        raise ProtocolError("low-order-point", "a public key is a point of small order") from None
