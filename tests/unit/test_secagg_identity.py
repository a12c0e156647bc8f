"""Identities: which keys and signatures count, and which file may hold a secret."""

from __future__ import annotations

import copy
import os
import pickle
import random
from collections.abc import Callable
from hashlib import sha512
from pathlib import Path

import pytest
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    NoEncryption,
    PrivateFormat,
)
from hypothesis import given
from hypothesis import strategies as st

from tacit.errors import ProtocolError, StorageError
from tacit.secagg.identity import Identity, _signed_bytes, check_identity, check_proof, fingerprint, verify
from tests.reference.keys import verify_raw

P = 2**255 - 19
D = -121665 * pow(121666, -1, P) % P
L = 2**252 + 27742317777372353535851937790883648493
PLACE = ("M1/answer", bytes(32), 3, bytes([7]) * 32)


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.reason


def identity(seed: int = 1) -> Identity:
    return Identity.generate(random.Random(seed).randbytes)


def signature_of(key: bytes, message: bytes) -> bool:
    """Whether the library itself accepts the signature (R = identity point, S = 0) of a message."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify((1).to_bytes(32, "little") + bytes(32), message)
    except InvalidSignature:
        return False
    return True


def root(square: int) -> int | None:
    """A square root modulo P, if there is one."""
    x = pow(square, (P + 3) // 8, P)
    for candidate in (x, x * pow(2, (P - 1) // 4, P) % P):
        if candidate * candidate % P == square % P:
            return candidate
    return None


def plus(a: tuple[int, int], b: tuple[int, int]) -> tuple[int, int]:
    """RFC 8032, section 5.1.4, in affine coordinates."""
    (x1, y1), (x2, y2) = a, b
    t = D * x1 * x2 * y1 * y2 % P
    return (x1 * y2 + x2 * y1) * pow(1 + t, -1, P) % P, (y1 * y2 + x1 * x2) * pow(1 - t, -1, P) % P


def times(number: int, point: tuple[int, int]) -> tuple[int, int]:
    result = (0, 1)
    for bit in f"{number:b}":
        result = plus(result, result)
        result = plus(result, point) if bit == "1" else result
    return result


def small_order_points() -> set[tuple[int, int]]:
    """The torsion subgroup, computed: L times any point lies in it."""
    for y in range(2, 100):
        x = root((y * y - 1) * pow(D * y * y + 1, -1, P))
        if x is not None:
            point = times(L, (x, y))
            found = {times(i, point) for i in range(8)}
            if len(found) == 8:
                return found
    raise AssertionError("no point of order 8")


def encodings(x: int, y: int) -> set[bytes]:
    """Every 32 bytes that a lenient reader takes for this point, the sign of x = 0 included."""
    signs = (0, 1) if x == 0 else (x & 1,)
    return {
        (sign << 255 | spelling).to_bytes(32, "little")
        for sign in signs
        for spelling in (y, y + P)
        if spelling < 2**255
    }


SMALL = sorted({code for point in small_order_points() for code in encodings(*point)})


# ---- public keys


@pytest.mark.parametrize("key", SMALL, ids=bytes.hex)
def test_B6_an_identity_key_of_small_order_is_refused(key):
    assert reason_of(lambda: check_identity(key)) == "identity-key"
    forged = (1).to_bytes(32, "little") + bytes(32)
    for number in range(64):
        assert reason_of(lambda n=number: verify(key, forged, "M1/answer", bytes(32), n, bytes(32))) == (
            "identity-key"
        )
    assert reason_of(lambda: check_proof(key, "Clinic", forged)) == "identity-key"


def test_B6_the_library_alone_would_accept_any_message():
    """Were this to change, the check would still be needed: keys last longer than library versions."""
    assert len(SMALL) == 14
    assert all(signature_of((1).to_bytes(32, "little"), b"%d" % i) for i in range(32))
    assert any(signature_of(key, b"%d" % i) for key in SMALL[1:] for i in range(32))


@pytest.mark.parametrize(
    "key",
    [
        b"",
        bytes(31),
        identity().public + b"\0",
        *((sign << 255 | y).to_bytes(32, "little") for y in range(P, 2**255) for sign in (0, 1)),
        (2).to_bytes(32, "little"),  # no x belongs to this y
    ],
    ids=bytes.hex,
)
def test_a_key_that_is_not_the_one_spelling_of_a_point_is_refused(key):
    assert reason_of(lambda: check_identity(key)) == "identity-key"
    assert reason_of(lambda: verify(key, bytes(64), *PLACE)) == "identity-key"


def test_honest_keys_are_accepted():
    for seed in range(200):
        check_identity(identity(seed).public)


# ---- signatures


def test_a_signature_verifies_where_it_was_made():
    key = identity()
    verify(key.public, key.sign(*PLACE), *PLACE)


@pytest.mark.parametrize(
    "elsewhere",
    [
        ("M2/answer", *PLACE[1:]),
        (PLACE[0], bytes([1]) * 32, *PLACE[2:]),
        (*PLACE[:2], 4, PLACE[3]),
        (*PLACE[:3], bytes(32)),
    ],
    ids=["label", "context", "sender", "body"],
)
def test_B3_a_signature_from_another_place_is_refused(elsewhere):
    key = identity()
    assert reason_of(lambda: verify(key.public, key.sign(*PLACE), *elsewhere)) == "signature"


def test_B1_a_signature_of_another_key_and_a_changed_one_are_refused():
    key, signature = identity(), identity().sign(*PLACE)
    assert reason_of(lambda: verify(identity(2).public, signature, *PLACE)) == "signature"
    for bit in range(0, 512, 7):
        changed = bytearray(signature)
        changed[bit // 8] ^= 1 << bit % 8
        assert reason_of(lambda changed=changed: verify(key.public, bytes(changed), *PLACE)) == "signature"
    order = int.from_bytes(signature[32:], "little") + L  # the second S of RFC 8032, section 8.4
    for wrong in (b"", signature[:63], signature + b"\0", signature[:32] + order.to_bytes(32, "little")):
        assert reason_of(lambda wrong=wrong: verify(key.public, wrong, *PLACE)) == "signature"


def test_B6_all_agree_on_signatures_that_only_a_cheat_can_make():
    """Else a member could sign what the server takes and its peers refuse. Libraries and their versions differ here."""
    y = 4 * pow(5, -1, P) % P
    x = root((y * y - 1) * pow(D * y * y + 1, -1, P)) or 0
    base, small = (min(x, P - x, key=lambda x: x & 1), y), max(small_order_points() - {(0, 1)})
    secret, signed = 123456789, _signed_bytes(*PLACE)
    (key,) = encodings(*times(secret, base))
    for nonce, r, good in (
        (times(987, base), 987, True),
        (plus(times(987, base), small), 987, False),  # good only by the equation with the cofactor
        (small, 0, False),
        ((0, 1), 0, False),
    ):
        first = min(encodings(*nonce), key=lambda code: int.from_bytes(code, "little"))
        k = int.from_bytes(sha512(first + key + signed).digest(), "little")
        signature = first + ((r + k * secret) % L).to_bytes(32, "little")
        assert verify_raw(key, signature, signed) == good
        if good:
            verify(key, signature, *PLACE)
        else:
            assert reason_of(lambda s=signature: verify(key, s, *PLACE)) == "signature"


@given(st.binary(max_size=40), st.binary(max_size=70))
def test_B6_no_other_error_than_a_protocol_error_comes_out(key, signature):
    with pytest.raises(ProtocolError):
        verify(key, signature, *PLACE)


# ---- enrolment


def test_a_proof_of_possession_is_good_for_one_key_and_one_label():
    key, other = identity(), identity(2)
    check_proof(key.public, "Clinic", key.prove("Clinic"))
    for public, label, proof in (
        (key.public, "Hospital", key.prove("Clinic")),
        (other.public, "Clinic", key.prove("Clinic")),
        (key.public, "Clinic", b""),
        (key.public, "Clinic", key.sign("Clinic", b"", 0, key.public)),
    ):
        assert reason_of(lambda p=public, n=label, s=proof: check_proof(p, n, s)) == "proof"


def test_a_fingerprint_is_16_groups_of_four_and_differs_by_key():
    groups = fingerprint(identity().public).split(" ")
    assert [len(group) for group in groups] == [4] * 16 and bytes.fromhex("".join(groups))
    assert len({fingerprint(identity(seed).public) for seed in range(50)}) == 50


# ---- the secret and its file


def test_the_secret_is_not_shown_and_not_pickled():
    key = Identity.generate(lambda size: b"S" * size)
    assert (b"S" * 8).hex() not in repr(key) and "SSSS" not in repr(key) + str(vars(key))
    for leak in (pickle.dumps, copy.copy, copy.deepcopy):
        with pytest.raises(TypeError, match="must not leave"):
            leak(key)


def test_a_created_identity_is_private_and_loads_again(tmp_path: Path):
    path = tmp_path / "keys" / "identity.pem"
    old = os.umask(0)
    try:
        key = Identity.create(path)
    finally:
        os.umask(old)
    assert path.stat().st_mode & 0o777 == 0o600
    assert Identity.load(path).public == key.public
    assert Identity.create(tmp_path / "second").public != key.public


def test_an_identity_is_never_replaced(tmp_path: Path):
    path = tmp_path / "identity.pem"
    key = Identity.create(path)
    with pytest.raises(StorageError, match="exists already"):
        Identity.create(path)
    assert Identity.load(path).public == key.public


@pytest.mark.parametrize("mode", [0o644, 0o640, 0o604, 0o620, 0o601, 0o660])
def test_an_identity_that_others_can_open_is_refused(tmp_path: Path, mode: int):
    path = tmp_path / "identity.pem"
    Identity.create(path)
    path.chmod(mode)
    with pytest.raises(StorageError, match=f"mode 0{mode:o}"):
        Identity.load(path)


def test_G8_an_identity_with_windows_line_ends_is_read(tmp_path: Path):
    path = tmp_path / "identity.pem"
    key = Identity.create(path)
    path.write_bytes(path.read_bytes().replace(b"\n", b"\r\n"))
    assert Identity.load(path).public == key.public


def pem_of(key: Ed25519PrivateKey | X25519PrivateKey, password: bytes = b"") -> bytes:
    protection = BestAvailableEncryption(password) if password else NoEncryption()
    return key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, protection)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 5000,
        b"not a key",
        pem_of(X25519PrivateKey.from_private_bytes(b"S" * 32)),
        pem_of(Ed25519PrivateKey.from_private_bytes(b"S" * 32), b"password"),
        pem_of(Ed25519PrivateKey.from_private_bytes(b"S" * 32))[:80],
    ],
    ids=["empty", "zeros", "text", "other-kind", "encrypted", "cut"],
)
def test_a_file_that_is_no_identity_is_refused_and_not_quoted(tmp_path: Path, content: bytes):
    path = tmp_path / "identity.pem"
    path.write_bytes(content)
    path.chmod(0o600)
    with pytest.raises(StorageError, match="not an identity") as caught:
        Identity.load(path)
    assert caught.value.__context__ is None and str(caught.value).count("\n") == 0


def test_a_missing_file_a_link_and_a_pipe_are_refused(tmp_path: Path):
    Identity.create(tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    os.mkfifo(tmp_path / "pipe", 0o600)
    for name in ("missing", "link", "pipe"):
        with pytest.raises(StorageError):
            Identity.load(tmp_path / name)
