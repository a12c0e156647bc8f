"""One client's machine: its answers are given once, outlast a restart, and hold no secret of its own."""

import pickle
import random
from dataclasses import replace

import numpy as np
import pytest

from tacit.errors import ProtocolError, StorageError
from tacit.secagg.client import ClientMachine
from tacit.secagg.client_state import ClientState
from tacit.secagg.in_process import TODAY, Federation
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import ConfirmRequest, MaskRequest, UnmaskAnswer, UnmaskRequest
from tacit.secagg.sharing import Opening
from tacit.update import EncodedUpdate
from tests.unit.secagg_round import RULES, STEPS, Round, plain_sum, reason_of


def again(run, index, exported=None):
    """What another process of the same site makes of the session file; the journal is the same."""
    fresh = run.federation.client(index)
    return fresh.restore(run.clients[index].export() if exported is None else exported)


# --- answers ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", STEPS)
def test_B18_the_same_request_gets_the_same_bytes_and_another_one_is_refused(step):
    run, other = Round(), Round(seed=1)
    run.run()
    other.run()
    for client in (run.clients[2], again(run, 2)):
        more = {"setup": (run.invitation,), "mask": (run.encoded[3],)}.get(step, ())
        assert client.answered(step, run.requests[step][2]) is not None
        answer = getattr(client, step)(run.requests[step][2], *more)
        assert answer == run.answers[step][2]
        before = client.export()
        for foreign in (other.requests[step][2], run.requests[step][2] + b"\0", b""):
            assert client.answered(step, foreign) is None
            assert reason_of(getattr(client, step), foreign, *more) == "phase"
        for name in set(STEPS) - {step}:  # an answer belongs to its step
            assert client.answered(name, run.requests[step][2]) is None
        assert client.export() == before


def test_every_client_gives_of_each_other_one_share_of_the_seed_or_of_the_key_never_both():
    run = Round().until("deal").step("mask", gone=(2,)).step("confirm")
    held = {
        i: {v: (bytes(s.own_share), bytes(s.key_share)) for v, s in run.clients[i]._state.shares.items()}
        for i in (0, 1, 3, 4)
    }
    run.step("unmask")
    for i, answer in run.answers["unmask"].items():
        message = UnmaskAnswer.decode(answer)
        assert message.num_openings == 5
        for dealer in range(5):
            own, key = held[i][dealer]
            opened, closed = (key, own) if dealer == 2 else (own, key)
            assert Opening.decode(message.opening(dealer)).share == opened
            assert closed not in answer


def test_a_client_that_signed_no_set_opens_one_and_then_signs_no_other():
    run = Round().until("mask").step("confirm", gone=(4,))
    request = run.ask("unmask")[4]
    before = run.clients[4].export()
    run.collect("unmask", run.clients[4].unmask(request))
    signed = ConfirmRequest.decode(run.requests["confirm"][4])
    smaller = ConfirmRequest(signed.context, (1, 2, 3, 4), signed.proofs[1:]).encode()
    assert reason_of(run.clients[4].confirm, smaller) == "phase"
    assert reason_of(again(run, 4, before).confirm, smaller) == "survivors"


def test_the_answers_are_the_same_for_any_number_of_threads():
    answers = []
    for threads in (1, 3):
        federation = Federation(5, RULES, random.Random(0).randbytes)
        run = Round(federation=federation, length=200_000)
        for i in run.clients:
            run.clients[i] = ClientMachine(
                i,
                federation.identities[i],
                federation.roster,
                federation.journals[i],
                TODAY,
                federation.random_bytes,
                threads=threads,
            )
        run.run()
        answers.append(run.answers)
    assert answers[0] == answers[1]


# --- restarts --------------------------------------------------------------------------------------------------


def test_D3_a_client_can_be_saved_and_restored_between_any_two_messages():
    run = Round()
    for step in STEPS:
        for i in run.clients:
            exported = run.clients[i].export()
            run.clients[i] = again(run, i)
            assert run.clients[i].export() == exported
        run.step(step, gone=(2,) if step == "confirm" else ())
    assert run.server.aggregate().values.tolist() == plain_sum(range(5))
    for i in (0, 1, 3, 4):
        client = again(run, i)
        for step in STEPS:
            stored = client.answered(step, run.requests[step][i])
            assert stored == (run.answers[step][i] if step == "mask" else (run.answers[step][i], b""))


