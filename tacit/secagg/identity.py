"""Who a participant is: an Ed25519 key (RFC 8032) that is made on its machine and never leaves it.

Every message of the protocol is signed over what it is, its context, its sender and its body, so that a
signature is good in one place only. `cryptography` makes signatures, and libsodium checks them in a third of the
time (docs/decisions/0020-libsodium-checks-signatures.md). What both take on trust is checked here.

Guarantees:
    No signature verifies under a point of small order, nor under a second spelling of a key.
    A secret key is not shown, not pickled, and not read from a file that other users can open.
"""

from __future__ import annotations

import os
import secrets
import stat
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import Final, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from nacl.bindings import crypto_sign_open
from nacl.exceptions import BadSignatureError

from tacit.durable import sync_folder
from tacit.errors import ProtocolError, StorageError
from tacit.secagg.encoding import Writer

IDENTITY_BYTES: Final = 32
SIGNATURE_BYTES: Final = 64

_FIELD: Final = 2**255 - 19
_CURVE: Final = -121665 * pow(121666, -1, _FIELD) % _FIELD  # d of RFC 8032, section 5.1
_ORDER_8: Final = 0x5FC536D880238B13933C6D305ACDFD5F098EFF289F4C345B027B2C28F95E826
# y of the 8 points whose order divides 8: two of order 4, the identity, one of order 2, four of order 8.
_SMALL_ORDER: Final = frozenset({0, 1, _FIELD - 1, _ORDER_8, _FIELD - _ORDER_8})
_MAX_FILE: Final = 4096


class Identity:
    """An Ed25519 key pair. The secret half stays in the library's memory, which wipes it when it is freed."""

    def __init__(self, key: Ed25519PrivateKey) -> None:
        self._key = key
        self.public = key.public_key().public_bytes_raw()

    def __repr__(self) -> str:
        return f"<Identity {self.public.hex()}: secret>"

    def __reduce__(self) -> NoReturn:
        raise TypeError("an Identity must not leave the process that opened it")

    @classmethod
    def generate(cls, random_bytes: Callable[[int], bytes]) -> Identity:
        """A new identity.

        Args:
            random_bytes: source of the secret; `secrets.token_bytes` outside tests.
        """
        return cls(Ed25519PrivateKey.from_private_bytes(random_bytes(32)))

    @classmethod
    def create(cls, path: Path, random_bytes: Callable[[int], bytes] = secrets.token_bytes) -> Identity:
        """A new identity in a new file, PEM (RFC 8410), mode 0600; a file that is there is never replaced.

        Raises:
            StorageError: the file exists, or cannot be written.
        """
        identity = cls.generate(random_bytes)
        create_private(path, identity._key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
        return identity

    @classmethod
    def load(cls, path: Path) -> Identity:
        """The identity in a file.

        Raises:
            StorageError: cannot be read, is open to other users, or is no identity.
        """
        pem = read_private(path)
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError, UnsupportedAlgorithm):  # the library's own text may quote the file
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise StorageError(f"{path}: not an identity: no unencrypted Ed25519 key in PEM form")
        return cls(key)

    def sign(self, label: str, context: bytes, sender: int, body_hash: bytes) -> bytes:
        """A signature of 64 bytes.

        Args:
            label: what the body is, such as "M1/answer".
            context: ctx0, ctx1 or ctx2, 32 bytes.
            sender: roster index, or `SERVER`.
            body_hash: SHA-256 of the body, 32 bytes.
        """
        return self._key.sign(_signed_bytes(label, context, sender, body_hash))

    def prove(self, label: str) -> bytes:
        """Proof of possession for enrolment under a label, 64 bytes: nobody can enrol another's key."""
        return self._key.sign(_enrolment_bytes(label, self.public))


