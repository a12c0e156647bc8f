"""Whole attacks of a lying server: sessions put back, attempts mixed up, a client killed between two lies.

Single lies are in `test_secagg_lies.py`, those about a ring in `test_secagg_lies_ring.py`.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
from copy import deepcopy
from dataclasses import replace
from itertools import count

import numpy as np
import pytest

from tacit.errors import ProtocolError, StorageError
from tacit.secagg.contexts import ctx2
from tacit.secagg.in_process import STEPS, Attempt, Federation
from tacit.secagg.journal import FileJournal
from tacit.secagg.messages import (
    ROW_BYTES,
    Complaint,
    ConfirmAnswer,
    ConfirmRequest,
    DealRequest,
    MaskAnswer,
    SetupRequest,
    UnmaskRequest,
)
from tacit.secagg.parameters import Rules
from tests.unit import lies_about_sets
from tests.unit.lying_server import (
    C_INT,
    RULES,
    VICTIM,
    Lie,
    answer,
    honest,
    outcome,
    scene,
    vector,
)


def reason_of(call, *arguments):
    with pytest.raises(ProtocolError) as error:
        call(*arguments)
    return error.value.reason


# ---- a session put back, or two processes that go on from the same one


def other_u1(stage, request):
    """The last member is left out."""
    return DealRequest(request.context, request.entries[:-1], request.signatures[:-1])


def other_u2(stage, request):
    """The last member but one is left out, as D = 2 allows."""
    return replace(request, masking=request.masking[:-1], rows=request.rows[:-ROW_BYTES])


def with_other_survivors(stage, request):
    """U3 with the one in it that sent no vector, and its forged word that it did."""
    late = stage.n - 2
    tag = bytes(16)
    forged = late, tag, stage.signed(MaskAnswer(request.context, late, tag), late)
    return replace(request, survivors=(*request.survivors[1:], late), proofs=(*request.proofs[1:], forged))


OTHER_U3 = lies_about_sets.UNMASK["B16 a second set of survivors"][0]
TWICE = {
    "shares dealt to the same clients": ("deal", honest("deal").alter, "peer-counter"),
    "shares dealt to other clients": ("deal", other_u1, "peer-counter"),
    "a vector masked in the same context": ("mask", honest("mask").alter, "masked"),
    "a vector masked in another context": ("mask", other_u2, "masked"),
    "another set of survivors confirmed": ("confirm", with_other_survivors, "survivors"),
    "another set of survivors opened": ("unmask", OTHER_U3, "survivors"),
    "an invitation answered": ("setup", honest("setup").alter, "attempt"),
}


@pytest.mark.parametrize("case", TWICE)
def test_B16_B18_a_session_that_was_put_back_does_nothing_a_second_time(case):
    """The session's file is an old copy, the journal is not: no key seals twice, no vector is masked twice."""
    step, alter, reason = TWICE[case]
    stage = scene(10)
    once = stage.victim(step)
    assert outcome(stage, once, honest(step), stage.moments[step].request) == ""
    lie = Lie(case, step, alter, reason)
    head = once._journal.head
    again = stage.victim(step, once._journal)
    assert outcome(stage, again, lie, lie.request(stage)) == reason
    assert once._journal.head == head


def test_B18_the_same_survivors_are_confirmed_again_after_a_restart_with_the_same_bytes():
    stage = scene(10)
    once = stage.victim("confirm")
    request = stage.moments["confirm"].request
    first = answer(stage, once, "confirm", request)
    assert answer(stage, stage.victim("confirm", once._journal), "confirm", request) == first


def test_B34_a_site_that_was_put_back_as_a_whole_is_found_out_by_its_peers():
    """Journal and session come from a backup: the site cannot know, but all others refuse to deal to it."""
    federation = Federation(5, Rules(1, 1, C_INT))
    backup = deepcopy(federation.journals[0])
    Attempt(federation, [vector(i) for i in range(5)]).run()
    federation.journals[0] = backup
    attempt = Attempt(federation, [vector(i) for i in range(5)], round_number=2)
    attempt.deliver("setup", attempt.requests("setup"))
    requests = attempt.requests("deal")
    for client in attempt.clients[1:]:
        assert reason_of(client.deal, requests[client.index]) == "peer-counter"


