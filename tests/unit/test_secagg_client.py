import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import Refused, StorageError
from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import NO_HEAD
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.members import Member
from tacit.secagg.messages import MaskAnswer, MaskRequest, SetupAnswer, UnmaskAnswer, UnmaskRequest
from tacit.secagg.server import ServerMachine
from tacit.update import EncodedUpdate
from tests.unit.secagg_round import C_INT, LENGTH, RULES, Round, invite, reason_of, vector


def masking_request(change=lambda entries: None, masking=None, **changes):
    """A client that has answered M0, and a request of M2 with one thing wrong."""
    run = Round(**changes).keys()
    honest = MaskRequest.decode(run.server.mask_requests()[0])
    entries = list(honest.entries)
    change(entries)
    entries.sort(key=lambda entry: entry.index)
    request = replace(honest, entries=tuple(entries), masking=masking or tuple(e.index for e in entries))
    return run.clients[2], request


def set_entry(position, **fields):
    def change(entries):
        entries[position] = replace(entries[position], **fields)

    return change


def copy_field(name, source, target, other=None):
    def change(entries):
        entries[target] = replace(entries[target], **{other or name: getattr(entries[source], name)})

    return change


def stranger(entries):
    entries.append(replace(entries[0], member=Member(9, "nine"), enc_pk=b"\5" * 32, mask_pk=b"\6" * 32))


# The encodings of the points of order 1, 2, 4 and 8 (RFC 7748, section 6.1 warns of them; list of
# cr.yp.to/ecdh.html), the last three of them spelled above the field.
P = 2**255 - 19
LOW_ORDER = {
    "zero": 0,
    "one": 1,
    "order 8": 325606250916557431795983626356110631294008115727848805560023387167927233504,
    "order 8, the other": 39382357235489614581723060781553021112529911719440698176882885853963445705823,
    "minus one": P - 1,
    "zero again": P,
    "one again": P + 1,
    "zero, top bit set": 1 << 255,
}

BAD_MASK_REQUESTS = {
    "B7 own entry missing": (lambda entries: entries.pop(2), "own-entry"),
    "B7 own key changed": (set_entry(2, mask_pk=b"\3" * 32), "own-entry"),
    "B7 own nonce changed": (set_entry(2, nonce=b"\3" * 32), "own-entry"),
    "B7 own counter changed": (set_entry(2, counter=1), "own-entry"),
    "B7 own label changed": (set_entry(2, member=Member(2, "other")), "own-entry"),
    "B8 one label twice": (set_entry(3, member=Member(3, "site 1")), "duplicate"),
    "B8 one mask key twice": (copy_field("mask_pk", 0, 4), "duplicate"),
    "B8 own mask key at another": (copy_field("mask_pk", 2, 4), "duplicate"),
    "B8 one seal key twice": (copy_field("enc_pk", 0, 4), "duplicate"),
    "B8 one key for two uses": (copy_field("mask_pk", 0, 0, "enc_pk"), "duplicate"),
    "B8 one nonce twice": (copy_field("nonce", 0, 4), "duplicate"),
    "B9 too few": (lambda entries: [entries.pop(4), entries.pop(3)], "cohort-size"),
    "B9 more than invited": (stranger, "cohort-size"),
}


@pytest.mark.parametrize("name", BAD_MASK_REQUESTS)
def test_B_a_bad_list_of_clients_is_refused(name):
    change, reason = BAD_MASK_REQUESTS[name]
    client, request = masking_request(change)
    assert reason_of(client.mask, request.encode(), vector(2)) == reason
    assert client.phase == "keyed"


@pytest.mark.parametrize("use", ["mask_pk", "enc_pk"])
@pytest.mark.parametrize("name", LOW_ORDER)
def test_B5_a_point_of_small_order_is_refused(name, use):
    point = LOW_ORDER[name].to_bytes(32, "little")
    client, request = masking_request(set_entry(4, **{use: point}))
    assert reason_of(client.mask, request.encode(), vector(2)) in ("low-order-point", "key")
    server = ServerMachine(*invite())
    answer = SetupAnswer.decode(Round().clients[1].setup(server._invitation))
    forged = replace(answer, entry=replace(answer.entry, **{use: point}))
    assert reason_of(server.collect_setup, forged.encode()) in ("low-order-point", "key")
    assert len(server.missing) == 5