@lru_cache(maxsize=4096)
def check_identity(public: bytes) -> None:
    """Refuses an Ed25519 public key that is not the one spelling of a point of large order.

    Under the identity point `cryptography` accepts one signature for every message; under the other points of
    small order, for one message in 2, 4 or 8. It also reads y and y - (2^255 - 19) as the same key (Chalkias,
    Garillot and Nikolaenko, "Taming the many EdDSAs", SSR 2020, describe both).

    Raises:
        ProtocolError: with the reason "identity-key".
    """
    y = int.from_bytes(public, "little") & (2**255 - 1)  # the top bit is the sign of x
    if len(public) != IDENTITY_BYTES or y >= _FIELD:
        raise ProtocolError("identity-key", "an identity key is not in its canonical form")
    if y in _SMALL_ORDER:
        raise ProtocolError("identity-key", "an identity key is a point of small order")
    # RFC 8032, section 5.1.3: x^2 = (y^2 - 1) / (d y^2 + 1), whose denominator is never zero.
    square = (y * y - 1) * pow(_CURVE * y * y + 1, -1, _FIELD)
    if pow(square, (_FIELD - 1) // 2, _FIELD) != 1:
        raise ProtocolError("identity-key", "an identity key is no point of the curve")


def verify(
    public: bytes, signature: bytes, label: str, context: bytes, sender: int, body_hash: bytes
) -> None:
    """Checks a signature that `Identity.sign` made.

    Args:
        public: the sender's key as the roster has it.
        signature: 64 bytes.
        label, context, sender, body_hash: as in `Identity.sign`, from what the verifier holds itself.

    Raises:
        ProtocolError: "signature", or "identity-key" if nothing may be verified under this key.
    """
    try:
        _check_signature(public, signature, _signed_bytes(label, context, sender, body_hash))
    except BadSignatureError:
        raise ProtocolError("signature", f"the signature of member {sender} under a {label}") from None


def check_proof(public: bytes, label: str, proof: bytes) -> None:
    """Checks that whoever enrols `public` under `label` holds its secret half.

    Raises:
        ProtocolError: "proof", or "identity-key".
    """
    try:
        _check_signature(public, proof, _enrolment_bytes(label, public))
    except BadSignatureError:
        raise ProtocolError("proof", f"{label!r} has not shown that it holds this key") from None


def fingerprint(public: bytes) -> str:
    """What people compare over another channel: 64 hexadecimal digits of SHA-256 in groups of four."""
    return readable(Writer("identity").data(public).hash())


def create_private(path: Path, data: bytes) -> None:
    """Writes a new file of mode 0600, durably; a file that is there is never replaced.

    Raises:
        StorageError: the file exists, or cannot be written.
    """
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        with open(os.open(path, flags, 0o600), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        sync_folder(path.parent)  # without it the name of a new file may be gone after a crash
    except FileExistsError:
        raise StorageError(f"{path}: exists already; a key is not replaced") from None
    except OSError as error:
        raise StorageError(f"{path}: cannot be written: {error.strerror or error}") from None


def read_private(path: Path, most: int = _MAX_FILE) -> bytes:
    """Up to `most` bytes, -1 = all, of a regular file that no other user can open.

    Raises:
        StorageError: cannot be read, is no regular file, or is open to other users.
    """
    try:
        # O_NONBLOCK: opening a pipe must not wait for its writer.
        descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with open(descriptor, "rb") as file:
            status = os.fstat(descriptor)
            if not stat.S_ISREG(status.st_mode):
                raise StorageError(f"{path}: not a regular file")
            if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
                raise StorageError(
                    f"{path}: mode {mode:04o} lets other users in; if nobody has read it, run: chmod 600 '{path}'"
                )
            return file.read(most)
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None


def check_private_folder(path: Path) -> None:
    """Refuses a folder that other users can look into.

    Raises:
        StorageError: it is, or it is missing, or no folder.
    """
    try:
        status = path.stat()
    except OSError as error:
        raise StorageError(f"{path}: cannot be read: {error.strerror or error}") from None
    if not stat.S_ISDIR(status.st_mode):
        raise StorageError(f"{path}: not a folder")
    if (mode := stat.S_IMODE(status.st_mode)) & 0o077:
        raise StorageError(f"{path}: mode {mode:04o} lets other users in; run: chmod 700 '{path}'")


def readable(digest: bytes) -> str:
    """A hash in groups of four hexadecimal digits."""
    text = digest.hex()
    return " ".join(text[i : i + 4] for i in range(0, len(text), 4))


@lru_cache(maxsize=4096)  # a simulation shows the same good signature to every client; a bad one is not kept
def _check_signature(public: bytes, signature: bytes, signed: bytes) -> None:
    check_identity(public)
    if len(signature) != SIGNATURE_BYTES:  # else bytes of one field could be read as those of the other
        raise BadSignatureError
    crypto_sign_open(signature + signed, public)


def _signed_bytes(label: str, context: bytes, sender: int, body_hash: bytes) -> bytes:
    return Writer("signature").text(label).data(context).number(sender).data(body_hash).finish()


def _enrolment_bytes(label: str, public: bytes) -> bytes:
    return Writer("enrolment").text(label).data(public).finish()
