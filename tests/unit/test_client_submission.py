"""The five messages of a secure sum at a site: paid before sent, paid once, and kept between processes.

Longer than 400 lines because each moment at which a process ends, or another one begins, has its own case.
"""

import os
import stat
import subprocess
import sys
import threading
from dataclasses import replace

import numpy as np
import pytest

from client import submission
from client.participant import Run
from client.sessions import FolderSessions, Session
from tacit.errors import ProtocolError, Refused, StorageError
from tacit.secagg.contexts import schema_digest
from tacit.secagg.encoder import Encoder
from tacit.secagg.identity import Identity
from tacit.secagg.signed_roster import SignedRoster
from tests.unit.client_sites import (
    LABELS,
    Round,
    answer,
    debits,
    experiment,
    fixed,
    model,
    participant,
    participants,
    setup_request,
    signed_roster,
    write_site,
    write_sites,
)


@pytest.fixture(scope="module")
def private():
    return experiment()


@pytest.fixture(scope="module")
def run(private):
    return Run(private.to_toml())


@pytest.fixture(scope="module")
def arrays(private):
    return model(private)


@pytest.fixture
def clients(tmp_path, run):
    return participants(run, write_sites(tmp_path))


def body(reply):
    assert not reply.has_error(), reply.error
    return reply.content["tacit"]["body"]


def test_the_sum_of_a_round_is_that_of_the_encoded_updates(clients, arrays):
    round_ = Round(clients, arrays).keys().vectors()
    encoded = [client.session().encoded.values.copy() for client in clients]
    total = round_.sum()
    assert np.array_equal(total.values, sum(encoded)) and total.num_clients == 3
    encoder: Encoder = clients[0].run.encoder(arrays)
    assert encoder.decode(total).total_weight == pytest.approx(3.0)


def test_the_ledger_is_written_and_fsynced_before_the_first_byte_of_an_update_leaves(
    tmp_path, run, arrays, monkeypatch
):
    clients = participants(run, write_sites(tmp_path))
    for client in clients:
        object.__setattr__(client.site, "durable", True)
    round_ = Round(clients, arrays).keys()
    synced, real = [], os.fsync

    def fsync(descriptor):
        real(descriptor)
        synced.append(os.readlink(f"/proc/self/fd/{descriptor}"))

    monkeypatch.setattr(os, "fsync", fsync)
    made = clients[0].session().machine
    masked = type(made).mask
    at_mask = []
    monkeypatch.setattr(
        type(made), "mask", lambda *arguments: (at_mask.append(list(synced)), masked(*arguments))[1]
    )
    submission.mask(clients[0], round_.mask_request)
    ledger = str(tmp_path / "north" / "ledger" / "ledger.jsonl")
    assert at_mask and ledger in at_mask[0]  # before the masked vector exists at all


def test_B25_a_model_whose_schema_the_members_did_not_agree_on_is_refused_before_it_is_trained(
    tmp_path, run, arrays
):
    folder = write_site(tmp_path / "north")
    own = schema_digest({name: array.shape for name, array in arrays.items()})
    other = schema_digest({name: (*array.shape, 1) for name, array in arrays.items()})
    identities = [Identity.generate(fixed(label)) for label in LABELS]
    for listed, refused in (({other}, True), ({other, own}, False)):
        signed = SignedRoster(replace(signed_roster().roster, model_schemas=frozenset(listed)))
        for identity in identities:
            signed = signed.sign(identity)
        (folder / "roster.json").write_bytes(signed.encode())
        client = participant(folder, run.experiment)
        request = setup_request(run, arrays, roster=signed.roster.digest())
        if refused:
            with pytest.raises(ProtocolError) as error:
                submission.setup(client, request, arrays)
            assert error.value.reason == "model-schema" and own.hex() in str(error.value)
            assert client.session() is None
        else:
            assert submission.setup(client, request, arrays)
    assert debits(folder) == []


def test_without_a_debit_no_byte_leaves_and_none_is_kept_to_be_sent_later(tmp_path, run, arrays):
    """The ledger is held by another process: an error instead of an update, however often it is asked for."""
    folders = write_sites(tmp_path)
    clients = participants(run, folders)
    round_ = Round(clients, arrays).keys()
    with clients[0].site.ledger():
        for _ in range(2):
            with pytest.raises(StorageError, match="in use"):
                submission.mask(clients[0], round_.mask_request)
    assert debits(folders[0]) == []
    assert len(submission.mask(clients[0], round_.mask_request)) > 0
    assert len(debits(folders[0])) == 1


