"""What a server can lie about to the site around a client: model, run, budget, rate, roster (catalogue, group B).

Each is refused with its own code, within 100 ms where nothing is trained, and nothing is spent: what arrives at the
server is a reason code, with no record beside it.

Longer than 400 lines because each lie has its case here.
"""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from datetime import timedelta

import numpy as np
import pytest

from client import submission
from client.participant import Run, participant_of
from tacit.errors import ProtocolError, Refused, StorageError
from tacit.secagg.identity import Identity
from tacit.secagg.keys import KeyPair
from tacit.secagg.messages import DealRequest, SetupAnswer, SetupRequest
from tacit.secagg.roster import Roster
from tacit.secagg.signed_roster import SignedRoster, check_first
from tests.unit.client_sites import (
    LABELS,
    POLICY,
    SERVER_IDENTITY,
    Round,
    answer,
    debits,
    experiment,
    fixed,
    invitation,
    model,
    participant,
    participants,
    setup_request,
    signed_roster,
    write_site,
    write_sites,
)

CEILING = {**POLICY, "epsilon_ceiling": 2.0, "delta": 1e-3}


@pytest.fixture(scope="module")
def private():
    return experiment()


@pytest.fixture(scope="module")
def run(private):
    return Run(private.to_toml())


@pytest.fixture(scope="module")
def arrays(private):
    return model(private)


def code(call, *arguments):
    """The reason of a refusal that took no more than 100 ms of the processor's time."""
    start = time.process_time()
    with pytest.raises((Refused, ProtocolError)) as error:
        call(*arguments)
    assert time.process_time() - start < 0.1
    return error.value.reason


def tampered(arrays, name="0.bias", **change):
    """The model with one value changed on its way to one client."""
    other = {key: array.copy() for key, array in arrays.items()}
    other[name].flat[0] = change.get("value", 0.5)
    return other


# ---- M0: what the server says of model and experiment is compared with what came


NAMED = {
    "B13 model": {"model": bytes(32)},
    "B14 config": {"config": bytes(32)},
    "B11 length": {"length": 5},
    "B33 roster": {"roster": bytes(32)},
}


@pytest.mark.parametrize("case", NAMED)
def test_B11_B13_B14_B33_what_the_server_says_is_compared_with_what_this_site_has(
    tmp_path, private, run, arrays, case
):
    folder = write_site(tmp_path / "north")
    body = setup_request(run, arrays, **NAMED[case])
    reply = answer(folder, private, "train.tacit0", arrays, body=body)
    assert (reply.error.reason, reply.has_content()) == ("refused:context", False)
    assert debits(folder) == []


def test_B13_another_model_for_one_client_is_refused(tmp_path, run, arrays):
    """By the client that got it, at M0; if its invitation speaks of it too, at M1: peers have signed another ctx0."""
    clients = participants(run, write_sites(tmp_path))
    other = tampered(arrays)
    assert code(submission.setup, clients[0], setup_request(run, arrays), other) == "context"

    round_ = Round(clients, arrays)
    told = invitation(run, other)
    odd = submission.setup(clients[0], SetupRequest(told).signed(SERVER_IDENTITY).encode(), other)
    for client in clients[1:]:
        round_.machine.collect_setup(submission.setup(client, round_.request, arrays))
    # The server puts the odd one's keys into U1 by its signature for the other context; each side sees a stranger's.
    answers = [SetupAnswer.decode(odd), *(round_.machine._setups[i] for i in (1, 2))]
    entries = tuple(a.entry for a in answers)
    signatures = tuple(a.signature for a in answers)
    for client, context in ((clients[0], told.ctx0()), (clients[1], round_.invitation.ctx0())):
        request = DealRequest(context, entries, signatures).encode()
        assert code(submission.deal, client, request) == "signature"
    assert (
        code(submission.deal, clients[0], DealRequest(round_.invitation.ctx0(), entries, signatures).encode())
        == "context"
    )


def test_B14_another_configuration_for_one_client_is_another_session(tmp_path, private, run, arrays):
    """Its rounds go on from nothing: no step of this experiment is answered under another one."""
    folder = write_site(tmp_path / "north")
    answer(folder, private, "train.tacit0", arrays, sessions="folder", body=setup_request(run, arrays))
    other = experiment(training__learning_rate=0.25)
    for step in range(1, 5):
        reply = answer(folder, other, f"train.tacit{step}", sessions="folder", body=b"")
        assert reply.error.reason == "refused:phase"


