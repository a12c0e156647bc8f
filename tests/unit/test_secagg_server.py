from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import ProtocolError
from tacit.secagg.contexts import NO_HEAD
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.members import Member
from tacit.secagg.messages import MaskAnswer, MaskRequest, SetupAnswer, UnmaskAnswer
from tacit.secagg.server import MembersMissing, ServerMachine
from tacit.update import EncodedUpdate, MaskedUpdate
from tests.unit.secagg_round import C_INT, LENGTH, RULES, Round, invite, reason_of, vector


def test_the_sum_is_that_of_the_plain_integers():
    run = Round().keys().vectors().seeds()
    aggregate = run.server.aggregate()
    assert aggregate.num_clients == 5
    assert np.array_equal(aggregate.values, ideal_sum([vector(i) for i in range(5)]).values)
    assert run.server.missing == ()


@pytest.mark.parametrize("absent", range(5))
def test_A5_a_client_lost_before_the_keys_costs_nothing(absent):
    present = [i for i in range(5) if i != absent]
    run = Round().keys(present).vectors().seeds()
    aggregate = run.server.aggregate()
    assert aggregate.num_clients == 4
    assert np.array_equal(aggregate.values, ideal_sum([vector(i) for i in present]).values)


LOST = [
    (phase, lost)
    for phase in ("keys", "vectors", "seeds")
    for lost in ((0,), (3,), (1, 4), (0, 1, 2), (0, 1, 2, 3, 4))
    if phase != "keys" or len(lost) > 1  # one lost before the keys is the test above
]


@pytest.mark.parametrize(("phase", "lost"), LOST)
def test_A2_a_lost_client_is_named_and_there_is_no_sum(phase, lost):
    run = Round()
    if phase == "keys":
        step = run.keys([i for i in range(5) if i not in lost]).server.mask_requests
    elif phase == "vectors":
        step = run.keys().vectors(lost).server.unmask_requests
    else:
        step = run.keys().vectors().seeds(lost).server.aggregate
    with pytest.raises(MembersMissing) as error:
        step()
    assert error.value.reason == "members-missing"
    assert [member.index for member in error.value.missing] == list(lost)
    assert error.value.phase == phase
    assert run.server.missing == error.value.missing


def test_a_cohort_of_two_is_never_settled_even_where_d_would_allow_it():
    run = Round(n=3, rules=RULES).keys([0, 2])  # D = 1, but c + 2 = 3
    with pytest.raises(MembersMissing) as error:
        run.server.mask_requests()
    assert [member.index for member in error.value.missing] == [1]
    client = run.keys([1]).clients[1]
    request = MaskRequest.decode(run.server.mask_requests()[0])
    pair = replace(request, entries=request.entries[:2], masking=(0, 1)).encode()
    assert reason_of(client.mask, pair, vector(1)) == "cohort-size"


def test_a_late_client_ends_the_waiting():
    run = Round().keys().vectors(absent=(3,))
    with pytest.raises(MembersMissing):
        run.server.unmask_requests()
    run.server.collect_masked(run.clients[3].mask(run.requests[3], vector(3)))
    run.seeds()
    assert np.array_equal(run.server.aggregate().values, ideal_sum([vector(i) for i in range(5)]).values)


def test_C5_an_identical_repeat_is_accepted_once_and_another_answer_refused():
    run = Round()
    again = Round(seed=1)
    key = run.clients[0].setup(run.invitation)
    run.keys()
    run.server.collect_setup(key)
    assert reason_of(run.server.collect_setup, again.clients[0].setup(run.invitation)) == "duplicate"
    run.vectors()
    y = run.clients[0].mask(run.requests[0], vector(0))
    run.server.collect_masked(y)
    changed = bytearray(y)
    changed[-1] ^= 1
    assert reason_of(run.server.collect_masked, bytes(changed)) == "duplicate"
    run.server.collect_setup(key)  # late, but known
    assert reason_of(run.server.collect_setup, again.clients[0].setup(run.invitation)) == "phase"
    run.seeds()
    seed = run.clients[0].unmask(run.requests[0])
    run.server.collect_unmask(seed)
    other = UnmaskAnswer(run.server.cohort.ctx2, 0, b"\1" * 32).encode()
    assert reason_of(run.server.collect_unmask, other) == "duplicate"
    assert np.array_equal(run.server.aggregate().values, ideal_sum([vector(i) for i in range(5)]).values)