def test_a_refused_request_costs_nothing(clients, arrays):
    round_ = Round(clients, arrays).keys()
    other = Round(clients[1:] + clients[:1], arrays, attempt=2)
    with pytest.raises(ProtocolError):
        submission.mask(clients[0], other.request)
    with pytest.raises(ProtocolError):
        submission.mask(clients[0], round_.mask_request[:-1])
    assert debits(clients[0].site.folder) == []


def test_a_repeated_request_gets_the_same_bytes_and_no_second_debit(clients, arrays):
    round_ = Round(clients, arrays).keys()
    first = submission.mask(clients[0], round_.mask_request)
    assert submission.mask(clients[0], round_.mask_request) == first
    assert len(debits(clients[0].site.folder)) == 1


def test_a_repeated_invitation_trains_once(clients, arrays):
    request = setup_request(clients[0].run, arrays)
    first = submission.setup(clients[0], request, arrays)
    encoded = clients[0].session().encoded
    assert submission.setup(clients[0], request, arrays) == first
    assert clients[0].session().encoded is encoded and clients[0].num_updates == 1


def test_another_attempt_on_the_same_model_sends_the_same_update_under_new_masks_and_pays_once(
    clients, arrays
):
    first = Round(clients, arrays).keys()
    answers = [submission.mask(c, request)[1] for c, request in first.by_index(first.mask_requests)]
    held = [client.session().encoded.values for client in clients]
    second = Round(clients, arrays, attempt=2).keys()
    again = [submission.mask(c, request)[1] for c, request in second.by_index(second.mask_requests)]
    assert all(a != b for a, b in zip(answers, again, strict=True))
    assert all(client.session().encoded.values is v for client, v in zip(clients, held, strict=True))
    expected = sum(held)  # they are erased when the sum is open
    assert np.array_equal(second.vectors().sum().values, expected)
    assert [len(debits(client.site.folder)) for client in clients] == [1, 1, 1]


@pytest.mark.parametrize("fields", [{"round_number": 2}, {"run_id": "run-2"}], ids=["round", "run"])
def test_another_round_or_run_is_trained_anew_and_paid_again(clients, arrays, fields):
    Round(clients, arrays).keys().vectors()
    before = clients[0].session().encoded
    Round(clients, arrays, **fields).keys().vectors()
    assert clients[0].session().encoded is not before
    assert len(debits(clients[0].site.folder)) == 2


def test_B32_another_attempt_with_another_model_is_refused_and_nothing_is_trained(clients, arrays):
    Round(clients, arrays).keys().vectors()
    before = clients[0].session().encoded
    other = {name: array + np.float32(1) for name, array in arrays.items()}
    with pytest.raises(ProtocolError) as error:
        submission.setup(clients[0], setup_request(clients[0].run, other, attempt=2), other)
    assert error.value.reason == "model"
    assert clients[0].session().encoded is before and clients[0].num_updates == 1


FOREIGN = {
    "model": {"model": bytes(32)},
    "config": {"config": bytes(32)},
    "roster": {"roster": bytes(32)},
    "length": {"length": 5},
}


@pytest.mark.parametrize("field", FOREIGN)
def test_an_invitation_to_what_this_site_has_not_computed_itself_is_refused(clients, arrays, field):
    request = setup_request(clients[0].run, arrays, **FOREIGN[field])
    with pytest.raises(ProtocolError) as error:
        submission.setup(clients[0], request, arrays)
    assert error.value.reason == "context"
    assert clients[0].session() is None


def test_an_update_is_paid_at_the_price_of_the_experiment_that_it_was_made_under(tmp_path, private, arrays):
    """The same site is shown a dear experiment, and then asked for the update under a cheap one."""
    dear, cheap = private, experiment(training__sampling_rate=0.01)
    folders = write_sites(tmp_path)
    clients = [participant(folder, dear, on_disk=True) for folder in folders]
    round_ = Round(clients, arrays).keys()
    other = participant(folders[0], cheap, on_disk=True)
    for call in (submission.mask, submission.unmask):
        with pytest.raises(ProtocolError) as error:
            call(other, round_.mask_request)
        assert error.value.reason == "phase"
    assert debits(folders[0]) == []
    submission.mask(clients[0], round_.mask_request)
    assert debits(folders[0])[0].event == dear_event(clients[0])