@pytest.mark.parametrize(
    ("masking", "reason"),
    [
        ((0, 1, 3, 4), "own-entry"),
        ((0, 1, 2, 3, 4, 9), "unknown-member"),
        ((1, 2, 3), "cohort-size"),
        ((2,), "cohort-size"),
    ],
)
def test_B15_a_bad_set_of_masking_clients_is_refused(masking, reason):
    client, request = masking_request(masking=masking)
    assert reason_of(client.mask, request.encode(), vector(2)) == reason


def test_B13_another_model_for_one_client_is_refused():
    run = Round().keys()
    request = run.server.mask_requests()[0]
    for change in (
        {"model": b"\1" * 32},
        {"config": b"\1" * 32},
        {"round": 2},
        {"attempt": 2},
        {"length": 101},
    ):
        shown, members = invite(**change)
        client = ClientMachine(members[0], random.Random(0).randbytes)
        client.setup(shown)
        assert reason_of(client.mask, request, vector(0)) == "context"


def test_B13_without_the_check_the_masks_do_not_cancel():
    run = Round().keys()
    request = MaskRequest.decode(run.server.mask_requests()[0])
    odd = run.clients[0]
    odd._state.invitation = replace(run.invitation, model=b"\1" * 32)
    forged = replace(request, context=odd._state.invitation.ctx0()).encode()
    y = MaskAnswer.decode(odd.mask(forged, vector(0)))
    for client in run.clients[1:]:
        run.server.collect_masked(client.mask(request.encode(), vector(client.member.index)))
    assert reason_of(run.server.collect_masked, y.encode()) == "context"
    run.server.collect_masked(replace(y, context=run.server.cohort.ctx2).encode())
    requests = run.server.unmask_requests()
    assert reason_of(odd.unmask, requests[0]) == "context"
    for client in run.clients[1:]:
        run.server.collect_unmask(client.unmask(requests[0]))
    run.server.collect_unmask(UnmaskAnswer(run.server.cohort.ctx2, 0, bytes(odd._state.own_seed)).encode())
    assert reason_of(run.server.aggregate) == "aggregate-range"


@pytest.mark.parametrize("survivors", [(0, 1, 2, 3), (0, 1, 3, 4), (0, 1, 2, 3, 4, 9), (2,), ()])
def test_B15_a_sum_over_other_clients_is_refused(survivors):
    run = Round().keys().vectors()
    request = UnmaskRequest(run.server.cohort.ctx2, survivors)
    assert reason_of(run.clients[2].unmask, request.encode()) == "survivors"
    run.seeds()  # the refusal has changed nothing


def test_B16_a_seed_leaves_only_for_the_context_that_was_masked_in():
    run, other = Round().keys().vectors(), Round(seed=1).keys().vectors()
    foreign = other.server.unmask_requests()[0]
    assert reason_of(run.clients[2].unmask, foreign) == "context"
    early = Round().keys().clients[2]
    assert reason_of(early.unmask, run.server.unmask_requests()[2]) == "phase"


def test_B18_the_same_request_gets_the_same_bytes_and_another_one_is_refused():
    run = Round().keys()
    client, other = run.clients[2], Round(seed=1).keys()
    first = client.setup(run.invitation)
    assert client.setup(run.invitation) == first
    assert reason_of(client.setup, invite(run="r2")[0]) == "phase"
    run.vectors()
    request = run.requests[2]
    y = client.mask(request, vector(2))
    assert client.mask(request, vector(3)) == y == client.answered("mask", request)
    assert reason_of(client.mask, other.server.mask_requests()[2], vector(2)) == "phase"
    run.seeds()
    assert client.unmask(run.requests[2]) == client.unmask(run.requests[2])
    assert client.mask(request, vector(2)) == y
    assert reason_of(client.unmask, request) == "phase"  # an answer belongs to its step
    assert reason_of(client.unmask, UnmaskRequest(NO_HEAD, (1, 2)).encode()) == "phase"


