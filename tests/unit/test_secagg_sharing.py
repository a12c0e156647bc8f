import hashlib
import os
import pickle
import random
import struct

import pytest
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from tacit.errors import ProtocolError
from tacit.secagg import sharing
from tacit.secagg.keys import KeyPair
from tacit.secagg.shamir import PRIME, join
from tacit.secagg.sharing import Opening, Shares, check_opening, deal, open_row, own_commitment, point_of

CTX1 = bytes(range(32))
INDICES = (2, 3, 7, 10)  # of the roster; none is its own position
THRESHOLD = 3
SEED = b"\x5a" * 32
ROW = 114 + 32


def reason_of(call, *arguments, **named):
    with pytest.raises(ProtocolError) as error:
        call(*arguments, **named)
    return error.value.reason


class Cohort:
    def __init__(self, seed=1, ctx1=CTX1):
        self.source, self.ctx1 = random.Random(seed).randbytes, ctx1
        self.enc = {v: KeyPair(self.source(32)) for v in INDICES}
        self.mask = KeyPair(self.source(32))

    def deal(self, dealer=7, random_bytes=None, indices=INDICES, own_seed=SEED):
        recipients = [(v, self.enc[v].public) for v in indices]
        return deal(
            own_seed,
            self.mask.secret(),
            self.enc[dealer],
            recipients,
            self.ctx1,
            dealer,
            THRESHOLD,
            random_bytes or self.source,
        )

    def row(self, dealing, v):
        row = dealing.rows[ROW * INDICES.index(v) :][:ROW]
        return row[:114], row[114:]

    def open(self, dealing, v, dealer=7):
        return open_row(self.enc[v], self.enc[dealer].public, self.ctx1, dealer, v, *self.row(dealing, v))


# --- a second implementation, written from the design ------------------------------------------------------


def text(value):
    return struct.pack(">I", len(value)) + value.encode()


def data(value):
    return struct.pack(">I", len(value)) + value


def canonical(label, *fields):
    parts = [struct.pack(">Q", field) if isinstance(field, int) else data(field) for field in fields]
    return text("tacit/1/" + label) + b"".join(parts)


def sha(label, *fields):
    return hashlib.sha256(canonical(label, *fields)).digest()


def coefficients(source):
    drawn = []
    while len(drawn) < THRESHOLD - 1:
        value = int.from_bytes(source(33)) % 2**257
        if value < PRIME:
            drawn.append(value)
    return drawn


def test_A8_a_second_implementation_deals_the_same_bytes():
    cohort, source = Cohort(), random.Random(5).randbytes
    dealing = cohort.deal(random_bytes=random.Random(5).randbytes)
    polynomials = []
    for secret in (SEED, cohort.mask.secret()):
        highest, middle = coefficients(source)
        polynomials.append((highest, middle, int.from_bytes(secret)))
    rows = b""
    for v in INDICES:
        own, key = (((a * (v + 1) ** 2 + b * (v + 1) + c) % PRIME).to_bytes(33) for a, b, c in polynomials)
        salt = source(32)
        agreed = cohort.enc[7]._live().exchange(cohort.enc[v]._live().public_key())
        sealing = HKDF(SHA256(), 32, salt=CTX1, info=canonical("share", 7, v)).derive(agreed)
        rows += AESGCM(sealing).encrypt(bytes(12), own + key + salt, canonical("row", CTX1, 7, v))
        inner = [
            sha(f"share/{kind}", CTX1, 7, v, share, salt) for kind, share in (("own", own), ("key", key))
        ]
        rows += sha("share", CTX1, 7, v, *inner)
    assert dealing.rows == rows
    assert dealing.own_commitment == sha("own", CTX1, 7, SEED) == own_commitment(CTX1, 7, SEED)


# --- what a row is good for --------------------------------------------------------------------------------


def test_any_t_recipients_open_both_secrets_and_each_opening_matches_its_commitment():
    cohort = Cohort()
    dealing = cohort.deal()
    opened = {v: cohort.open(dealing, v) for v in INDICES}  # the dealer's own row among them
    for kind, secret in (("own", SEED), ("key", cohort.mask.secret())):
        openings = {v: shares.opening(kind) for v, shares in opened.items()}
        for v, opening in openings.items():
            commitment = cohort.row(dealing, v)[1]
            again = Opening.decode(opening.encode())
            assert again == opening
            assert check_opening(commitment, CTX1, 7, v, kind, again)
        for absent in INDICES:
            assert join({point_of(v): o.share for v, o in openings.items() if v != absent}) == secret