def dear_event(client):
    return client.run.plan.round_event()


SERVE = """
import sys
from pathlib import Path
from tests.unit.client_sites import answer
folder, kind, request = sys.argv[1:]
reply = answer(Path(folder), Path(folder, "experiment.toml").read_text(), kind,
               sessions="folder", body=Path(request).read_bytes())
Path(request).with_suffix(".answer").write_bytes(reply.content["tacit"]["body"])
if "vector" in reply.content:
    Path(request).with_suffix(".vector").write_bytes(reply.content["vector"]["words"].numpy().tobytes())
"""


def test_sessions_survive_a_process_per_message(tmp_path, private, run, arrays):
    """As a stock Flower node runs a client: here M0 in this process, the other four each in one of its own."""
    folders = write_sites(tmp_path)
    (folders[0] / "experiment.toml").write_text(private.to_toml())

    def serve(kind, request):
        path = tmp_path / f"{kind}.request"
        path.write_bytes(request)
        command = [sys.executable, "-c", SERVE, str(folders[0]), kind, str(path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        return path.with_suffix(".answer").read_bytes()

    others = participants(run, folders[1:])
    round_ = Round([participant(folders[0], private), *others], arrays)
    machine, first = round_.machine, round_.request
    machine.collect_setup(
        body(answer(folders[0], private, "train.tacit0", arrays, sessions="folder", body=first))
    )
    for client in others:
        machine.collect_setup(submission.setup(client, first, arrays))

    def phase(kind, requests, collect, step):
        collect(serve(kind, requests[0]))
        for i, client in enumerate(others, start=1):
            collect(step(client, requests[i]))
        return requests[0]

    phase("train.tacit1", machine.deal_requests(), machine.collect_dealt, submission.deal)
    requests = dict(machine.mask_requests())
    masked = serve("train.tacit2", requests[0])
    vector = (tmp_path / "train.tacit2.vector").read_bytes()
    machine.collect_masked(masked, vector)
    for i, client in enumerate(others, start=1):
        machine.collect_masked(*submission.mask(client, requests[i]))
    phase("train.tacit3", machine.confirm_requests(), machine.collect_confirmed, submission.confirm)
    restored = participant(folders[0], private, on_disk=True).session()
    expected = sum(s.encoded.values for s in (restored, *(c.session() for c in others)))
    phase("train.tacit4", machine.unmask_requests(), machine.collect_unmask, submission.unmask)
    assert (
        not participant(folders[0], private, on_disk=True).session().is_erased
    )  # another attempt may need it
    assert np.array_equal(machine.aggregate().values, expected)
    assert len(debits(folders[0])) == 1
    # ... and a repeat in one more process, this one, is answered with the bytes that were sent.
    again = answer(folders[0], private, "train.tacit2", sessions="folder", body=requests[0])
    assert body(again) == masked
    assert again.content["vector"]["words"].numpy().tobytes() == vector
    assert len(debits(folders[0])) == 1


def test_K2_a_session_is_for_its_owner_alone(tmp_path, private, arrays):
    before = os.umask(0)
    try:
        folder = write_site(tmp_path / "north")
        client = participant(folder, private, on_disk=True)
        submission.setup(client, setup_request(client.run, arrays), arrays)
    finally:
        os.umask(before)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (folder / "sessions").rglob("*")}
    assert modes == {"round": 0o600, "lock": 0o600}
    assert stat.S_IMODE((folder / "sessions").stat().st_mode) == 0o700
    (folder / "sessions" / "round").chmod(0o640)
    with pytest.raises(StorageError, match="lets other users in"):
        client.session()


def test_a_session_reads_back_as_it_was(tmp_path, clients, arrays):
    Round(clients, arrays).keys().vectors()
    session = clients[0].session()
    folder = FolderSessions(tmp_path)
    assert folder.load(clients[0].machine) is None
    folder.save(session)
    again = folder.load(clients[0].machine)
    assert again.encode() == session.encode()
    assert (again.run, again.round, again.model, again.experiment, again.sent) == (
        session.run, session.round, session.model, session.experiment, True
    )  # fmt: skip
    assert np.array_equal(again.encoded.values, session.encoded.values)


def test_a_damaged_session_is_refused_at_every_byte(tmp_path, clients, arrays):
    Round(clients, arrays).keys()
    folder = FolderSessions(tmp_path)
    folder.save(clients[0].session())
    file = tmp_path / "sessions" / "round"
    whole = file.read_bytes()
    assert isinstance(folder.load(clients[0].machine), Session)
    spoilt = [whole[:n] for n in range(0, len(whole), 41)] + [whole + b"x"]
    spoilt += [whole[:i] + bytes([whole[i] ^ 1]) + whole[i + 1 :] for i in range(0, len(whole), 7)]
    for data in spoilt:
        file.write_bytes(data)
        with pytest.raises(StorageError):
            folder.load(clients[0].machine)


def test_F1_a_session_that_cannot_be_written_ends_the_message_and_nothing_leaves(tmp_path, private, arrays):
    folder = write_site(tmp_path / "north")
    (folder / "sessions").write_text("in the way")
    reply = answer(
        folder,
        private,
        "train.tacit0",
        arrays,
        sessions="folder",
        body=setup_request(Run(private.to_toml()), arrays),
    )
    assert (reply.error.reason, reply.has_content()) == ("refused:unavailable", False)


def test_an_update_without_privacy_is_sent_once_whatever_happens_in_between(tmp_path):
    """Another run's invitation takes the place of the session; the journal remembers all the same."""
    settings = experiment(private=False)
    run, start = Run(settings.to_toml()), model(settings)
    clients = participants(run, write_sites(tmp_path))
    Round(clients, start).keys().vectors()
    Round(clients, start, run_id="run-2").keys()
    again = Round(clients, start, attempt=2).request
    with pytest.raises(Refused) as error:
        submission.setup(clients[0], again, start)
    assert error.value.reason == "attempt"


def test_of_two_processes_given_messages_at_the_same_time_one_waits_until_the_other_has_answered(tmp_path):
    """As a stock node's are: else both would pay for one vector, and two would be under the same masks."""
    settings = experiment(privacy={"client": {"epsilon": 3.0, "delta": 1e-2}}, private=False)
    start, folders = model(settings), write_sites(tmp_path)
    clients = [participant(folder, settings, on_disk=True) for folder in folders]
    request = Round(clients, start).keys().mask_request
    one, other = (participant(folders[0], settings, on_disk=True) for _ in range(2))
    answers, noised = [], one.noised
    thread = threading.Thread(target=lambda: answers.append(submission.mask(other, request)))

    def meanwhile(*arguments):
        thread.start()
        thread.join(1.0)
        return noised(*arguments)

    one.noised = meanwhile
    answers.insert(0, submission.mask(one, request))
    thread.join()
    assert answers[0] == answers[1]
    assert len(debits(folders[0], "sum")) == 1


@pytest.mark.parametrize("private", [True, False], ids=["private", "not private"])
@pytest.mark.parametrize("dies", ["before it is kept", "after it is kept", "after it is journalled"])
def test_D3_a_site_that_dies_while_it_masks_sends_its_vector_when_it_is_back(
    tmp_path, private, dies, monkeypatch
):
    settings = experiment(private=private)
    run, start = Run(settings.to_toml()), model(settings)
    folders = write_sites(tmp_path)
    clients = [participant(folder, settings, on_disk=True) for folder in folders]
    round_ = Round(clients, start).keys()

    class Killed(BaseException):
        pass

    def die(*arguments):
        raise Killed

    with monkeypatch.context() as at:
        north = clients[0]
        kept, journalled = north.sessions.save, north._journal.masked
        if dies == "before it is kept":
            at.setattr(north.sessions, "save", lambda s: die() if s.machine.phase == "masked" else kept(s))
        elif dies == "after it is kept":
            at.setattr(north._journal, "masked", die)
        else:
            at.setattr(north._journal, "masked", lambda *contexts: (journalled(*contexts), die()))
        with pytest.raises(Killed):
            submission.mask(north, round_.by_index(round_.mask_requests)[0][1])
    round_.clients[0] = participant(folders[0], settings, on_disk=True)  # a new process
    assert round_.vectors().sum().num_clients == len(clients)
    assert round_.clients[0]._journal.runs["run-1"].ctx2
    assert run.plan.unit != "none" or round_.clients[0].session().is_erased
