"""A second, slow implementation of every byte of the preview, written from docs/protocol.md alone."""

import hashlib
import hmac
import random
import struct
from itertools import pairwise

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import Invitation, model_digest, roster_digest, text_digest
from tacit.secagg.members import Member
from tacit.secagg.parameters import Rules
from tacit.secagg.server import ServerMachine
from tacit.update import EncodedUpdate

RULES_TEXT = (
    "T = floor((n + c) / 2) + 1; t = T; k = n - 1; D_eff = min(D, n - T, n - c - 2); "
    "2^b > 2 (n C_int + 12 z C_int sqrt(n / (n - D_eff - c))); share = z C_int / sqrt(n - D_eff - c)"
)
MODEL = {"w": np.arange(6, dtype=np.float32).reshape(2, 3), "b": np.array(0.5, dtype=np.float64)}
LABELS = ["north", "ost", "süd", "west"]
VALUES = [[5, -7, 65536, 0, -65536], [1, 2, 3, 4, 5], [-1, -1, -1, -1, -1], [0, 0, 65536, 0, -65536]]


# --- the reference ---------------------------------------------------------------------------------------


def data(value):
    return struct.pack(">I", len(value)) + value


def text(value):
    return data(value.encode())


def number(value):
    return struct.pack(">Q", value)


def real(value):
    return struct.pack(">d", value)


def sha(label, body):
    return hashlib.sha256(text("tacit/1/" + label) + body).digest()


def x25519(secret, point):
    """RFC 7748, section 5, as the Montgomery ladder over Python integers."""
    p, x1 = 2**255 - 19, int.from_bytes(point, "little") % 2**255
    k = int.from_bytes(secret, "little")
    k = k - k % 8
    k = k % 2**254 + 2**254
    x2, z2, x3, z3, swap = 1, 0, x1, 1, 0
    for t in reversed(range(255)):
        bit = k >> t & 1
        if swap ^ bit:
            x2, x3, z2, z3 = x3, x2, z3, z2
        swap = bit
        a, b, c, d = x2 + z2, x2 - z2, x3 + z3, x3 - z3
        aa, bb, da, cb = a * a % p, b * b % p, d * a % p, c * b % p
        x3, z3 = (da + cb) ** 2 % p, x1 * (da - cb) ** 2 % p
        x2, z2 = aa * bb % p, (aa - bb) * (aa + 121665 * (aa - bb)) % p
    if swap:
        x2, z2 = x3, z3
    return (x2 * pow(z2, p - 2, p) % p).to_bytes(32, "little")


def hkdf(key, salt, info):
    """RFC 5869 for 32 bytes."""
    extracted = hmac.new(salt, key, hashlib.sha256).digest()
    return hmac.new(extracted, info + b"\1", hashlib.sha256).digest()