def test_rows_and_secrets_of_a_dealing_have_nothing_in_common():
    cohort = Cohort()
    dealings = [cohort.deal(), cohort.deal(), cohort.deal(own_seed=cohort.mask.secret())]
    shares = [cohort.open(dealing, v) for dealing in dealings for v in INDICES]
    parts = [bytes(part) for s in shares for part in (s.own_share, s.key_share, s.salt)]
    parts += [part for s in shares for part in (s.inner_own, s.inner_key)]
    assert len(set(parts)) == 5 * len(shares)  # even where both secrets are the same
    assert all(part not in dealing.rows for part in parts for dealing in dealings)


def test_an_opening_says_nothing_of_the_other_share_but_its_hash():
    cohort = Cohort()
    shares = cohort.open(cohort.deal(), 2)
    for kind, shown, hidden in (
        ("own", shares.own_share, shares.key_share),
        ("key", shares.key_share, shares.own_share),
    ):
        encoded = shares.opening(kind).encode()
        assert encoded[:33] == shown
        assert hidden[1:] not in encoded  # the first byte is nearly always zero
        assert len(encoded) == sharing.OPENING_BYTES == 97


# --- what is refused ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("position", [0, 1, 50, 97, 98, 113])
def test_F3_a_flipped_byte_of_a_row_is_detected(position):
    cohort = Cohort()
    sealed, commitment = cohort.row(cohort.deal(), 3)
    place = cohort.enc[3], cohort.enc[7].public, CTX1, 7, 3
    wrong = bytearray(sealed)
    wrong[position] ^= 1
    for bad in (bytes(wrong), sealed[:-1], sealed + b"\0", b""):
        assert reason_of(open_row, *place, bad, commitment) == "share"
    for bad in (bytes([commitment[0] ^ 1]) + commitment[1:], commitment[:-1], b""):
        assert reason_of(open_row, *place, sealed, bad) == "share"


@pytest.mark.parametrize("changed", [{2: bytes(32)}, {3: 2}, {4: 2}])
def test_B13_a_row_opens_in_its_own_context_and_pair_only(changed):
    cohort = Cohort()
    right = cohort.enc[3], cohort.enc[7].public, CTX1, 7, 3, *cohort.row(cohort.deal(), 3)
    assert open_row(*right)
    assert reason_of(open_row, *(changed.get(i, value) for i, value in enumerate(right))) == "share"


def test_a_row_opens_with_the_right_two_keys_only():
    cohort = Cohort()
    place = CTX1, 7, 3, *cohort.row(cohort.deal(), 3)
    assert reason_of(open_row, cohort.enc[2], cohort.enc[7].public, *place) == "share"
    assert reason_of(open_row, cohort.enc[3], cohort.enc[2].public, *place) == "share"
    assert reason_of(open_row, cohort.enc[3], bytes(32), *place) == "low-order-point"
    assert open_row(cohort.enc[7], cohort.enc[3].public, *place)  # who made it can read it


def test_the_row_of_another_recipient_does_not_open():
    cohort = Cohort()
    dealing = cohort.deal()
    (sealed, commitment), (other_sealed, other_commitment) = (cohort.row(dealing, v) for v in (3, 2))
    for row in ((other_sealed, other_commitment), (other_sealed, commitment), (sealed, other_commitment)):
        assert reason_of(open_row, cohort.enc[3], cohort.enc[7].public, CTX1, 7, 3, *row) == "share"


def sealed_by_hand(cohort, own, key, v=3, salt=b"\7" * 32, tag_of=CTX1):
    agreed = cohort.enc[7].share_key(cohort.enc[v].public, ctx1=CTX1, u=7, v=v)
    inner = [sha(f"share/{kind}", CTX1, 7, v, share, salt) for kind, share in (("own", own), ("key", key))]
    sealed = AESGCM(agreed).encrypt(bytes(12), own + key + salt, canonical("row", tag_of, 7, v))
    return sealed, sha("share", CTX1, 7, v, *inner)


def test_C1_a_dealer_cannot_deal_what_is_no_share():
    cohort, good, bad = Cohort(), bytes(33), PRIME.to_bytes(33)
    place = cohort.enc[3], cohort.enc[7].public, CTX1, 7, 3
    assert open_row(*place, *sealed_by_hand(cohort, good, good)).own_share == good
    for own, key in ((bad, good), (good, bad), (good, b"\xff" * 33)):
        assert reason_of(open_row, *place, *sealed_by_hand(cohort, own, key)) == "share"
    other_context = sealed_by_hand(cohort, good, good, tag_of=bytes(32))  # the key alone would open it
    assert reason_of(open_row, *place, *other_context) == "share"