def test_D3_a_client_can_be_saved_between_opening_its_rows_and_masking():
    run = Round().until("deal")
    request = run.ask("mask")[0]
    assert run.clients[0].receive(request) is None
    run.clients[0] = again(run, 0)
    run.collect("mask", run.clients[0].mask(request, run.encoded[0]))
    for i in (1, 2, 3, 4):
        run.collect("mask", run.answer("mask", i))
    assert run.until("unmask").server.aggregate().values.tolist() == plain_sum(range(5))


@pytest.mark.parametrize(
    ("step", "reason"),
    [("setup", "attempt"), ("deal", "peer-counter"), ("mask", "masked"), ("confirm", "survivors")],
)
def test_D3_an_old_session_never_answers_again_whatever_is_asked(step, reason):
    """No second keys in an attempt, no second rows under a sealing key, no second vector, no second set."""
    run = Round()
    for earlier in list(STEPS)[: list(STEPS).index(step)]:
        run.step(earlier)
    if step == "mask":
        assert run.clients[0].receive(run.ask("mask")[0]) is None
    old = run.clients[0].export()
    if step == "mask":
        run.collect("mask", run.clients[0].mask(run.requests["mask"][0], run.encoded[0]))
    else:
        run.step(step)
    client, request = again(run, 0, old), run.requests[step][0]
    if step == "setup":
        assert reason_of(client.setup, request, run.invitation) == reason
    elif step == "mask":
        assert reason_of(client.mask, request, run.encoded[0]) == reason
    elif step == "deal":
        assert reason_of(client.deal, request) == reason
    else:
        asked = ConfirmRequest.decode(request)
        smaller = ConfirmRequest(asked.context, asked.survivors[:-1], asked.proofs[:-1])
        assert reason_of(client.confirm, smaller.encode()) == reason
        assert client.confirm(request) == run.answers["confirm"][0]  # the same set it may sign again
        return
    assert client.export() == old