def stream(key, words):
    cipher = Cipher(algorithms.AES(key), modes.ECB()).encryptor()
    blocks = b"".join(cipher.update(i.to_bytes(16, "big")) for i in range(words // 4 + 1))
    return struct.unpack(f"<{words}I", blocks[: 4 * words])


def planes(words, bits):
    first = 16 if bits >= 16 else 8
    packed = b"".join((word % 2**first).to_bytes(first // 8, "little") for word in words)
    for bit in range(first, bits - 7, 8):
        packed += bytes(word >> bit & 255 for word in words)
    for bit in range(bits - bits % 8, bits):
        eights = (words[i : i + 8] for i in range(0, len(words), 8))
        packed += bytes(sum((word >> bit & 1) << i for i, word in enumerate(eight)) for eight in eights)
    return packed


def reference_ctx0():
    model = number(2)
    model += text("w") + text("<f4") + number(2) + number(2) + number(3) + data(struct.pack("<6f", *range(6)))
    model += text("b") + text("<f8") + number(0) + data(struct.pack("<d", 0.5))
    roster = number(4) + b"".join(number(i) + text(label) for i, label in enumerate(LABELS))
    rules = text("preview") + text(RULES_TEXT) + number(1) + number(1) + number(65536) + real(0.0)
    body = data(sha("roster", roster)) + text("run-1") + number(3) + number(2) + data(sha("model", model))
    body += data(sha("text", text("the experiment"))) + number(5) + number(4) + rules + data(b"\x22" * 32)
    return sha("ctx0", body), body


class Party:
    def __init__(self, index, source):
        self.index, self.enc_sk, self.mask_sk, self.nonce = index, source(32), source(32), source(32)
        base = (9).to_bytes(32, "little")
        self.mask_pk = x25519(self.mask_sk, base)
        self.entry = number(index) + text(LABELS[index]) + data(x25519(self.enc_sk, base))
        self.entry += data(self.mask_pk) + data(self.nonce) + number(7 * index) + data(bytes([index]) * 32)
        self.own_seed = source(32)

    def masked(self, values, peers, ctx2, bits):
        total = [x + m for x, m in zip(values, stream(self.own_seed, len(values)), strict=True)]
        for peer in peers:
            if peer.index == self.index:
                continue
            low, high = sorted((self.index, peer.index))
            info = text("tacit/1/mask") + number(low) + number(high)
            seed = hkdf(x25519(self.mask_sk, peer.mask_pk), ctx2, info)
            sign = 1 if peer.index > self.index else -1
            total = [y + sign * m for y, m in zip(total, stream(seed, len(values)), strict=True)]
        return planes([y % 2**bits for y in total], bits)


# --- the two beside each other ---------------------------------------------------------------------------


def machines():
    members = [Member(i, label) for i, label in enumerate(LABELS)]
    invitation = Invitation(
        roster=roster_digest(reversed(members)),
        run="run-1",
        round=3,
        attempt=2,
        model=model_digest(MODEL),
        config=text_digest("the experiment"),
        length=5,
        num_invited=4,
        rules=Rules(max_corrupt=1, max_dropouts=1, c_int=65536),
        receipt_head=b"\x22" * 32,
    )
    clients = [ClientMachine(member, random.Random(member.index).randbytes) for member in members]
    return invitation, clients, ServerMachine(invitation, members)


@pytest.mark.parametrize("present", [(0, 1, 2, 3), (0, 1, 3), (1, 2, 3)])
def test_A8_a_second_implementation_gives_the_same_bytes(present):
    invitation, clients, server = machines()
    parties = [Party(i, random.Random(i).randbytes) for i in present]
    ctx0, fields = reference_ctx0()
    assert invitation.ctx0() == ctx0
    assert invitation.encode() == text("tacit/1/M0/request") + fields

    for party in parties:
        answer = clients[party.index].setup(
            invitation, counter=7 * party.index, site_head=bytes([party.index]) * 32
        )
        assert answer == text("tacit/1/M0/answer") + data(ctx0) + number(party.index) + party.entry
        server.collect_setup(answer)

    n = len(present)
    threshold = (n + 1) // 2 + 1
    bits = (2 * n * 65536).bit_length()
    entries = number(n) + b"".join(party.entry for party in parties)
    numbers = b"".join(number(x) for x in (n, threshold, threshold, n - 1, bits))
    ctx1 = sha("ctx1", data(ctx0) + entries + numbers + real(0.0) + number(min(1, n - threshold, n - 3)))
    members = number(n) + b"".join(map(number, present))
    ctx2 = sha("ctx2", data(ctx1) + members)

    request = text("tacit/1/M2/request") + data(ctx0) + number(2**32 - 1) + entries + members
    assert server.mask_requests() == dict.fromkeys(present, request)
    for party in parties:
        encoded = EncodedUpdate(np.array(VALUES[party.index], dtype=np.int64), False)
        packed = party.masked(VALUES[party.index], parties, ctx2, bits)
        answer = text("tacit/1/M2/answer") + data(ctx2) + number(party.index)
        answer += number(bits) + number(5) + data(packed)
        assert clients[party.index].mask(request, encoded) == answer
        server.collect_masked(answer)

    request = text("tacit/1/M4/request") + data(ctx2) + number(2**32 - 1) + members
    assert server.unmask_requests() == dict.fromkeys(present, request)
    for party in parties:
        answer = text("tacit/1/M4/answer") + data(ctx2) + number(party.index) + data(party.own_seed)
        assert clients[party.index].unmask(request) == answer
        server.collect_unmask(answer)
    expected = [sum(column) for column in zip(*(VALUES[i] for i in present), strict=True)]
    assert server.aggregate().values.tolist() == expected


def test_the_reference_agrees_with_the_published_vectors():
    # RFC 7748, section 6.1; RFC 5869, appendix A.1, of which 32 bytes are compared.
    alice = bytes.fromhex("77076d0a7318a57d3c16c17251b26645df4c2f87ebc0992ab177fba51db92c2a")
    bob = bytes.fromhex("de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f")
    assert x25519(alice, bob).hex() == "4a5d9d5ba4ce2de1728e3bf480350f25e07e21c947d19e3376f09b3c1e161742"
    okm = hkdf(b"\x0b" * 22, bytes(range(13)), bytes(range(0xF0, 0xFA)))
    assert okm.hex() == "3cb25f25faacd57a90434f64d0362f2a2d2d0a90cf1a5a4c5db02d56ecc4c5bf"


def field_changes():
    invitation, _, _ = machines()
    for name, value in {
        "roster": bytes(32),
        "run": "run-2",
        "round": 4,
        "attempt": 1,
        "model": bytes(32),
        "config": bytes(32),
        "length": 6,
        "num_invited": 5,
        "receipt_head": bytes(32),
        "rules": Rules(1, 0, 65536),
    }.items():
        yield invitation, name, value
    for rules in (Rules(2, 1, 65536), Rules(1, 1, 65535), Rules(1, 1, 65536, noise_multiplier=1.0)):
        yield invitation, "rules", rules


def test_B13_every_field_of_an_invitation_changes_its_context():
    contexts = [invitation.__class__(**{**invitation.__dict__, name: value}).ctx0()
                for invitation, name, value in field_changes()]  # fmt: skip
    contexts.append(machines()[0].ctx0())
    assert len(set(contexts)) == len(contexts)


def test_B13_names_shapes_dtypes_order_and_bytes_change_the_digest_of_a_model():
    w, b = MODEL["w"], MODEL["b"]
    models = [
        MODEL,
        {"b": b, "w": w},
        {"v": w, "b": b},
        {"w": w.reshape(3, 2), "b": b},
        {"w": w.astype(np.float64), "b": b},
        {"w": w.view(np.int32), "b": b},
        {"w": w, "b": b.reshape(1)},
        {"w": w + 1, "b": b},
        {"w": w},
    ]
    digests = [model_digest(model) for model in models]
    assert len(set(digests)) == len(digests)
    same = {"w": np.asfortranarray(w), "b": b.astype(">f8")}
    assert model_digest(same) == digests[0]


def test_label_lengths_cannot_be_shifted_between_fields():
    rosters = [[Member(0, "ab"), Member(1, "c")], [Member(0, "a"), Member(1, "bc")], [Member(0, "abc")]]
    digests = [roster_digest(roster) for roster in rosters]
    assert all(one != other for one, other in pairwise(digests))