def test_an_experiment_under_which_more_may_vanish_than_the_members_agreed_on_is_refused():
    """They agreed on sums over five of six or more; the server's experiment makes do with four of six."""
    federation = Federation(6, Rules(1, 3, C_INT))
    federation.roster = replace(federation.roster, n_min=6, max_dropouts=1)
    attempt = Attempt(federation, [vector(i) for i in range(6)])
    attempt.deliver("setup", attempt.requests("setup"))
    request, client = attempt.requests("deal")[0], attempt.clients[0]
    assert attempt.server.cohort.fewest == 4
    assert reason_of(client.deal, request) == "cohort-size"
    assert client.phase == "keyed"


def test_a_session_of_another_member_is_no_session():
    stage = scene(10)
    with pytest.raises(StorageError, match="another member"):
        stage.attempt.clients[0].restore(stage.moments["mask"].exported)


def test_an_attempt_that_was_given_up_lets_no_vector_out_and_opens_nothing():
    """Both attempts stay open at the server, which asks for the vector in each."""
    stage = scene(10)
    for step, reason in (("mask", "context"), ("confirm", "context"), ("unmask", "context")):
        machine = stage.victim(step)
        newer = stage.victim("setup", machine._journal)
        third = replace(stage.attempt.invitation, attempt=3)
        answer(stage, newer, "setup", SetupRequest(third).signed(stage.federation.server_identity).encode())
        assert outcome(stage, machine, honest(step), stage.moments[step].request) == reason


# ---- kill -9

CLIENT = """
import random, sys
from pathlib import Path
from tacit.secagg.client import ClientMachine
from tacit.secagg.in_process import TODAY, Federation
from tacit.secagg.journal import FileJournal
from tests.unit.lying_server import RULES, VICTIM

folder, step = Path(sys.argv[1]), sys.argv[2]
federation = Federation(10, RULES[10], random.Random(7).randbytes)
journal = FileJournal.open(folder / "journal")
machine = ClientMachine(
    VICTIM, federation.identities[VICTIM], federation.roster, journal, TODAY, federation.random_bytes
).restore((folder / "session").read_bytes())
getattr(machine, step)((folder / step).read_bytes())
print("sent", flush=True)
sys.stdin.read()
"""


@pytest.mark.parametrize("step", ["confirm", "unmask"])
def test_B16_a_second_set_of_survivors_is_refused_after_kill_9_between_the_two(tmp_path, step):
    """The process is killed as soon as its answer is out; what comes after it has the session of before."""
    federation = Federation(10, RULES[10], random.Random(7).randbytes)
    folder = tmp_path / "site"
    federation.journals[VICTIM] = FileJournal.open(folder / "journal")
    attempt = Attempt(federation, [vector(i) for i in range(10)], {"mask": [8]})
    for name in list(STEPS)[: list(STEPS).index(step)]:
        attempt.deliver(name, attempt.requests(name))
    requests = attempt.requests(step)
    (folder / "session").write_bytes(attempt.clients[VICTIM].export())
    (folder / step).write_bytes(requests[VICTIM])
    federation.journals[VICTIM].close()

    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", CLIENT, str(folder), step]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment) as process:
        assert process.stdout.readline() == "sent\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL

    with FileJournal.open(folder / "journal") as journal:
        federation.journals[VICTIM] = journal
        after = federation.client(VICTIM).restore((folder / "session").read_bytes())
        u3 = tuple(i for i in range(10) if i != 9)  # 8 for 9
        lie = another_set(step, requests[VICTIM], u3, federation.identities)
        assert reason_of(getattr(after, step), lie) == "survivors"
        assert getattr(after, step)(requests[VICTIM])  # the first set goes on