@pytest.mark.parametrize("kind", ["own", "key"])
def test_C1_an_opening_that_was_tampered_with_does_not_match(kind):
    cohort = Cohort()
    dealing = cohort.deal()
    commitment, opening = cohort.row(dealing, 3)[1], cohort.open(dealing, 3).opening(kind)
    right = (commitment, CTX1, 7, 3, kind, opening)
    assert check_opening(*right)
    encoded = opening.encode()
    for position in range(97):
        wrong = bytearray(encoded)
        wrong[position] ^= 0x10
        assert not check_opening(*right[:5], Opening.decode(bytes(wrong)))
    other = cohort.open(dealing, 3).opening("key" if kind == "own" else "own")
    shifted = [
        Opening(encoded[:32], encoded[32:65], encoded[65:]),
        Opening(encoded[:33], encoded[33:64], encoded[64:]),
        Opening(encoded[:34], encoded[34:65], encoded[65:]),
        Opening(opening.other + b"\0", opening.salt, opening.share[1:]),
    ]
    for bad in (other, cohort.open(dealing, 2).opening(kind), *shifted):
        assert not check_opening(*right[:5], bad)
    for place, value in {
        0: bytes(32),
        1: bytes(32),
        2: 6,
        3: 2,
        4: other and {"own": "key", "key": "own"}[kind],
    }.items():
        assert not check_opening(*right[:place], value, *right[place + 1 :])


@pytest.mark.parametrize("size", [0, 96, 98])
def test_H2_an_opening_has_97_bytes_and_shares_162(size):
    assert reason_of(Opening.decode, bytes(size)) == "share"
    assert reason_of(Shares.decode, bytes(size)) == "encoding"
    assert reason_of(Shares.decode, bytes(161)) == "encoding"


@pytest.mark.parametrize("indices", [(3, 2, 7, 10), (2, 7, 7, 10), (2, 3, 10), (2, 3, 7, 7)])
def test_recipients_come_in_order_with_the_dealer_among_them(indices):
    with pytest.raises(ValueError, match="increasing order"):
        Cohort().deal(indices=indices)


def test_a_recipient_without_a_real_key_is_refused():
    cohort = Cohort()
    recipients = [(2, bytes(32)), *((v, cohort.enc[v].public) for v in INDICES[1:])]
    arguments = SEED, cohort.mask.secret(), cohort.enc[7], recipients, CTX1, 7, THRESHOLD, os.urandom
    assert reason_of(deal, *arguments) == "low-order-point"


# --- secrets in memory -------------------------------------------------------------------------------------


def test_erased_shares_open_nothing():
    cohort = Cohort()
    shares = cohort.open(cohort.deal(), 3)
    buffers = shares.own_share, shares.key_share, shares.salt
    assert all(any(buffer) for buffer in buffers)
    shares.erase()
    shares.erase()
    assert not any(any(buffer) for buffer in buffers)
    for kind in ("own", "key"):
        assert reason_of(shares.opening, kind) == "erased"


def test_shares_survive_a_session_file_and_nothing_else():
    cohort = Cohort()
    shares = cohort.open(cohort.deal(), 3)
    again = Shares.decode(shares.encode())
    for kind in ("own", "key"):
        assert again.opening(kind) == shares.opening(kind)
    with pytest.raises(TypeError, match="leave"):
        pickle.dumps(shares)
    with pytest.raises(TypeError, match="leave"):
        pickle.dumps(cohort.enc[3])


def test_B5_no_secret_in_a_repr():
    cohort = Cohort()
    dealing = cohort.deal()
    shares = cohort.open(dealing, 3)
    shown = repr(shares) + repr(shares.opening("own")) + str(cohort.enc[3])
    assert repr(shares) == "<Shares: secret>"
    for secret in (shares.own_share, shares.key_share, shares.salt):
        assert repr(bytes(secret)) not in shown
        assert secret.hex() not in shown


def test_a_share_key_belongs_to_one_context_pair_and_direction():
    cohort = Cohort()
    here, there = cohort.enc[2], cohort.enc[3]
    named = {"ctx1": CTX1, "u": 2, "v": 3}
    key = here.share_key(there.public, **named)
    assert key == there.share_key(here.public, **named)
    others = [{**named, "ctx1": bytes(32)}, {**named, "u": 3, "v": 2}, {**named, "v": 4}, {**named, "u": 1}]
    keys = [bytes(here.share_key(there.public, **other)) for other in others]
    keys += [
        bytes(here.share_key(cohort.enc[7].public, **named)),
        bytes(here.share_key(here.public, **named)),
    ]
    assert len({bytes(key), *keys}) == 7


def test_a_key_that_agreed_on_something_forgets_it():
    cohort = Cohort()
    pair, peer = cohort.enc[2], cohort.enc[3].public
    named = {"ctx1": CTX1, "u": 2, "v": 3}
    first = pair.share_key(peer, **named)
    assert pair.share_key(peer, **named) == first
    assert pair.share_key(peer, **named) is not first  # erasing one key leaves the next call right
    agreed = list(pair._agreed.values())
    assert any(agreed[0])
    pair.erase()
    assert not any(agreed[0])
    assert not pair._agreed
    assert reason_of(pair.share_key, peer, **named) == "erased"
