"""Every lie that a server can tell a client about a sum is refused with its own reason code (catalogue, group B).

The lies are in `lies_about_keys.py` and `lies_about_sets.py`. What a server can lie about to the site around the
client stands in `test_site_lies.py`; lies about a ring, and whole attacks, in `test_secagg_attacks.py`.
"""

from __future__ import annotations

import time
from copy import deepcopy
from dataclasses import replace
from datetime import timedelta

import pytest

from tacit.errors import ProtocolError
from tacit.secagg.in_process import STEPS, TODAY, Attempt, Federation
from tacit.secagg.messages import Complaint, SetupRequest
from tests.unit import lies_about_keys, lies_about_sets
from tests.unit.lying_server import (
    RULES,
    VICTIM,
    answer,
    honest,
    outcome,
    scene,
    seconds_to_refuse,
    secrets_of,
    vector,
)

LIES = [*lies_about_keys.LIES, *lies_about_sets.LIES]
EACH = pytest.mark.parametrize("lie", LIES, ids=lambda lie: f"{lie.step}: {lie.name}")


@pytest.mark.slow
@EACH
def test_B_a_lie_is_refused_within_100_ms_among_200_clients(lie):
    assert min(seconds_to_refuse(scene(200), lie) for _ in range(3)) < 0.1


@pytest.mark.parametrize("n", [10, 100])
@EACH
def test_B_a_lie_is_refused_within_100_ms_with_its_own_reason_code_and_changes_nothing(n, lie):
    """But for a complaint, which ends the attempt for this client: no secret is left, and nothing more is answered."""
    stage = scene(n)
    machine, request = stage.victim(lie.step), lie.request(stage)
    before, head = machine.export(), machine._journal.head
    assert outcome(stage, machine, lie, request) == lie.reason
    assert machine._journal.head == head
    right = stage.moments[lie.step].request
    if lie.reason == "complaint":
        complaint = Complaint.decode(machine.answered("complain", request)[0])
        assert (complaint.sender, complaint.dealer) == (VICTIM, 0) and secrets_of(machine) == []
        assert outcome(stage, machine, honest("mask"), right) == "phase"
    else:
        assert machine.export() == before
        assert outcome(stage, machine, honest(lie.step), right) == ""
    assert min(seconds_to_refuse(stage, lie) for _ in range(1 if n < 100 else 3)) < 0.1


def test_the_error_of_a_refusal_has_no_secret_in_it():
    stage = scene(10)
    for lie in LIES:
        machine, request = stage.victim(lie.step), lie.request(stage)
        secret = [text for value in secrets_of(machine) for text in (repr(value)[2:-1], value.hex())]
        if lie.reason != "complaint":
            with pytest.raises(ProtocolError) as error:
                answer(stage, machine, lie.step, request, **lie.shown)
            assert not any(text in str(error.value) for text in secret)


ROSTERS = {
    "B4 revoked": ({"revoked": frozenset({0})}, "revoked"),
    "B4 expired": ({}, "expired"),
    "B35 on the strike list": ({"strikes": frozenset({0})}, "strike-list"),
    "B9 fewer than n_min": ({"n_min": -1}, "cohort-size"),
    "B9 more than n_max": ({"n_max": -1}, "cohort-size"),
}


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("case", ROSTERS)
def test_B4_B9_B35_a_cohort_that_the_members_have_not_agreed_to_is_refused(n, case):
    """The server invites somebody all the same, or too few or too many; all signatures are good."""
    changes, reason = ROSTERS[case]
    federation = Federation(n, RULES[n])
    roster = federation.roster
    if reason == "expired":
        first = replace(roster.enrolled[0], expiry=TODAY - timedelta(days=1))
        changes = {"enrolled": (first, *roster.enrolled[1:])}
    federation.roster = replace(roster, **{k: n - 1 if v == -1 else v for k, v in changes.items()})
    absent = [n - 1, n - 2] if "n_min" in changes else []
    attempt = Attempt(federation, [vector(i) for i in range(n)], {"setup": absent})
    attempt.deliver("setup", attempt.requests("setup"))
    request, machine = attempt.requests("deal")[VICTIM], attempt.clients[VICTIM]
    head, start = machine._journal.head, time.process_time()
    with pytest.raises(ProtocolError) as error:
        machine.deal(request)
    assert time.process_time() - start < 0.1
    assert error.value.reason == reason
    assert (machine.phase, machine._journal.head) == ("keyed", head)


# ---- the same step again, another step, another time


@pytest.mark.parametrize("n", [10, 100])
@pytest.mark.parametrize("step", STEPS)
def test_B18_a_repeated_request_gets_the_same_bytes_and_another_one_is_refused(n, step):
    stage = scene(n)
    machine, request = stage.victim(step), stage.moments[step].request
    assert outcome(stage, machine, honest(step), request) == ""
    stored, head, state = machine.answered(step, request), machine._journal.head, machine.export()
    assert outcome(stage, machine, honest(step), request) == ""
    assert machine.answered(step, request) == stored
    for lie in LIES:
        if lie.step == step:
            reason = outcome(stage, machine, lie, lie.request(stage))
            assert reason == "phase" or reason == lie.reason in ("encoding", "rules"), lie.name
    assert (machine._journal.head, machine.export()) == (head, state)


ORDER = ("new", "keyed", "dealt", "masked", "confirmed", "unmasked")
ALLOWED = {("setup", "new"), ("deal", "keyed"), ("mask", "dealt"), ("confirm", "masked")}
ALLOWED |= {("unmask", "masked"), ("unmask", "confirmed")}


@pytest.mark.parametrize("n", [10, 100])
def test_B20_a_step_out_of_order_is_refused(n):
    stage = scene(n)
    at = dict(zip(STEPS, ORDER, strict=False))
    for now in STEPS:
        for asked in STEPS:
            machine = stage.victim(now)
            machine._state.answers.clear()  # else an earlier step gets its stored answer
            reason = outcome(stage, machine, honest(asked), stage.moments[asked].request)
            assert (reason == "") == ((asked, at[now]) in ALLOWED), (now, asked)
            assert reason in ("", "phase")
    done = stage.victim("unmask")
    assert outcome(stage, done, honest("unmask"), stage.moments["unmask"].request) == ""
    done._state.answers.clear()
    for asked in STEPS:
        assert outcome(stage, done, honest(asked), stage.moments[asked].request) == "phase"


@pytest.mark.parametrize("n", [10, 100])
def test_B19_a_finished_session_replayed_to_a_fresh_process_is_refused(n):
    stage = scene(n)
    journal = deepcopy(stage.federation.journals[VICTIM])  # as it stands after the round
    fresh = stage.victim("setup", journal)
    assert outcome(stage, fresh, honest("setup"), stage.moments["setup"].request) == "attempt"
    for step in list(STEPS)[1:]:
        assert outcome(stage, fresh, honest(step), stage.moments[step].request) == "phase"
    third = SetupRequest(replace(stage.attempt.invitation, attempt=3)).signed(
        stage.federation.server_identity
    )
    assert outcome(stage, fresh, honest("setup"), third.encode()) == ""
    assert outcome(stage, fresh, honest("deal"), stage.moments["deal"].request) == "context"