def another_set(step, request, u3, identities):
    """A request for this U3 that is right in every other way."""
    if step == "confirm":
        context = ConfirmRequest.decode(request).context
        answers = {i: MaskAnswer(context, i, bytes(16)).signed(identities[i]) for i in u3}
        return ConfirmRequest(
            context, u3, tuple((i, a.tag, a.signature) for i, a in answers.items())
        ).encode()
    context = UnmaskRequest.decode(request).context
    signed = tuple((i, ConfirmAnswer(context, i, u3).signed(identities[i]).signature) for i in u3)
    return UnmaskRequest(context, u3, signed).encode()


# ---- any bytes at all


@pytest.mark.parametrize("step", STEPS)
def test_a_request_with_any_one_bit_changed_is_refused_or_complained_about(step):
    stage = scene(10)
    request, machine = stage.moments[step].request, stage.victim(step)
    before = machine.export()
    for at in range(0, len(request), 1 if step == "setup" else 13):
        bit = 1 << at % 8
        changed = request[:at] + bytes([request[at] ^ bit]) + request[at + 1 :]
        reason = outcome(stage, machine, honest(step), changed)
        assert reason, at
        if reason == "complaint":
            assert Complaint.decode(machine.answered("complain", changed)[0]).sender == VICTIM
            machine = stage.victim(step)
        assert machine.export() == before


# ---- masks that do not cancel


def test_B13_without_the_check_of_the_context_the_masks_do_not_cancel():
    """A client that is shown another model, with all its checks switched off: what comes out is noise, 100 times."""
    for number in range(100):
        federation = Federation(3, Rules(1, 0, C_INT), random.Random(number).randbytes)
        encoded = [replace(vector(i), values=np.resize(vector(i).values, 100)) for i in range(3)]
        attempt = Attempt(federation, encoded)
        for step in ("setup", "deal"):
            attempt.deliver(step, attempt.requests(step))
        requests = attempt.requests("mask")
        odd = attempt.clients[0]
        assert odd.receive(requests[0]) is None
        right = odd._state.ctx2
        odd._state.ctx2 = ctx2(bytes(32), (0, 1, 2))  # what follows from another model
        words = odd._masked(encoded[0].values).to_bytes()
        odd._state.ctx2 = right
        signed = MaskAnswer(right, 0, odd._tag(words)).signed(federation.identities[0])
        odd._journal.masked(attempt.invitation.ctx0(), right)
        odd._state.advance("masked", "mask", requests[0], signed.encode(), words)
        attempt.server.collect_masked(signed.encode(), words)
        attempt.deliver("mask", {i: requests[i] for i in (1, 2)})
        for step in ("confirm", "unmask"):
            attempt.deliver(step, attempt.requests(step))
        assert reason_of(attempt.server.aggregate) == "aggregate-range"


# ---- no false refusal


def test_B_1000_honest_rounds_are_refused_nowhere():
    """Three to six clients, any of D late at any step, up to three attempts, restarts between any two messages."""
    rng = random.Random(5)
    federations = [
        Federation(n, Rules(1, dropouts, C_INT), rng.randbytes) for n, dropouts in ((3, 0), (4, 1), (6, 1))
    ]
    numbers = count(1)
    for number in range(1000):
        federation = federations[number % 3]
        n, dropouts = len(federation.identities), federation.rules.max_dropouts
        round_number = next(numbers)
        for attempt_number in range(1, 1 + (3 if number % 50 == 0 else 1)):
            late = rng.sample(range(n), rng.randint(0, dropouts))
            gone = {rng.choice(list(STEPS)): late}
            encoded = [vector(rng.randrange(1000)) for _ in range(n)]
            attempt = Attempt(federation, encoded, gone, round_number=round_number, attempt=attempt_number)
            for step in STEPS:
                if number % 10 == 0:
                    attempt.clients = [restarted(federation, client) for client in attempt.clients]
                attempt.deliver(step, attempt.requests(step))
            total = attempt.server.aggregate().values
            assert np.array_equal(total, sum(encoded[i].values for i in attempt.server.survivors))


def restarted(federation, client):
    return federation.client(client.index).restore(client.export())
