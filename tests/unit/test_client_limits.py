"""What a server cannot make a site do too often, and what a site changes its mind about while its client runs."""

import os
import subprocess
import sys
import threading
from datetime import UTC, datetime, timedelta

import numpy as np
import pytest
import tomli_w
from flwr.app import ConfigRecord

from client import plain, refusals, submission
from client.journal import SiteJournal
from client.participant import Run, participant_of
from client.rate import FILE, count_round
from client.refusals import HOUR, Refusals
from client.sessions import FolderSessions
from tacit.audit import SITE_FILE, AuditLog, Refusal, Started, read
from tacit.errors import ProtocolError, Refused, StorageError
from tacit.privacy import chain, chain_file
from tacit.privacy.chain_file import ChainFile
from tacit.secagg.identity import Identity
from tacit.secagg.messages import SetupRequest
from tests.unit.client_sites import (
    POLICY,
    Round,
    answer,
    experiment,
    fixed,
    invitation,
    model,
    participant,
    participants,
    setup_request,
    write_site,
    write_sites,
)

NOW = datetime(2030, 5, 1, 12, tzinfo=UTC)
DIGESTS = [bytes([i]) * 32 for i in range(4)]


@pytest.fixture
def decoded(monkeypatch):
    """How often a chain has been read from the disk."""
    calls, original = [], chain.decode
    monkeypatch.setattr(
        chain, "decode", lambda data, source: (calls.append(source), original(data, source))[1]
    )
    return calls


# ---- rounds within an hour


@pytest.mark.parametrize("changes", [{}, {"secure_aggregation__enabled": False}], ids=["sum", "plain"])
def test_B27_rounds_without_privacy_are_counted_too(tmp_path, changes):
    """No more rounds are answered within an hour than the policy says, private or not, over restarts."""
    policy = {**POLICY, "max_rounds_per_hour": 3}
    if changes:
        policy |= {"require_secure_aggregation": False, "allow_single_updates": True}
    folder = write_site(tmp_path / "north", policy=policy)
    private, public = experiment(**changes), experiment(private=False, **changes)

    def ask(settings, run_id):
        client, start = participant(folder, settings), model(settings)  # a restarted process
        if changes:
            plain.update(client, ConfigRecord({"run": run_id, "round": 1}), start)
        else:
            submission.setup(client, setup_request(client.run, start, run_id=run_id), start)

    for number, settings in enumerate((public, private, public)):
        ask(settings, f"run-{number}")
    for settings in (public, private):
        with pytest.raises(Refused) as caught:
            ask(settings, "run-4")
        assert caught.value.reason == "rate"


def test_B27_only_invitations_that_the_server_has_signed_are_counted(tmp_path):
    """Under the secure sum only the server's own signed invitations count: nobody else can use the hour up."""
    folder, settings = (
        write_site(tmp_path / "north", policy={**POLICY, "max_rounds_per_hour": 1}),
        experiment(),
    )
    client, start = participant(folder, settings), model(settings)
    forged = SetupRequest(invitation(client.run, start)).signed(Identity.generate(fixed("mallory"))).encode()
    for _ in range(3):
        with pytest.raises(ProtocolError) as caught:
            submission.setup(client, forged, start)
        assert caught.value.reason == "signature"
    assert not (folder / FILE).exists()
    submission.setup(client, setup_request(client.run, start), start)
    assert (folder / FILE).exists()


def test_B27_a_round_may_follow_when_an_hour_is_over_and_a_refused_one_does_not_count(tmp_path):
    path = tmp_path / FILE
    for minutes in (0, 10, 20):
        count_round(path, 3, NOW + timedelta(minutes=minutes))
    for minutes in (20, 40, 59):
        with pytest.raises(Refused):
            count_round(path, 3, NOW + timedelta(minutes=minutes))
    count_round(path, 3, NOW + timedelta(minutes=60))
    with pytest.raises(Refused):
        count_round(path, 3, NOW + timedelta(minutes=69))
    with pytest.raises(Refused):  # a policy that has become stricter
        count_round(path, 1, NOW + timedelta(minutes=119))
    count_round(path, 3, NOW + timedelta(minutes=70))
    assert path.stat().st_size == 5 * 21 and path.stat().st_mode & 0o777 == 0o600


def test_a_count_of_rounds_that_was_cut_short_goes_on_and_a_damaged_one_is_an_error(tmp_path):
    path = tmp_path / FILE
    count_round(path, 2, NOW)
    with path.open("ab") as file:
        file.write(b"2030-05")
    count_round(path, 2, NOW)
    with pytest.raises(Refused):
        count_round(path, 2, NOW)
    path.write_bytes(b"?" * 42)
    with pytest.raises(StorageError, match="delete it"):
        count_round(path, 2, NOW)


