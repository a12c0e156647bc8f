import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import ConfigError, ProtocolError, Refused, StorageError
from tacit.secagg import client as client_module
from tacit.secagg import server as server_module
from tacit.secagg.client import ClientMachine
from tacit.secagg.contexts import NO_HEAD, Invitation, roster_digest
from tacit.secagg.ideal import ideal_sum
from tacit.secagg.members import SERVER, Entry, Member
from tacit.secagg.messages import MaskAnswer, MaskRequest, SetupAnswer, UnmaskAnswer, UnmaskRequest
from tacit.secagg.parameters import Rules
from tacit.secagg.server import MembersMissing, ServerMachine
from tacit.update import EncodedUpdate, MaskedUpdate

C_INT, LENGTH = 1024, 100
RULES = Rules(max_corrupt=1, max_dropouts=1, c_int=C_INT)


def invite(n=5, rules=RULES, **changes):
    members = [Member(index, f"site {index}") for index in range(n)]
    fields = {"run": "r", "round": 1, "attempt": 1, "model": NO_HEAD, "config": NO_HEAD, "length": LENGTH}
    fields |= {"roster": roster_digest(members), "num_invited": n, "rules": rules}
    invitation = Invitation(**{**fields, **changes})
    return invitation, members


def vector(index):
    values = np.random.default_rng(index).integers(-C_INT, C_INT + 1, LENGTH)
    return EncodedUpdate(values, False)


class Round:
    """Honest parties, driven step by step."""

    def __init__(self, n=5, rules=RULES, seed=0):
        self.invitation, members = invite(n, rules)
        self.server = ServerMachine(self.invitation, members)
        self.clients = [ClientMachine(m, random.Random(100 * seed + m.index).randbytes) for m in members]

    def keys(self, present=None):
        for client in self.clients if present is None else [self.clients[i] for i in present]:
            self.server.collect_setup(client.setup(self.invitation))
        return self

    def vectors(self, absent=()):
        self.requests = self.server.mask_requests()
        for index, request in self.requests.items():
            if index not in absent:
                self.server.collect_masked(self.clients[index].mask(request, vector(index)))
        return self

    def seeds(self, absent=()):
        self.requests = self.server.unmask_requests()
        for index, request in self.requests.items():
            if index not in absent:
                self.server.collect_unmask(self.clients[index].unmask(request))
        return self


def reason_of(call, *arguments):
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    return error.value.reason


# --- the client ------------------------------------------------------------------------------------------


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


# --- sessions and secrets --------------------------------------------------------------------------------


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


# --- the server ------------------------------------------------------------------------------------------


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


# --- tables and rules ------------------------------------------------------------------------------------


def test_the_transition_tables_name_methods_and_reach_the_end():
    for module, machine, first, last in (
        (client_module, ClientMachine, "new", "unmasked"),
        (server_module, ServerMachine, "keys", "done"),
    ):
        reached = {first}
        for _ in module.TRANSITIONS:
            reached |= {after for (phase, _), after in module.TRANSITIONS.items() if phase in reached}
        assert last in reached
        assert all(hasattr(machine, step) for _, step in module.TRANSITIONS)


# n, c, D -> T, D_eff: the thresholds of the design.
@pytest.mark.parametrize(
    ("n", "c", "dropouts", "threshold", "effective"),
    [
        (3, 1, 0, 3, 0),
        (3, 1, 2, 3, 0),
        (4, 1, 1, 3, 1),
        (5, 1, 1, 4, 1),
        (10, 1, 0, 6, 0),
        (100, 10, 20, 56, 20),
        (100, 33, 50, 67, 33),
        (200, 66, 66, 134, 66),
    ],
)
def test_the_thresholds_follow_from_the_size_of_the_cohort(n, c, dropouts, threshold, effective):
    parameters = Rules(c, dropouts, C_INT).parameters(n)
    assert (parameters.threshold, parameters.max_dropouts, parameters.neighbours) == (
        threshold,
        effective,
        n - 1,
    )
    assert parameters.share_threshold == threshold


def test_a_cohort_without_two_honest_vectors_is_refused():
    for n, c in ((2, 1), (3, 2), (1, 1), (0, 1), (5, 4)):
        with pytest.raises(ConfigError):
            Rules(c, 0, C_INT).parameters(n)
    for bad in (
        {"max_corrupt": 0},
        {"max_dropouts": -1},
        {"c_int": 0},
        {"c_int": 2**25},
        {"noise_multiplier": np.nan},
    ):
        with pytest.raises(ConfigError):
            Rules(**{"max_corrupt": 1, "max_dropouts": 0, "c_int": C_INT, **bad})


def test_the_test_switch_does_not_pass_the_wire():
    pair = Rules(0, 0, C_INT, allow_no_corrupt=True)
    assert pair.parameters(2).threshold == 2
    assert reason_of(Invitation.decode, invite(rules=pair)[0].encode()) == "rules"
    assert Invitation.decode(invite()[0].encode()) == invite()[0]


def test_a_member_has_an_index_below_the_servers_and_a_label():
    for index, label in ((-1, "a"), (SERVER, "a"), (0, ""), (0, "x" * 1025), (0, "\ud800")):
        assert reason_of(Member, index, label) == "member"
    assert Entry(Member(3, "x"), b"", b"", b"", 0, b"").index == 3