def test_a_damaged_session_is_a_storage_error():
    run = Round().until("mask")
    exported = run.clients[0].export()
    cuts = (b"", exported[:-1], exported + b"\0", b"x" + exported[1:], exported[: len(exported) // 2])
    for damaged in cuts:
        with pytest.raises(StorageError, match="damaged"):
            again(run, 0, damaged)
    with pytest.raises(StorageError, match="another member"):
        again(run, 1, exported)
    elsewhere = ClientState.decode(exported)
    elsewhere.phase = "nowhere"
    row = run.clients[0]._state.shares[1].encode()
    assert exported.count((1).to_bytes(8) + len(row).to_bytes(4) + row) == 1
    twice = exported.replace(
        (1).to_bytes(8) + len(row).to_bytes(4) + row, bytes(8) + len(row).to_bytes(4) + row
    )
    for damaged in (elsewhere.encode(), twice):  # one dealer's row stands there under another's index
        with pytest.raises(StorageError, match="damaged"):
            again(run, 0, damaged)


# --- secrets ---------------------------------------------------------------------------------------------------


def secrets_of(client):
    state = client._state
    shares = [bytes(s) for row in state.shares.values() for s in (row.own_share, row.key_share, row.salt)]
    return [state.enc.secret(), state.mask.secret(), bytes(state.own_seed), *shares]


def test_K1_no_secret_in_a_repr_or_a_pickle_or_an_error():
    run = Round().until("unmask")
    twin = Round().until("mask")
    client = twin.clients[0]
    shown = [client, client._state, client._state.mask, client._state.shares, twin.encoded[0]]
    shown += [
        run.server,
        run.server._openings,
        run.server.cohort,
        UnmaskAnswer.decode(run.answers["unmask"][0]),
    ]
    shown += [run.identity(0), client.cohort]
    text = " ".join(map(repr, shown))
    for secret in secrets_of(client):
        assert repr(secret)[2:-1] not in text
        assert secret.hex() not in text
    for machine in (client, client._state, client._state.mask, client._state.shares[1], run.identity(0)):
        with pytest.raises(TypeError):
            pickle.dumps(machine)


def test_K6_secrets_are_erased_when_the_shares_have_left():
    run = Round().until("confirm")
    client = run.clients[0]
    secrets, seed, row = secrets_of(client), client._state.own_seed, client._state.shares[1]
    run.step("unmask")
    assert bytes(seed) == bytes(32)
    assert bytes(row.own_share + row.key_share) == bytes(66)
    exported = client.export()
    enc, mask, own_seed, *_ = secrets
    for secret in (enc, mask, own_seed, *secrets[4::3]):  # the shares of mask keys: none was asked for
        assert secret not in exported
    assert secrets[3] in exported  # in the stored answer: it has been sent
    client.close()
    assert secrets[3] not in client.export()
    assert client.phase == "closed"
    for step in STEPS:
        more = {"setup": (run.invitation,), "mask": (run.encoded[0],)}.get(step, ())
        assert reason_of(getattr(client, step), run.requests[step][0], *more) == "phase"


def test_K6_a_complaint_erases_what_was_opened_before_it():
    run = Round().until("deal")
    request = MaskRequest.decode(run.ask("mask")[0])
    opened, client = [], run.clients[0]
    honest = client._opened

    def watched(*arguments):
        opened.append(honest(*arguments))
        return opened[-1]

    client._opened = watched
    garbled = replace(request, rows=request.rows[:-1] + bytes([request.rows[-1] ^ 1])).encode()
    assert client.receive(garbled) == client.receive(garbled)
    assert client.phase == "complained"
    assert len(opened) == 4
    assert {bytes(row.own_share + row.key_share) for row in opened} == {bytes(66)}
    assert client._state.enc is None
    assert reason_of(client.mask, run.requests["mask"][0], run.encoded[0]) == "phase"
    assert reason_of(client.receive, run.requests["mask"][0]) == "phase"


def test_secrets_are_drawn_afresh_for_every_attempt():
    run = Round().until("mask")
    second = Round(federation=run.federation, attempt=2).until("mask")
    drawn = [secret for r in (run, second) for c in r.clients.values() for secret in secrets_of(c)[:3]]
    entries = [e for r in (run, second) for e in r.server.cohort.entries.values()]
    assert len(set(drawn)) == 30
    assert len({entry.nonce for entry in entries}) == 10
    (_, one), (_, other) = run.answers["mask"][0], second.answers["mask"][0]
    words = [np.frombuffer(y, dtype=np.uint8) for y in (one, other)]
    assert (words[0] == words[1]).mean() < 0.2


def test_A14_a_mask_belongs_to_one_context_and_one_pair():
    one, other = (KeyPair(bytes([i]) * 32) for i in (1, 2))
    seed = one.mask_seed(other.public, ctx2=bytes(32), u=1, v=2)
    assert seed == other.mask_seed(one.public, ctx2=bytes(32), u=1, v=2)
    for changed in ({"ctx2": b"\1" * 32}, {"u": 0}, {"v": 3}, {"u": 2, "v": 1}):
        assert one.mask_seed(other.public, **{"ctx2": bytes(32), "u": 1, "v": 2, **changed}) != seed
    assert one.share_key(other.public, ctx1=bytes(32), u=1, v=2) != seed


def test_a_refused_vector_can_be_put_right():
    run = Round().until("deal")
    request, client = run.ask("mask")[0], run.clients[0]
    assert reason_of(client.mask, request, run.encoded[0]) == "phase"  # its rows have not been opened
    assert client.receive(request) is None
    assert client.receive(request) is None  # asked again before the answer
    other = replace(MaskRequest.decode(request), masking=(0, 1, 2, 3)).encode()
    assert reason_of(client.mask, other, run.encoded[0]) == "phase"
    assert reason_of(client.receive, other) == "rows"
    client.mask(request, EncodedUpdate(run.encoded[0].values, False))


def test_what_a_machine_says_of_itself():
    client = Round().until("setup").clients[3]
    assert repr(client) == "<ClientMachine of member 3: keyed>"
    assert (client.index, client.phase) == (3, "keyed")
    with pytest.raises(ProtocolError, match="no cohort"):
        client.cohort  # noqa: B018
    assert reason_of(Round().clients[0].receive, b"") == "phase"
    assert reason_of(client.unmask, UnmaskRequest(bytes(32), (1, 2), ()).encode()) == "phase"
