"""H1, H2, H3: whatever comes from a peer is refused with a code, or is the one spelling of what it says."""

from __future__ import annotations

import re
from typing import Any, Final

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

from tacit.errors import ProtocolError
from tacit.secagg import ring, sharing
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import (
    Complaint,
    ConfirmAnswer,
    ConfirmRequest,
    DealAnswer,
    DealRequest,
    MaskAnswer,
    MaskRequest,
    SetupAnswer,
    SetupRequest,
    UnmaskAnswer,
    UnmaskRequest,
)
from tacit.secagg.packed_sum import PackedSum
from tacit.secagg.shamir import PRIME, join
from tests.fuzz.draw import Draw
from tests.reference import messages as reference
from tests.reference import sharing as reference_sharing
from tests.reference.canonical import Refused

# The first byte of an input says which; the order stays, so that old inputs keep their meaning.
KINDS: Final[tuple[Any, ...]] = (
    SetupRequest,
    SetupAnswer,
    DealRequest,
    DealAnswer,
    MaskRequest,
    MaskAnswer,
    Complaint,
    ConfirmRequest,
    ConfirmAnswer,
    UnmaskRequest,
    UnmaskAnswer,
)
SURVIVORS: Final = (0, 1, 2)  # what whoever reads a ConfirmAnswer knows already
CODE: Final = re.compile(r"[a-z][a-z0-9-]{0,39}")


def decoded(kind: Any, data: bytes) -> Any:
    """The message in these bytes, or None where they are refused with a code."""
    try:
        return kind.decode(data, SURVIVORS) if kind is ConfirmAnswer else kind.decode(data)
    except ProtocolError as error:
        assert CODE.fullmatch(error.reason), error.reason
        return None


def envelope(data: bytes) -> int:
    """H1: a message, and everything that its receiver looks at."""
    draw = Draw(data)
    kind, body = KINDS[draw.below(len(KINDS))], draw.rest()
    message = decoded(kind, body)
    if message is None:
        return len(body)
    assert message.encode() == body
    if hasattr(message, "statement"):
        assert len(message.statement.body_hash) == 32
    if isinstance(message, DealRequest | ConfirmRequest | UnmaskRequest):
        answers = message.answers()
        for answer in answers.values() if isinstance(answers, dict) else answers:
            assert len(answer.statement.context) == 32
    if isinstance(message, DealAnswer | MaskRequest):
        parts = [message.row(i) for i in range(message.num_rows)]
        assert b"".join(p if isinstance(p, bytes) else b"".join(p) for p in parts) == message.rows
    if isinstance(message, UnmaskAnswer):
        parts = [sharing.Opening.decode(message.opening(i)).encode() for i in range(message.num_openings)]
        assert b"".join(parts) == message.openings
    return len(body)


DEALER, RECIPIENT, CTX1 = 3, 7, bytes(range(32))
DEALER_KEY, RECIPIENT_KEY = bytes([1]) * 32, bytes([2]) * 32


def share_plaintext(data: bytes) -> int:
    """H2: what a dealer seals for a recipient, who is the only one to see whether it holds two shares."""
    draw = Draw(data)
    way, content = draw.below(4), draw.rest()
    if way == 0:
        row_of(content)
    elif way == 1:
        shares_joined(content)
    else:
        kind, size = (sharing.Opening, 97) if way == 2 else (sharing.Shares, 162)
        try:
            assert kind.decode(content).encode() == content
        except ProtocolError:
            assert len(content) != size
    return len(content)


def row_of(content: bytes) -> None:
    """98 bytes as the dealer likes them, sealed under the right key; the rest changes row and commitment."""
    plain, change = content[:98].ljust(98, b"\0"), content[98:]
    dealer, recipient = KeyPair(DEALER_KEY), KeyPair(RECIPIENT_KEY)
    key = bytes(dealer.share_key(recipient.public, ctx1=CTX1, u=DEALER, v=RECIPIENT))
    sealed = AESGCM(key).encrypt(bytes(12), plain, reference_sharing.row_text(CTX1, DEALER, RECIPIENT))
    honest = reference_sharing.Dealt(CTX1, DEALER, RECIPIENT, plain[:33], plain[33:66], plain[66:])
    row = bytearray(sealed + honest.commitment())
    for place, bits in zip(change[::2], change[1::2], strict=False):
        row[place % len(row)] ^= bits
    cut = (bytes(row[:114]), bytes(row[114:]))
    try:
        shares = sharing.open_row(recipient, dealer.public, CTX1, DEALER, RECIPIENT, *cut)
    except ProtocolError as error:
        assert error.reason == "share"
        shares = None
    assert (shares is not None) == accepted_by_reference(bytes(row), dealer.public)
    if shares is None:
        return
    assert bytes(shares.own_share + shares.key_share + shares.salt) == plain
    for name in ("own", "key"):
        opening = shares.opening(name)
        assert sharing.check_opening(cut[1], CTX1, DEALER, RECIPIENT, name, opening)
        assert int.from_bytes(opening.share) < PRIME
        assert opening.encode() == honest.opening(name)


def accepted_by_reference(row: bytes, dealer: bytes) -> bool:
    """Whether the second implementation opens the same row."""
    try:
        reference_sharing.opened_row(row, RECIPIENT_KEY, dealer, CTX1, DEALER, RECIPIENT)
    except Refused:
        return False
    return True


def shares_joined(content: bytes) -> None:
    """Shares as several recipients open them, joined by both implementations."""
    shares = {1 + i: content[33 * i : 33 * (i + 1)] for i in range(min(8, -(-len(content) // 33)))}
    try:
        secret = join(shares)
    except ProtocolError as error:
        assert error.reason == "share"
        secret = None
    try:
        expected = reference_sharing.join({i - 1: share for i, share in shares.items()}) if shares else None
    except Refused:
        expected = None
    assert secret == expected


def packed_vector(data: bytes) -> int:
    """H3: words, as the second implementation reads them."""
    draw = Draw(data)
    bits, length, content = draw.below(48), draw.number(2) % 1024, draw.rest()
    total = PackedSum(length, min(max(bits, ring.MIN_BITS), ring.MAX_BITS))
    total.restore(before := np.arange(length, dtype=np.uint32))
    before &= np.uint32(2**total.bits - 1)
    try:
        words = ring.unpack(content, bits, length)
        total.add(content)
    except ProtocolError as error:
        assert error.reason in ("bits", "vector-size", "padding")
        assert np.array_equal(total.words(), before)
        expected = None
    else:
        assert ring.pack(words, bits) == content
        assert np.array_equal(total.words(), before + words & np.uint32(2**bits - 1))
        expected = words.tolist()
    if 8 <= bits <= 32:
        try:
            assert reference.unpack(content, length, bits) == expected
        except Refused:
            assert expected is None
    return len(content)