def test_B32_another_attempt_with_another_configuration_is_refused(tmp_path, private, run, arrays):
    folder = write_site(tmp_path / "north")
    first = answer(
        folder, private, "train.tacit0", arrays, sessions="folder", body=setup_request(run, arrays)
    )
    assert first.has_content()
    other = experiment(training__learning_rate=0.25)
    body = setup_request(Run(other.to_toml()), arrays, attempt=2)
    assert (
        answer(folder, other, "train.tacit0", arrays, sessions="folder", body=body).error.reason
        == "refused:config"
    )


# ---- B11, B22: an experiment that the members, or this site, have not agreed to


AGREED = {
    "clip": ({"clip": (1e-6, 0.5)}, {}),
    "noise": ({"noise": (1.0, 9.0)}, {}),
    "rounds": ({"rounds": (1, 3)}, {}),
    "epsilon": ({"epsilon_record": 1.0}, {}),
    "no privacy under a ceiling": ({"epsilon_record": 1.0}, {"private": False}),
    "noise from a seed under a ceiling": ({"epsilon_record": 3.0}, {"insecure_seeded_noise": True}),
    "no privacy for clients under a ceiling": ({"epsilon_client": 1.0}, {}),
}


@pytest.mark.parametrize("case", AGREED)
def test_B11_an_experiment_outside_the_rosters_ranges_is_refused(tmp_path, case):
    agreed, asked = AGREED[case]
    settings = experiment(**asked)
    folder = write_site(tmp_path / "north")
    (folder / "roster.json").write_bytes(signed(replace(signed_roster().roster, **agreed)).encode())
    client, start = participant(folder, settings), model(settings)
    assert code(submission.setup, client, setup_request(client.run, start), start) == "limits"
    assert client.session() is None and client.num_updates == 0


def signed(roster):
    """Signed by each of the three sites."""
    whole = SignedRoster(roster)
    for label in LABELS:
        whole = whole.sign(Identity.generate(fixed(label)))
    return whole


OVERRIDDEN = {
    "no secure sum": ({"secure_aggregation__enabled": False}, {}, "secure-aggregation"),
    "the ideal sum": ({"secure_aggregation__engine": "ideal"}, {}, "secure-aggregation"),
    "a longer update": ({"secure_aggregation__update_clip": 99.0}, {"max_update_norm": 9.0}, "update-norm"),
    "a larger budget": ({"privacy__record__epsilon": 1.9}, {"epsilon_ceiling": 1.5, "delta": 1e-3}, "budget"),
    "no privacy": ({"private": False}, {"epsilon_ceiling": 1.5, "delta": 1e-3}, "not-private"),
    "noise from a seed": ({"insecure_seeded_noise": True}, CEILING, "not-private"),
    "other code": ({"task": {"kind": "os:system", "options": {}}}, {}, "task"),
}


@pytest.mark.parametrize("case", OVERRIDDEN)
def test_B22_an_experiment_whose_security_is_overridden_is_refused_whatever_bundle_it_came_with(
    tmp_path, arrays, case
):
    changes, policy, reason = OVERRIDDEN[case]
    folder = write_site(tmp_path / "north", policy={**POLICY, **policy})
    reply = answer(folder, experiment(**changes), "train.tacit0", arrays, body=b"")
    assert (reply.error.reason, reply.has_content()) == (f"refused:{reason}", False)


def test_B22_fewer_corrupt_members_than_the_roster_reckons_with(tmp_path, private, run, arrays):
    folder = write_site(tmp_path / "north")
    roster = four(n_min=4, n_max=4, max_corrupt=2)
    (folder / "roster.json").write_bytes(signed(roster).sign(Identity.generate(fixed("east"))).encode())
    body = setup_request(run, arrays, roster=roster.digest())
    assert code(submission.setup, participant(folder, private), body, arrays) == "rules"


# ---- B24, B27


def test_B24_a_spent_budget_is_refused_before_anything_is_trained(tmp_path, private, run, arrays):
    client = participant(write_site(tmp_path / "north", policy=CEILING), private)
    for number in range(1, 5):
        client.debit("run-1", number, attempt=1)
    spent = len(debits(client.site.folder))
    for run_id in ("run-1", "run-2"):
        assert (
            code(submission.setup, client, setup_request(run, arrays, round_number=4, run_id=run_id), arrays)
            == "budget-spent"
        )
    assert client.num_updates == 0 and len(debits(client.site.folder)) == spent