def test_B20_a_step_out_of_order_is_refused():
    _, members = invite()
    fresh = ClientMachine(members[0], random.Random(0).randbytes)
    run = Round().keys().vectors()
    assert reason_of(fresh.mask, run.requests[0], vector(0)) == "phase"
    assert reason_of(fresh.unmask, run.server.unmask_requests()[0]) == "phase"


def test_A9_a_coordinate_beyond_the_bound_is_refused_before_anything_is_masked():
    run = Round().keys()
    request = run.server.mask_requests()[0]
    for values in ([C_INT + 1] + [0] * 99, [0] * 99 + [-C_INT - 1]):
        with pytest.raises(Refused, match="range"):
            run.clients[0].mask(request, EncodedUpdate(np.array(values), False))
    with pytest.raises(Refused, match="vector-size"):
        run.clients[0].mask(request, EncodedUpdate(np.zeros(99, dtype=np.int64), False))
    assert run.clients[0].phase == "keyed"
    assert run.clients[0].cohort(request).parameters.n == 5


def test_noise_may_lift_a_coordinate_above_the_clip():
    run = Round(rules=replace(RULES, noise_multiplier=2.0)).keys()
    request = run.server.mask_requests()[0]
    cohort = run.clients[0].cohort(request)
    assert cohort.parameters.noise_share == pytest.approx(2.0 * C_INT / np.sqrt(5 - 1 - 1))
    run.clients[0].mask(request, EncodedUpdate(np.full(LENGTH, C_INT + 1), False))


def restored(client, seed=99):
    """What another process makes of a session file."""
    return ClientMachine.restore(client.export(), random.Random(seed).randbytes)


def test_a_client_can_be_saved_and_restored_between_any_two_messages():
    run = Round()
    run.clients = [restored(client, 10 + client.member.index) for client in run.clients]
    run.keys()
    run.clients = [restored(client, 20 + client.member.index) for client in run.clients]
    run.vectors()
    run.clients = [restored(client) for client in run.clients]
    run.seeds()
    assert np.array_equal(run.server.aggregate().values, ideal_sum([vector(i) for i in range(5)]).values)
    client = run.clients[2]
    assert restored(client).export() == client.export()
    assert restored(client).unmask(run.requests[2]) == client.unmask(run.requests[2])


def test_a_damaged_session_is_a_storage_error():
    exported = Round().keys().vectors().clients[0].export()
    for damaged in (
        b"",
        exported[:-1],
        exported + b"\0",
        b"x" + exported[1:],
        exported[: len(exported) // 2],
    ):
        with pytest.raises(StorageError):
            ClientMachine.restore(damaged, random.Random(0).randbytes)


def secrets_of(client):
    state = client._state
    return [state.enc.secret(), state.mask.secret(), bytes(state.own_seed)]


def test_K1_no_secret_in_a_repr_or_a_pickle_or_an_error():
    run = Round().keys().vectors()
    client = run.clients[0]
    shown = [client, client._state, client._state.mask, run.server, run.server.cohort, vector(0)]
    shown += [
        MaskAnswer.decode(client.answered("mask", run.requests[0])),
        UnmaskAnswer(NO_HEAD, 0, secrets_of(client)[2]),
    ]
    text = " ".join(map(repr, shown))
    for secret in secrets_of(client):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
    for machine in (client, client._state, client._state.mask):
        with pytest.raises(TypeError):
            pickle.dumps(machine)


def test_K6_secrets_are_erased_when_the_seed_has_left():
    run = Round().keys().vectors()
    client = run.clients[0]
    enc, mask, seed = secrets_of(client)
    own_seed = client._state.own_seed
    client.unmask(run.server.unmask_requests()[0])
    assert bytes(own_seed) == bytes(32)
    exported = client.export()
    assert enc not in exported
    assert mask not in exported
    assert seed in exported  # in the stored answer: it has been sent
    client.close()
    assert seed not in client.export()
    assert client.phase == "closed"
    assert reason_of(client.setup, run.invitation) == "phase"


def test_own_masks_and_keys_are_drawn_afresh():
    drawn = []

    def source(size):
        drawn.append(size)
        return random.Random(len(drawn)).randbytes(size)

    run = Round()
    run.clients = [ClientMachine(client.member, source) for client in run.clients]
    run.keys().vectors()
    assert drawn == [32] * 20  # two keys, a nonce and a seed for each of five
