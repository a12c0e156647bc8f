"""What the server refuses of a member, and that a refusal changes nothing: the round goes on with the others."""

from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError
from tacit.secagg.contexts import NO_HEAD
from tacit.secagg.messages import (
    ROW_BYTES,
    ConfirmAnswer,
    DealAnswer,
    MaskAnswer,
    SetupAnswer,
    UnmaskAnswer,
)
from tacit.secagg.parameters import Rules
from tacit.secagg.ring import pack
from tacit.secagg.server import ServerMachine
from tacit.secagg.sharing import OPENING_BYTES
from tests.unit.secagg_round import LENGTH, STEPS, Round, failure_of, plain_sum, reason_of

MESSAGES = {
    "setup": SetupAnswer.decode,
    "deal": DealAnswer.decode,
    "mask": MaskAnswer.decode,
    "unmask": UnmaskAnswer.decode,
}


def decoded(run, step, answer):
    body = answer[0] if isinstance(answer, tuple) else answer
    return ConfirmAnswer.decode(body, run.server.survivors) if step == "confirm" else MESSAGES[step](body)


def encoded(answer, message):
    return (message.encode(), answer[1]) if isinstance(answer, tuple) else message.encode()


def finish(run):
    """The rest of the round, honestly; the sum is that of everybody."""
    step = list(run.requests)[-1]
    answered = run.server._answered
    for index in run.requests[step]:
        if index not in answered:
            run.collect(step, run.answer(step, index))
    assert run.until("unmask").server.aggregate().values.tolist() == plain_sum(range(5))


def asked(step, seed=0):
    """A round in which this step has been asked for, and nobody has answered."""
    run, before = Round(seed=seed), list(STEPS)[: list(STEPS).index(step)]
    for earlier in before:
        run.step(earlier)
    run.ask(step)
    return run


# --- C5 ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_C5_an_identical_repeat_is_accepted_once_and_another_answer_refused(step):
    run, other = asked(step), asked(step, 1)
    first = run.answer(step, 1)
    run.collect(step, first)
    missing = run.server.missing
    run.collect(step, first)
    assert run.server.missing == missing
    message = decoded(run, step, first)
    if step == "setup":
        second = encoded(first, replace(message, entry=replace(message.entry, nonce=b"\1" * 32)))
    elif step == "confirm":
        second = encoded(first, replace(message, signature=bytes(64)))
    else:
        field = {"deal": "own_commitment", "mask": "tag", "unmask": "openings"}[step]
        value = getattr(message, field)[::-1]
        second = encoded(first, replace(message, **{field: value}).signed(run.identity(1)))
    assert reason_of(run.collect, step, second) == "duplicate"
    assert run.server.missing == missing
    finish(run)
    run.collect(step, first)  # late, but known
    assert reason_of(run.collect, step, other.answer(step, 2)) == "phase"


def test_C5_the_vector_beside_a_repeated_answer_is_not_looked_at():
    run = asked("mask")
    message, vector = run.answer("mask", 1)
    run.server.collect_masked(message, vector)
    before = run.server.masked_total
    for again in (vector, vector[::-1], b""):
        run.server.collect_masked(message, again)
    assert run.server.masked_total == before
    finish(run)


@pytest.mark.parametrize("step", STEPS)
def test_C5_an_answer_to_an_earlier_attempt_is_refused(step):
    run, before = asked(step), list(STEPS).index(step)
    again = Round(federation=run.federation, attempt=2)
    for earlier in list(STEPS)[:before]:
        again.step(earlier)
    again.ask(step)
    old = Round(seed=9)
    for earlier in list(STEPS)[:before]:
        old.step(earlier)
    old.ask(step)
    message = decoded(old, step, old.answer(step, 1))
    replayed = replace(message).signed(run.identity(1))  # its signature is good, its context is another's
    assert reason_of(
        again.collect, step, (replayed.encode(), b"") if step == "mask" else replayed.encode()
    ) == ("context")
    finish(again)


# --- C6, C8 --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_C6_C8_an_answer_without_its_sender_s_signature_is_refused_and_changes_nothing(step):
    run = asked(step)
    honest = run.answer(step, 1)
    message = decoded(run, step, honest)
    by_another = message.signed(run.identity(2))  # on behalf of member 1
    wrong_context = replace(message, context=NO_HEAD).signed(run.identity(1)).signature
    for forged, reason in (
        (replace(message, signature=bytes(64)), "signature"),
        (by_another, "signature"),
        (replace(message, signature=wrong_context), "signature"),
        (replace(message, context=NO_HEAD).signed(run.identity(1)), "context"),
    ):
        assert reason_of(run.collect, step, encoded(honest, forged)) == reason
    for stranger in (5, 2**32 - 2):
        if step == "setup":
            foreign = replace(message, entry=replace(message.entry, index=stranger))
        else:
            foreign = replace(message, sender=stranger)
        assert reason_of(run.collect, step, encoded(honest, foreign)) == "unknown-member"
    assert len(run.server.missing) == 5
    finish(run)