def test_B27_rounds_faster_than_the_rate_limit(tmp_path, private, run, arrays):
    client = participant(write_site(tmp_path / "north", policy={**POLICY, "max_rounds_per_hour": 2}), private)
    for number in (1, 2):
        client.debit("run-1", number, attempt=1)
    request = setup_request(run, arrays, round_number=3)
    assert code(submission.setup, client, request, arrays) == "rate" and client.num_updates == 0


# ---- B25, B26


MODELS = {
    "B25 an array too many": (lambda a: {**a, "0.extra": a["0.bias"]}, "model-layout"),
    "B25 another shape": (lambda a: {**a, "0.weight": a["0.weight"].T.copy()}, "model-layout"),
    "B25 float64": (lambda a: {**a, "0.bias": a["0.bias"].astype(np.float64)}, "model-layout"),
    "B26 NaN": (lambda a: tampered(a, value=np.nan), "model-values"),
    "B26 infinite": (lambda a: tampered(a, value=np.inf), "model-values"),
    "B26 too long": (lambda a: tampered(a, value=1e5), "model-norm"),
    "B26 as long as float32 can be": (lambda a: tampered(a, value=3e38), "model-norm"),
}


@pytest.mark.parametrize("case", MODELS)
def test_B25_B26_a_model_that_is_no_model_of_this_task_is_refused_though_its_hash_is_right(
    tmp_path, private, run, arrays, case
):
    spoil, reason = MODELS[case]
    folder = write_site(tmp_path / "north")
    spoilt = spoil(arrays)
    body = setup_request(run, spoilt) if reason != "model-layout" else setup_request(run, arrays)
    assert code(participant(folder, private).guard, "run-1", 1, spoilt) == reason
    reply = answer(folder, private, "train.tacit0", spoilt, body=body)
    assert (reply.error.reason, reply.has_content()) == (f"refused:{reason}", False)
    assert debits(folder) == []


# ---- B23: a server, or a site, that was put back


def test_B23_a_round_that_goes_back_is_refused_after_a_restart_too(tmp_path, private, run, arrays):
    folder = write_site(tmp_path / "north")
    body = setup_request(run, arrays, round_number=3)
    assert answer(folder, private, "train.tacit0", arrays, sessions="folder", body=body).has_content()
    for number, reason in ((2, "round"), (3, "attempt")):
        participant_of.cache_clear()
        again = setup_request(run, arrays, round_number=number, server_pk=KeyPair(bytes([7] * 32)).public)
        reply = answer(folder, private, "train.tacit0", arrays, sessions="folder", body=again)
        assert reply.error.reason == f"refused:{reason}"


@pytest.mark.parametrize("what", ["ledger", "journal"])
def test_B23_a_ledger_or_journal_older_than_last_seen_is_refused(tmp_path, private, run, arrays, what):
    """One file comes from a backup and its head does not: nothing is answered, and nothing is written."""
    folder = write_site(tmp_path / "north")
    clients = [
        participant(folder, private, on_disk=True),
        *participants(run, [write_site(tmp_path / name, name) for name in LABELS[1:]]),
    ]
    Round(clients, arrays).keys().vectors()
    file = folder / what / f"{what}.jsonl"
    old = file.read_bytes()
    Round(clients, arrays, round_number=2).keys().vectors()
    file.write_bytes(old)
    client = participant(folder, private, on_disk=True)
    with pytest.raises(StorageError):
        submission.setup(client, setup_request(run, arrays, round_number=3), arrays)
    assert file.read_bytes() == old
    participant_of.cache_clear()
    body = setup_request(run, arrays, round_number=3)
    reply = answer(folder, private, "train.tacit0", arrays, sessions="folder", body=body)
    assert (reply.error.reason, reply.has_content()) == ("refused:unavailable", False)


def test_B23_B34_a_site_put_back_as_a_whole_is_refused_by_its_peers(tmp_path, private, run, arrays):
    folders = write_sites(tmp_path)
    clients = [participant(folder, private, on_disk=True) for folder in folders]
    Round(clients, arrays).keys().vectors()
    backup = tmp_path / "backup"
    shutil.copytree(folders[0], backup)
    Round(clients, arrays, round_number=2).keys().vectors()
    shutil.rmtree(folders[0])
    shutil.copytree(backup, folders[0])
    clients[0] = participant(folders[0], private, on_disk=True)
    round_ = Round(clients, arrays, round_number=3)
    for client in clients:
        round_.machine.collect_setup(submission.setup(client, round_.request, arrays))
    for client, request in round_.by_index(round_.machine.deal_requests())[1:]:
        assert code(submission.deal, client, request) == "peer-counter"


# ---- B28, B31


BODIES = [b"", b"\xff" * 4, b"\0" * 64, b"\xff" * 65536]


