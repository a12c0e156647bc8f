"""Any bytes, at every decoder and at whole machines: refused with a reason, or the one spelling of a message."""

import hashlib
import struct

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tacit.errors import ProtocolError, Refused, StorageError
from tacit.secagg import ring
from tacit.secagg.client_state import ClientState
from tacit.secagg.contexts import NO_HEAD, Invitation
from tacit.secagg.encoding import Reader, Writer
from tacit.secagg.members import SERVER, Entry
from tacit.secagg.messages import (
    ROW_BYTES,
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
from tacit.secagg.parameters import Rules
from tacit.secagg.sharing import OPENING_BYTES, SEALED_BYTES, Opening, Shares
from tests.unit.secagg_round import Round

hashes = st.binary(min_size=32, max_size=32)
tags = st.binary(min_size=16, max_size=16)
signatures = st.binary(min_size=64, max_size=64)
numbers = st.integers(0, 2**64 - 1)
indices = st.integers(0, SERVER - 1)
labels = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)
sets = st.sets(numbers, max_size=8).map(lambda members: tuple(sorted(members)))
entry = st.builds(Entry, indices, hashes, hashes, hashes, numbers, hashes)
entry_lists = st.lists(entry, max_size=5, unique_by=lambda e: e.index).map(
    lambda entries: tuple(sorted(entries, key=lambda e: e.index))
)
rules = st.builds(
    Rules, st.integers(1, 99), st.integers(0, 99), st.integers(1, 2**24), st.floats(0, 1e6, allow_nan=False)
)