def setup_answer(**changes):
    answer = SetupAnswer.decode(Round(seed=7).clients[1].setup(invite()[0]))
    return replace(answer, entry=replace(answer.entry, **changes.pop("entry", {})), **changes)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (setup_answer(context=NO_HEAD), "context"),
        (setup_answer(entry={"member": Member(5, "site 5")}), "unknown-member"),
        (setup_answer(entry={"member": Member(2, "site 1")}), "member"),
        (setup_answer(entry={"member": Member(1, "elsewhere")}), "member"),
    ],
)
def test_C6_keys_from_elsewhere_are_refused(answer, reason):
    run = Round()
    assert reason_of(run.server.collect_setup, answer.encode()) == reason
    run.keys().vectors().seeds().server.aggregate()


def test_C6_a_key_of_another_member_is_refused():
    run = Round()
    first = SetupAnswer.decode(run.clients[0].setup(run.invitation))
    run.server.collect_setup(first.encode())
    for stolen in (
        {"enc_pk": first.entry.mask_pk},
        {"mask_pk": first.entry.mask_pk},
        {"nonce": first.entry.nonce},
    ):
        assert reason_of(run.server.collect_setup, setup_answer(entry=stolen).encode()) == "duplicate"


def test_C3_a_vector_of_another_width_length_or_context_is_refused():
    run = Round().keys()
    requests = run.server.mask_requests()
    honest = MaskAnswer.decode(run.clients[0].mask(requests[0], vector(0)))
    words = honest.masked_update().words

    def answer(words=words, bits=honest.bits, context=honest.context, sender=0):
        return MaskAnswer.of(context, sender, MaskedUpdate(words, bits)).encode()

    cases = {
        "vector-size": (answer(words[:99]), answer(np.r_[words, words]), answer(bits=honest.bits + 1)),
        "context": (answer(context=NO_HEAD), answer(context=run.invitation.ctx0())),
        "unknown-member": (answer(sender=5),),
        "encoding": (honest.encode()[:-1], honest.encode() + b"\0"),
        "label": (
            run.clients[0].setup(run.invitation)[:-1],
            UnmaskAnswer(honest.context, 0, bytes(32)).encode(),
        ),
    }
    for reason, answers in cases.items():
        for bad in answers:
            assert reason_of(run.server.collect_masked, bad) == reason
    assert len(run.server.missing) == 5
    for index, request in requests.items():
        run.server.collect_masked(run.clients[index].mask(request, vector(index)))
    run.seeds()
    assert np.array_equal(run.server.aggregate().values, ideal_sum([vector(i) for i in range(5)]).values)


def test_a_client_out_of_range_is_seen_in_the_sum():
    run = Round().keys()
    requests = run.server.mask_requests()
    for index, request in requests.items():
        run.clients[index]._check_range = lambda *_: None
        values = np.full(LENGTH, 6 * C_INT if index == 0 else 0)
        run.server.collect_masked(run.clients[index].mask(request, EncodedUpdate(values, False)))
    run.seeds()
    assert reason_of(run.server.aggregate) == "aggregate-range"


def test_B20_a_step_of_the_server_out_of_order_is_refused():
    server = ServerMachine(*invite())
    for step in (server.unmask_requests, server.aggregate):
        assert reason_of(step) == "phase"
    for step in (server.collect_masked, server.collect_unmask):
        assert reason_of(step, b"") == "phase"
    with pytest.raises(ProtocolError):
        server.cohort  # noqa: B018
    with pytest.raises(ValueError, match="number"):
        ServerMachine(invite()[0], invite(4)[1])