@pytest.mark.parametrize("step", range(5))
def test_B28_what_declares_more_than_it_is_is_refused(tmp_path, private, run, arrays, step):
    clients = participants(run, write_sites(tmp_path))
    call = (submission.setup, submission.deal, submission.mask, submission.confirm, submission.unmask)[step]
    Round(clients, arrays).keys()
    more = (arrays,) if step == 0 else ()
    for body in BODIES:
        assert code(call, clients[0], body, *more) in ("label", "encoding", "phase")
    assert debits(clients[0].site.folder) == []


def test_B31_who_is_not_asked_to_confirm_has_paid_all_the_same(tmp_path, run, arrays):
    """Whether a masked vector is opened is not in its sender's hands: it is spent when it leaves."""
    clients = participants(run, write_sites(tmp_path))
    round_ = Round(clients, arrays).keys()
    assert [len(debits(client.site.folder)) for client in clients] == [0, 0, 0]
    round_.vectors()
    assert [len(debits(client.site.folder)) for client in clients] == [1, 1, 1]
    Round(clients, arrays, round_number=2).keys().vectors()  # M3 of the first never came
    assert [len(debits(client.site.folder)) for client in clients] == [2, 2, 2]


# ---- B33


def coordinators_own():
    """A roster that nobody but the coordinator has signed, under each name that it could use."""
    roster = signed_roster().roster
    root = Identity.generate(fixed("another key of the coordinator"))
    by_server = SERVER_IDENTITY.sign("roster", roster.previous, 0, roster.digest())
    rooted = replace(roster, root_key=root.public)
    yield "unsigned", SignedRoster(roster)
    yield (
        "in a member's name",
        replace(signed(roster), signatures={**signed(roster).signatures, 0: by_server}),
    )
    yield "by all but one", SignedRoster(roster, {k: v for k, v in signed(roster).signatures.items() if k})
    yield "as its root", SignedRoster(rooted).sign(root)


@pytest.mark.parametrize("case", ["unsigned", "in a member's name", "by all but one", "as its root"])
def test_B33_a_roster_by_the_coordinator_is_refused(tmp_path, private, run, arrays, case):
    roster = dict(coordinators_own())[case]
    assert code(check_first, roster) == "roster-signature"
    folder = write_site(tmp_path / "north")
    (folder / "roster.json").write_bytes(roster.encode())
    body = setup_request(run, arrays, roster=roster.roster.digest())
    reply = answer(folder, private, "train.tacit0", arrays, body=body)
    assert (reply.error.reason, reply.has_content()) == ("refused:unavailable", False)


def test_B33_the_coordinators_key_is_neither_a_members_nor_the_roots():
    roster = signed_roster().roster
    with pytest.raises(ProtocolError, match="roster"):
        replace(roster, root_key=roster.server_key)


# ---- B4, B35


MEMBERS = {
    "B35 strike-list": ({"strikes": frozenset({1})}, "strike-list"),
    "B4 revoked": ({"revoked": frozenset({1})}, "revoked"),
    "B4 expired": ({}, "expired"),
}


@pytest.mark.parametrize("case", MEMBERS)
def test_B4_B35_a_cohort_with_a_member_that_may_not_take_part_is_refused(
    tmp_path, private, run, arrays, case
):
    """Four members, so that three are left: the server invites the fourth all the same."""
    changes, reason = MEMBERS[case]
    roster = four(**changes)
    if reason == "expired":
        old = replace(roster.enrolled[1], expiry=roster.enrolled[1].expiry - timedelta(days=366))
        roster = replace(roster, enrolled=(roster.enrolled[0], old, *roster.enrolled[2:]))
    whole = signed(roster).sign(Identity.generate(fixed("east")))
    folders = write_sites(tmp_path)
    for folder in folders:
        (folder / "roster.json").write_bytes(whole.encode())
    clients = participants(run, folders)
    round_ = Round(clients, arrays, roster=roster.digest())
    for client in clients:
        round_.machine.collect_setup(submission.setup(client, round_.request, arrays))
    (_, request), *_ = round_.by_index(round_.machine.deal_requests())
    assert code(submission.deal, clients[0], request) == reason


def four(**changes) -> Roster:
    """The three sites and a fourth."""
    roster = signed_roster().roster
    key = Identity.generate(fixed("east")).public
    member = replace(roster.enrolled[0].member, index=3, label="east", key=key)
    return replace(roster, enrolled=(*roster.enrolled, replace(roster.enrolled[0], member=member)), **changes)