@pytest.mark.parametrize("step", STEPS)
def test_C6_who_is_not_asked_is_not_heard(step):
    """Member 4 has vanished a step before and speaks again."""
    steps = list(STEPS)
    if step in ("setup", "unmask"):
        return  # everybody is asked in M0; who is silent in M3 is asked in M4
    run, twin = Round(), Round()
    for earlier in steps[: steps.index(step)]:
        gone = (4,) if earlier == steps[steps.index(step) - 1] else ()
        run.step(earlier, gone=gone)
        twin.step(earlier)
    run.ask(step)
    twin.ask(step)
    message = decoded(twin, step, twin.answer(step, 4))
    context = run.server.cohort.ctx1 if step == "deal" else run.server._ctx2
    late = replace(message, context=context)
    if step == "confirm":
        late = replace(late, survivors=run.server.survivors)
    late = encoded(twin.answer(step, 4), late.signed(run.identity(4)))
    assert reason_of(run.collect, step, late) == "unknown-member"


# --- M0 ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stolen", ["enc_pk", "mask_pk", "nonce", "both uses"])
def test_C6_a_key_of_another_member_is_refused(stolen):
    run = asked("setup")
    run.collect("setup", run.answer("setup", 0))
    entry = run.clients[0]._state.entry
    message = decoded(run, "setup", run.answer("setup", 1))
    fields = {"mask_pk": message.entry.enc_pk} if stolen == "both uses" else {stolen: getattr(entry, stolen)}
    forged = replace(message, entry=replace(message.entry, **fields)).signed(run.identity(1))
    assert reason_of(run.collect, "setup", forged.encode()) == "duplicate"
    finish(run)


@pytest.mark.parametrize("use", ["enc_pk", "mask_pk"])
@pytest.mark.parametrize(
    ("point", "reason"),
    [
        (0, "low-order-point"),
        (1, "low-order-point"),
        (325606250916557431795983626356110631294008115727848805560023387167927233504, "low-order-point"),
        (39382357235489614581723060781553021112529911719440698176882885853963445705823, "low-order-point"),
        (2**255 - 20, "low-order-point"),
        (2**255 - 19, "key"),
        (1 << 255, "key"),
    ],
)
def test_B5_a_member_s_point_of_small_order_is_refused(point, reason, use):
    run = asked("setup")
    message = decoded(run, "setup", run.answer("setup", 1))
    entry = replace(message.entry, **{use: point.to_bytes(32, "little")})
    forged = replace(message, entry=entry).signed(run.identity(1)).encode()
    assert reason_of(run.collect, "setup", forged) == reason
    finish(run)


@pytest.mark.parametrize("counter", [0, 6, 7])
def test_B34_a_member_whose_counter_goes_back_cannot_make_all_others_refuse(counter):
    """Every honest client would refuse a cohort with such an entry in it: the server keeps it out."""
    run = Round(counters={1: 7, 2: 0})
    run.ask("setup")
    message = decoded(run, "setup", run.answer("setup", 1))
    forged = replace(message, entry=replace(message.entry, counter=counter)).signed(run.identity(1))
    assert reason_of(run.collect, "setup", forged.encode()) == "peer-counter"
    for i in (0, 2, 3, 4):
        run.collect("setup", run.answer("setup", i))
    assert run.until("unmask", gone={"deal": ()}).server.aggregate().values.tolist() == plain_sum(
        [0, 2, 3, 4]
    )


# --- C3, C7, C13 ---------------------------------------------------------------------------------------------------


def signed_vector(run, index, vector):
    """The member's answer of M2 for any bytes, tag and signature as they should be."""
    state = run.clients[index]._state
    tag = state.enc.tag(run.invitation.server_pk, ctx2=state.ctx2, sender=index).finish(vector)
    return MaskAnswer(state.ctx2, index, tag).signed(run.identity(index)).encode(), vector


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda y, bits: b"", "vector-size"),
        (lambda y, bits: y[:-1], "vector-size"),
        (lambda y, bits: y + b"\0", "vector-size"),
        (lambda y, bits: y * 2, "vector-size"),
        (lambda y, bits: np.zeros(LENGTH, dtype=np.float32).tobytes(), "vector-size"),
        (lambda y, bits: pack(np.zeros(LENGTH - 1, dtype=np.uint32), bits)[:-1], "vector-size"),
        (lambda y, bits: pack(np.zeros(LENGTH, dtype=np.uint32), bits + 1), "vector-size"),
        (lambda y, bits: y[:-1] + bytes([y[-1] | 0xF0]), "padding"),
    ],
    ids=["none", "short", "long", "twice", "floats", "one word less", "another width", "unused bits"],
)
def test_C3_C13_a_vector_that_is_none_of_this_cohort_is_refused_and_the_round_goes_on(change, reason):
    run = asked("mask")
    bits = run.server.cohort.parameters.bits
    _, vector = run.answer("mask", 1)
    before = run.server.masked_total
    assert reason_of(run.collect, "mask", signed_vector(run, 1, change(vector, bits))) == reason
    assert run.server.masked_total == before
    assert len(run.server.missing) == 5
    finish(run)