# ---- refusals


def test_a_thousand_refusals_make_ten_records_that_say_how_many(tmp_path, decoded):
    """However often a server is refused, the site writes no more than a few records an hour of each kind."""
    now, path = [0.0], tmp_path / "audit" / "audit.jsonl"
    noted = Refusals(AuditLog(path, durable=False), lambda: now[0])
    for _ in range(1000):
        noted.note("train.tacit0", "budget-spent")
    noted.note("train.tacit0", "rate")
    noted.note("train.tacit9 \n", "What? \n")
    assert len(decoded) == 1, "the chain was read again"
    now[0] = HOUR
    noted.note("train.tacit0", "budget-spent")
    found = [event for event in read(path) if isinstance(event, Refusal)]
    counts = [event.count for event in found if event.reason == "budget-spent"]
    assert counts == [2**i for i in range(9)] + [1001 - 511]
    assert [(e.step, e.reason) for e in found if e.reason != "budget-spent"] == [
        ("train.tacit0", "rate"),
        ("malformed", "malformed"),
    ]


def test_refusals_that_could_not_be_written_are_counted_with_the_next_one(tmp_path, monkeypatch):
    path = tmp_path / "audit" / "audit.jsonl"
    noted = Refusals(AuditLog(path, durable=False))
    with monkeypatch.context() as patch:
        patch.setattr(ChainFile, "append", lambda self, fields: (_ for _ in ()).throw(StorageError("full")))
        with pytest.raises(StorageError):
            noted.note("train", "rate")
    noted.note("train", "rate")
    assert [event.count for event in read(path)] == [2]


def test_a_server_that_asks_fifty_times_costs_a_site_few_records(tmp_path, decoded):
    refusals.refusals_of.cache_clear()
    settings = experiment()
    folder = write_site(tmp_path / "north", policy={**POLICY, "max_model_norm": 1e-9})
    start = model(settings)
    body = setup_request(Run(settings.to_toml()), start)
    for _ in range(50):
        reply = answer(folder, settings, "train.tacit0", start, sessions="disk", body=body)
        assert reply.error.reason == "refused:model-norm"
    assert (
        sum(event.count for event in read(folder / SITE_FILE)) == 31
    )  # 1, 2, 4, 8, 16; the others are counted
    assert len([source for source in decoded if source.name == "audit.jsonl"]) <= 2


# ---- chains that are opened again and again


def test_a_journal_is_read_once_by_a_process_and_again_when_another_has_written(tmp_path, decoded):
    journal, other = (SiteJournal(tmp_path, durable=False) for _ in range(2))
    for number in range(1, 40):
        journal.answered("run", number, 1, *DIGESTS[:3])
        assert journal.counter == number
    assert len(decoded) == 1
    other.answered("another", 1, 1, *DIGESTS[:3])
    assert journal.counter == 40 and len(decoded) == 3
    assert journal.runs.keys() == {"run", "another"} and len(decoded) == 3


def test_B28_a_journal_put_back_while_the_client_runs_is_refused(tmp_path):
    journal, folder = SiteJournal(tmp_path, durable=False), tmp_path / "journal"
    journal.answered("run", 1, 1, *DIGESTS[:3])
    old = {path: path.read_bytes() for path in folder.iterdir()}
    journal.answered("run", 2, 1, *DIGESTS[:3])
    for path, content in old.items():
        path.write_bytes(content)
    with pytest.raises(StorageError, match="damaged or missing"):
        journal.answered("run", 2, 1, *DIGESTS[:3])


@pytest.mark.parametrize("what", ["byte", "head", "mode", "replaced"])
def test_F3_a_chain_that_was_changed_while_it_was_closed_is_read_again(tmp_path, what):
    """A file that is opened again by the process that closed it is read again if anything about it has changed."""
    log, path = AuditLog(tmp_path / "audit" / "a.jsonl", durable=False), tmp_path / "audit" / "a.jsonl"
    for _ in range(3):
        log.write(Started("client", "1"))
    content = bytearray(path.read_bytes())
    content[20] ^= 1
    if what == "byte":
        os.utime(path, ns=(0, 0))
        path.write_bytes(content)
    elif what == "head":
        head = path.with_name(path.name + ".head")
        head.write_bytes(head.read_bytes().replace(b"3 ", b"4 "))
    elif what == "mode":
        path.chmod(0o644)
    else:
        path.rename(tmp_path / "old")
        path.write_bytes(content)
        path.chmod(0o600)
    with pytest.raises(StorageError):
        log.write(Started("client", "1"))