def whole(size):
    return (
        st.binary(max_size=3 * size)
        .map(lambda data: data * (size // (len(data) or size) + 1))
        .map(lambda data: data[: len(data) // size * size])
    )


def listed(*columns):
    """Rows of an index and other fields, by increasing index."""
    return st.lists(st.tuples(numbers, *columns), max_size=6, unique_by=lambda row: row[0]).map(
        lambda rows: tuple(sorted(rows))
    )


invitation = st.builds(
    Invitation, hashes, labels, numbers, numbers, hashes, hashes, numbers, numbers, rules, hashes, hashes
)
MESSAGES = {
    SetupRequest: st.builds(SetupRequest, invitation, signatures),
    SetupAnswer: st.builds(SetupAnswer, hashes, entry, signatures),
    DealRequest: st.builds(
        lambda context, entries, signature: DealRequest(context, entries, (signature,) * len(entries)),
        hashes,
        entry_lists,
        signatures,
    ),
    DealAnswer: st.builds(DealAnswer, hashes, indices, whole(ROW_BYTES), hashes, signatures),
    MaskRequest: st.builds(MaskRequest, hashes, sets, whole(ROW_BYTES)),
    MaskAnswer: st.builds(MaskAnswer, hashes, indices, tags, signatures),
    Complaint: st.builds(Complaint, hashes, indices, numbers, signatures),
    ConfirmRequest: st.builds(ConfirmRequest, hashes, sets, listed(tags, signatures)),
    ConfirmAnswer: st.builds(ConfirmAnswer, hashes, indices, st.just((1, 2)), signatures),
    UnmaskRequest: st.builds(UnmaskRequest, hashes, sets, listed(signatures)),
    UnmaskAnswer: st.builds(UnmaskAnswer, hashes, indices, whole(OPENING_BYTES), signatures),
}
messages = st.one_of(*MESSAGES.values())


def decode(kind, data):
    return kind.decode(data, (1, 2)) if kind is ConfirmAnswer else kind.decode(data)


def label_of(kind):
    return {
        SetupRequest: "M0/request",
        DealRequest: "M1/request",
        MaskRequest: "M2/request",
        ConfirmRequest: "M3/request",
        UnmaskRequest: "M4/request",
    }.get(kind) or kind.LABEL


@given(messages)
def test_H10_decoding_gives_the_message_back(message):
    assert decode(type(message), message.encode()) == message


@given(messages, st.data())
def test_H10_no_other_bytes_mean_the_same_message(message, data):
    """Changed, cut or lengthened bytes are refused, or are the one spelling of another message."""
    encoded = bytearray(message.encode())
    place = data.draw(st.integers(0, len(encoded) - 1))
    how = data.draw(st.sampled_from(["change", "cut", "insert", "append"]))
    if how == "change":
        encoded[place] ^= data.draw(st.integers(1, 255))
    elif how == "cut":
        del encoded[place:]
    elif how == "insert":
        encoded[place:place] = data.draw(st.binary(min_size=1, max_size=9))
    else:
        encoded += data.draw(st.binary(min_size=1, max_size=9))
    try:
        decoded = decode(type(message), bytes(encoded))
    except ProtocolError as error:
        assert error.reason  # noqa: PT017 - the property is about both outcomes
    else:
        assert decoded.encode() == bytes(encoded)
        assert (decoded == message) == (
            bytes(encoded) == message.encode()
        )  # what was inserted may change nothing


@given(st.sampled_from(list(MESSAGES)), st.binary(max_size=300))
def test_H1_any_bytes_are_refused_with_a_reason(kind, data):
    with pytest.raises(ProtocolError):
        decode(kind, data)


@given(st.sampled_from(list(MESSAGES)), hashes, numbers, st.binary(max_size=300))
def test_H1_any_body_behind_a_good_header_is_refused_or_canonical(kind, context, sender, body):
    data = Writer(label_of(kind)).data(context).number(sender).finish() + body
    try:
        message = decode(kind, data)
    except ProtocolError:
        return
    assert message.encode() == data


@pytest.mark.parametrize("kind", MESSAGES)
def test_H1_a_length_that_is_not_there_is_refused_before_anything_is_allocated(kind):
    sender = SERVER if label_of(kind).endswith("request") else 1
    header = Writer(label_of(kind)).data(NO_HEAD).number(sender).finish()
    for body in (
        b"\xff" * 4,
        b"\xff" * 8,
        b"\xff" * 4 + b"xxxx",
        b"\0\0\0\x04xxxx",
        b"\0" * 7 + b"\x05" + b"\xff" * 8,
    ):
        with pytest.raises(ProtocolError):
            decode(kind, header + body)
    with pytest.raises(ProtocolError):
        decode(kind, struct.pack(">I", 2**32 - 1) + b"tacit")
    reader = Reader(Writer("x").number(2**61).finish(), "x")
    with pytest.raises(ProtocolError):
        reader.numbers()


@given(messages)
def test_E6_a_message_is_not_mistaken_for_another_kind(message):
    for kind in MESSAGES:
        if kind is not type(message):
            with pytest.raises(ProtocolError) as error:
                decode(kind, message.encode())
            assert error.value.reason == "label"


@given(messages)
def test_a_signature_covers_everything_but_itself(message):
    if not hasattr(message, "statement"):
        return
    changed = decode(type(message), message.encode()[:-64] + bytes(64))
    assert changed.statement == message.statement
    assert message.statement.label == label_of(type(message))
    unsigned = message.encode()[:-68]
    if type(message) not in (
        SetupRequest,
        ConfirmAnswer,
    ):  # the one signs ctx0, the other what it does not repeat
        assert message.statement.body_hash == hashlib.sha256(unsigned).digest()


@given(
    st.floats(allow_nan=False, allow_infinity=False),
    numbers,
    labels,
    st.binary(max_size=40),
    st.lists(numbers),
)
def test_each_value_has_one_spelling(real, number, text, data, several):
    encoded = Writer("x").real(real).number(number).text(text).data(data).numbers(several).finish()
    reader = Reader(encoded, "x")
    assert (reader.real(), reader.number(), reader.text(), reader.data()) == (real, number, text, data)
    assert reader.numbers() == tuple(several)
    reader.end()
    assert Writer("x").real(-0.0).finish() == Writer("x").real(0.0).finish()
    one_by_one = Writer("x").number(len(several))
    for each in several:
        one_by_one.number(each)
    assert one_by_one.finish() == Writer("x").numbers(several).finish()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -0.0])
def test_a_real_without_a_spelling_is_refused(value):
    with pytest.raises(ProtocolError):
        Reader(Writer("x").finish() + struct.pack(">d", value), "x").real()
    if value != 0:
        with pytest.raises(ValueError, match="canonical"):
            Writer("x").real(value)


@pytest.mark.parametrize("value", [-1, 2**64])
def test_a_number_without_a_spelling_is_our_own_mistake(value):
    with pytest.raises(ValueError, match="64 bits"):
        Writer("x").number(value)
    with pytest.raises(ValueError, match="64 bits"):
        Writer("x").numbers([0, value, 1])


# --- H2, H3 ------------------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
def test_H2_any_bytes_are_an_opening_or_refused(data):
    try:
        assert Opening.decode(data).encode() == data
    except ProtocolError:
        assert len(data) != OPENING_BYTES


@given(st.binary(max_size=400))
def test_H2_any_bytes_are_shares_or_refused(data):
    try:
        assert Shares.decode(data).encode() == data
    except ProtocolError:
        assert len(data) != SEALED_BYTES - 16 + 64


@given(st.integers(-3, 40), st.integers(-2, 70), st.binary(max_size=300))
def test_H3_any_bytes_are_a_packed_vector_or_refused(bits, length, data):
    try:
        words = ring.unpack(data, bits, length)
    except ProtocolError as error:
        assert error.reason in ("bits", "vector-size", "padding")  # noqa: PT017
        return
    assert ring.pack(words, bits) == data


@given(st.integers(8, 32), st.integers(0, 70), st.data())
def test_H3_any_bytes_of_the_right_length_are_a_packed_vector_or_have_an_unused_bit_set(bits, length, data):
    size = ring.packed_size(length, bits)
    packed = data.draw(st.binary(min_size=size, max_size=size))
    try:
        assert ring.pack(ring.unpack(packed, bits, length), bits) == packed
    except ProtocolError as error:
        assert error.reason == "padding"  # noqa: PT017
        assert length % 8 and bits % 8


@given(st.integers(8, 32), st.integers(0, 300), st.randoms(use_true_random=False))
def test_A11_packing_round_trips_and_takes_no_room(bits, length, source):
    words = np.array([source.randrange(2**bits) for _ in range(length)], dtype=np.uint32)
    data = ring.pack(words, bits)
    assert np.array_equal(ring.unpack(data, bits, length), words)
    answer = MaskAnswer(NO_HEAD, SERVER - 1, bytes(16), bytes(64)).encode()
    assert len(answer) + len(data) <= length * bits / 8 + 256


@given(
    st.lists(st.floats(width=64), max_size=40),
    st.floats(1e-6, 1e6),
    st.integers(1, 2**24),
    st.integers(0, 2**32),
)
def test_I5_what_comes_out_of_the_encoder_is_within_the_norm(values, clip, c_int, seed):
    vector = np.array(values, dtype=np.float64)
    uniforms = np.random.default_rng(seed).random(len(values))
    if not np.isfinite(vector).all():
        with pytest.raises(Refused):
            ring.encode(vector, clip=clip, c_int=c_int, uniforms=uniforms)
        return
    integers, _ = ring.encode(vector, clip=clip, c_int=c_int, uniforms=uniforms)
    assert sum(int(z) ** 2 for z in integers) <= c_int**2


# --- sessions ----------------------------------------------------------------------------------------------------

SESSIONS = []
_run = Round(length=3)
for _step in ("setup", "deal", "mask", "confirm", "unmask"):
    SESSIONS.append(_run.clients[0].export())
    _run.step(_step)
SESSIONS.append(_run.clients[0].export())


@given(st.binary(max_size=200))
def test_F6_any_bytes_are_no_session(data):
    with pytest.raises(StorageError):
        ClientState.decode(data)


@given(st.sampled_from(SESSIONS), st.data())
def test_F6_a_changed_session_is_refused_or_read_as_what_it_says(exported, data):
    changed = bytearray(exported)
    changed[data.draw(st.integers(0, len(changed) - 1))] ^= data.draw(st.integers(1, 255))
    try:
        state = ClientState.decode(bytes(changed))
    except StorageError:
        return
    assert state.encode() == bytes(changed)


@settings(max_examples=30)
@given(st.integers(0, 5), st.integers(0, 4), st.randoms(use_true_random=False))
def test_F6_a_session_is_the_one_spelling_of_a_state(phase, index, source):
    run = Round(seed=source.randrange(1000), length=3)
    for step in ("setup", "deal", "mask", "confirm", "unmask")[:phase]:
        run.step(step)
    exported = run.clients[index].export()
    state = ClientState.decode(exported)
    assert state.encode() == exported
    assert state.phase == run.clients[index].phase