def test_C3_a_vector_under_another_s_tag_is_refused():
    run = asked("mask")
    (one, y), (other, z) = run.answer("mask", 1), run.answer("mask", 2)
    assert reason_of(run.server.collect_masked, one, z) == "tag"
    assert reason_of(run.server.collect_masked, other, y) == "tag"
    assert reason_of(run.server.collect_masked, one, bytes([y[0] ^ 1]) + y[1:]) == "tag"
    assert reason_of(run.server.collect_masked, one, b"") == "vector-size"
    assert not any(run.server.masked_total)
    finish(run)


@pytest.mark.parametrize("rows", [0, 4, 6, 12])
def test_C7_a_dealer_has_one_row_for_each_neighbour_and_itself(rows):
    run = asked("deal")
    message = decoded(run, "deal", run.answer("deal", 1))
    changed = (message.rows * 3)[: rows * ROW_BYTES]  # fewer, more, or one of them twice
    assert (
        reason_of(run.collect, "deal", replace(message, rows=changed).signed(run.identity(1)).encode())
        == "rows"
    )
    cut = replace(message, rows=message.rows[:-1]).signed(run.identity(1)).encode()
    assert reason_of(run.collect, "deal", cut) == "encoding"
    finish(run)


@pytest.mark.parametrize("openings", [0, 4, 6, 10])
def test_C7_an_answer_has_one_opening_for_each_dealer(openings):
    run = asked("unmask")
    message = decoded(run, "unmask", run.answer("unmask", 1))
    changed = replace(message, openings=(message.openings * 2)[: openings * OPENING_BYTES])
    assert reason_of(run.collect, "unmask", changed.signed(run.identity(1)).encode()) == "openings"
    cut = replace(message, openings=message.openings[:-1]).signed(run.identity(1)).encode()
    assert reason_of(run.collect, "unmask", cut) == "encoding"
    finish(run)


def test_C7_openings_in_another_order_are_bad_shares():
    run = asked("unmask")
    for i in range(5):
        message = decoded(run, "unmask", run.answer("unmask", i))
        if i == 0:
            parts = [message.opening(place) for place in (1, 0, 2, 3, 4)]
            message = replace(message, openings=b"".join(parts)).signed(run.identity(0))
        run.collect("unmask", message.encode())
    assert run.server.aggregate().values.tolist() == plain_sum(range(5))
    assert [member.index for member in run.server.blamed] == [0]


# --- the machine itself --------------------------------------------------------------------------------------------


def test_B20_a_step_of_the_server_out_of_order_is_refused():
    other = Round(attempt=2)
    other.run()
    answers = {STEPS[step][1]: other.answers[step][0] for step in STEPS}  # good ones, of another attempt
    everything = {ask: () for ask, _ in STEPS.values()} | {"aggregate": ()}
    del everything["setup_request"]
    everything |= {name: found if isinstance(found, tuple) else (found,) for name, found in answers.items()}
    allowed = {"setup": {"collect_setup", "deal_requests"}, "deal": {"collect_dealt", "mask_requests"}}
    allowed |= {"mask": {"collect_masked", "confirm_requests"}, "unmask": {"collect_unmask", "aggregate"}}
    allowed["confirm"] = {"collect_confirmed", "unmask_requests"}
    for step in STEPS:
        run = asked(step)
        for name in everything.keys() - allowed[step]:
            assert reason_of(getattr(run.server, name), *everything[name]) == "phase"
    run = Round()
    run.run()
    for name, arguments in everything.items():
        assert reason_of(getattr(run.server, name), *arguments) == "phase"


def test_a_server_that_is_not_its_invitation_s_cannot_be_made():
    run = Round()
    members, identity = run.federation.roster.members, run.federation.server_identity
    with pytest.raises(ValueError, match="number of members"):
        ServerMachine(run.invitation, members[:4], identity, run.key)
    with pytest.raises(ValueError, match="another key"):
        ServerMachine(run.invitation, members, identity, run.federation.key())
    impossible = replace(run.invitation, rules=Rules(4, 0, 1024))
    with pytest.raises(ConfigError):
        ServerMachine(impossible, members, identity, run.key)
    with pytest.raises(ProtocolError, match="not settled"):
        run.server.cohort  # noqa: B018


def test_a_cohort_of_two_is_never_settled_even_where_d_would_allow_it():
    run = Round(n=3).step("setup", gone=(1,))  # D = 1, but c + 2 = 3
    assert failure_of(run.server.deal_requests) == ([1], [])
    run.gone.clear()
    run.collect("setup", run.answer("setup", 1))  # late
    assert run.server.deal_requests().keys() == {0, 1, 2}


def test_a_failure_names_members_and_no_more():
    run = Round().step("setup", gone=(1, 3))
    with pytest.raises(ProtocolError) as error:
        run.server.deal_requests()
    assert error.value.reason == "attempt-failed"
    assert str(error.value) == "attempt-failed: not enough keys, none from client-1, client-3"
    assert repr(run.server) == "<ServerMachine: keys, 2 members still to answer>"