def test_F8_a_journal_of_10000_rounds_of_100_is_opened_again_in_no_time(tmp_path):
    """Ratios: a second event costs a hundredth of the first, which reads everything."""
    import time

    journal = SiteJournal(tmp_path, durable=False)
    peers = dict.fromkeys(range(100), 0)
    for number in range(1, 301):  # the ratio is larger for more
        journal.answered("run", number, 1, *DIGESTS[:3])
        journal.see_peers(dict.fromkeys(peers, number))

    def seconds(one):
        start = time.perf_counter()
        assert one.counter == 300
        return time.perf_counter() - start

    whole = min(seconds(SiteJournal(tmp_path, durable=False)) for _ in range(3))
    again = min(seconds(journal) for _ in range(20))
    assert again < whole / 10


def test_an_owner_may_hold_a_chain_for_seconds_and_whoever_waits_longer_is_told(tmp_path, monkeypatch):
    path = tmp_path / "audit" / "a.jsonl"
    log = AuditLog(path, durable=False)
    log.write(Started("client", "1"))
    file, _ = ChainFile.open(path)
    timer = threading.Timer(1.2, file.close)
    timer.start()
    log.write(Started("client", "2"))  # on a busy machine half a second is nothing
    timer.join()
    monkeypatch.setattr(chain_file, "PATIENCE_SECONDS", 0.05)
    file, _ = ChainFile.open(path)
    with file, pytest.raises(StorageError, match=r"in use by another process.*0\.05 seconds; try again"):
        log.write(Started("client", "3"))
    log.write(Started("client", "3"))
    assert len(read(path)) == 3


# ---- policy and session


def test_a_changed_policy_counts_from_the_next_request_on_and_a_broken_one_refuses(tmp_path, caplog):
    participant_of.cache_clear()
    refusals.refusals_of.cache_clear()
    settings = experiment()
    folder, start = write_site(tmp_path / "north", policy=POLICY), model(settings)
    policy, run = folder / "policy.toml", Run(settings.to_toml())

    def ask(number):
        body = setup_request(run, start, round_number=number)
        reply = answer(folder, settings, "train.tacit0", start, sessions="disk", body=body)
        return reply.error.reason if reply.has_error() else "answered"

    assert ask(1) == "answered"
    policy.write_text(tomli_w.dumps({**POLICY, "allowed_tasks": ["images"]}))
    assert [ask(2), ask(2)] == ["refused:task"] * 2
    policy.write_text("epsilon_ceiling = 1.0\n")  # without its delta: not a policy
    assert [ask(2), ask(2)] == ["refused:unavailable"] * 2
    assert "policy.toml" in caplog.text and "epsilon_ceiling needs delta" in caplog.text
    assert "unavailable" in {event.reason for event in read(folder / SITE_FILE) if isinstance(event, Refusal)}
    policy.unlink()
    assert ask(2) == "answered"  # without a file the defaults stand
    policy.write_text(tomli_w.dumps({**POLICY, "max_model_norm": 1e-9}))
    assert ask(3) == "refused:model-norm"


@pytest.mark.parametrize("unit", ["record", "client", "none"])
def test_once_a_site_has_opened_shares_nothing_is_left_in_its_session_of_an_update_that_is_not_private_by_itself(
    tmp_path, unit
):
    client = {"privacy": {"client": {"epsilon": 8.0, "delta": 1e-3}}} if unit == "client" else {}
    settings = experiment(private=unit == "record", **client)
    folders, start = write_sites(tmp_path), model(settings)
    clients = participants(Run(settings.to_toml()), folders)
    clients[0].sessions = FolderSessions(folders[0])
    round_ = Round(clients, start).keys()
    update = clients[0].session().encoded.values.astype("<i8").tobytes()
    file = folders[0] / "sessions" / "round"
    assert update in file.read_bytes()
    round_.vectors()
    assert (update in file.read_bytes()) == (unit != "none")  # without privacy it is sent once
    assert np.any(round_.sum().values)
    assert (update in file.read_bytes()) == (unit == "record")
    assert clients[0].session().is_erased == (unit != "record")
    again = setup_request(clients[0].run, start, attempt=2)
    if unit == "none":
        with pytest.raises(Refused, match="sent once"):
            submission.setup(clients[0], again, start)
        return
    submission.setup(clients[0], again, start)
    session = clients[0].session()
    assert session.sent == (unit == "record")  # paid for: the same bytes go out once more
    assert (session.encoded.values.astype("<i8").tobytes() == update) == (unit == "record")


def test_two_processes_count_rounds_together(tmp_path):
    path = tmp_path / FILE
    program = f"""
import pathlib
from client.rate import count_round
for _ in range(50):
    count_round(pathlib.Path({str(path)!r}), 1000)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    assert path.stat().st_size == 100 * 21
