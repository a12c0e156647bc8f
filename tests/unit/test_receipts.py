"""Receipts: one for each sum, before it is used, in one line that clients do not let go back."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from flwr.app import Context, Message

from client.app import app as client_app
from server.receipts import AuditedStore, ReceiptFile
from server.state import read_rounds
from strategies.rounds import Rounds
from tacit.audit import SERVER_FILE, SITE_FILE, AuditLog, Receipted, read
from tacit.audit_check import open_side, restore
from tacit.errors import ProtocolError, RunFailed, StorageError
from tacit.secagg.contexts import NO_HEAD
from tacit.secagg.identity import Identity
from tacit.secagg.journal import FileJournal, Journal, MemoryJournal
from tacit.secagg.receipt import SHOWN, Receipt, ReceiptChain, check_shown, heads_of
from tests.unit.small_federation import Federation

SERVER, OTHER = (Identity.generate(lambda n, seed=seed: bytes([seed] * n)) for seed in (1, 2))


def receipt(number: int = 1, previous: bytes = NO_HEAD, **changes: Any) -> Receipt:
    fields = {
        "context": b"c" * 32,
        "number": number,
        "previous": previous,
        "roster": b"r" * 32,
        "run": "run-1",
        "round": number,
        "attempt": 1,
        "model": b"m" * 32,
        "survivors": (0, 2, 5),
        "confirmations": b"s" * 32,
        "aggregate": b"a" * 32,
        "epsilon": "1.25",
    }
    return Receipt(**{**fields, **changes}).signed(SERVER)


def chain(length: int, **changes: Any) -> list[Receipt]:
    made: list[Receipt] = []
    for number in range(1, length + 1):
        made.append(receipt(number, made[-1].digest if made else NO_HEAD, **changes))
    return made


def code(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.reason


# -- the bytes


def test_a_receipt_has_one_spelling_and_every_byte_counts() -> None:
    data = receipt().encode()
    assert Receipt.decode(data) == receipt()
    for at in range(len(data)):
        changed = bytes([*data[:at], data[at] ^ 1, *data[at + 1 :]])
        with pytest.raises(ProtocolError):
            check_shown(receipt().digest, [changed], SERVER.public)


# name -> what is shown of five receipts, the head beside it, the code
FIVE, FORK = chain(5), chain(5, run="another")
SHOWS: dict[str, tuple[list[Receipt], bytes, str]] = {
    "nothing, but there are some": ([], FIVE[-1].digest, "receipts"),
    "some, but there are none": (FIVE, NO_HEAD, "receipts"),
    "without the last": (FIVE[:-1], FIVE[-1].digest, "receipts"),
    "one left out": ([*FIVE[:2], *FIVE[3:]], FIVE[-1].digest, "receipts"),
    "one twice": ([*FIVE[:2], *FIVE[1:]], FIVE[-1].digest, "receipts"),
    "another order": ([*FIVE[:2], FIVE[3], FIVE[2], FIVE[4]], FIVE[-1].digest, "receipts"),
    "of two chains": ([*FIVE[:2], *FORK[2:]], FORK[-1].digest, "receipts"),
    "more than are shown": (chain(SHOWN + 1), chain(SHOWN + 1)[-1].digest, "receipts"),
    "signed by another": ([replace(FIVE[0], epsilon="0").signed(OTHER)], FIVE[0].digest, "signature"),
    "numbered from 0": ([receipt(0)], receipt(0).digest, "receipts"),
    "survivors not in order": ([receipt(survivors=(2, 0))], receipt(survivors=(2, 0)).digest, "order"),
}


@pytest.mark.parametrize("case", SHOWS)
def test_receipts_that_do_not_lead_to_the_head_are_refused(case: str) -> None:
    shown, head, reason = SHOWS[case]
    assert code(lambda: check_shown(head, [r.encode() for r in shown], SERVER.public)) == reason


def test_the_newest_receipts_are_shown_and_lead_to_the_head() -> None:
    whole = ReceiptChain(chain(SHOWN + 3))
    seen = check_shown(whole.head, whole.shown(whole.head), SERVER.public)
    assert [r.number for r in seen] == list(range(4, SHOWN + 4))
    assert check_shown(NO_HEAD, ReceiptChain().shown(NO_HEAD), SERVER.public) == ()


def test_receipts_of_sums_that_were_opened_since_are_not_shown() -> None:
    """Where rounds overlap, the head of an invitation is not the newest when M0 is sent."""
    whole = ReceiptChain(chain(5))
    for known in range(5):
        head = whole.receipts[known - 1].digest if known else NO_HEAD
        assert [r.number for r in check_shown(head, whole.shown(head), SERVER.public)] == [
            *range(1, known + 1)
        ]


# -- what a client remembers


@pytest.fixture(params=["memory", "reopened"])
def now(request: pytest.FixtureRequest, tmp_path: Path) -> Any:
    memory, path = MemoryJournal(), tmp_path / "journal" / "journal.jsonl"
    opened: list[Journal] = []

    def journal() -> Journal:
        if request.param == "memory":
            return memory
        for before in opened:
            before.close()
        opened[:] = [FileJournal.open(path, durable=False)]
        return opened[0]

    yield journal
    for left in opened:
        left.close()


TEN, TWIN = chain(10), chain(10, run="another")


@pytest.mark.parametrize(
    ("seen", "then", "reason"),
    [
        (TEN[:5], TEN[:5], ""),
        (TEN[:5], TEN[2:7], ""),
        (TEN[:5], TEN[5:8], ""),  # the first one shown names the last one seen
        (TEN[:2], TEN[6:], ""),  # a gap: the site was away
        ([], TEN[6:], ""),
        (TEN[:5], [], "receipts"),
        (TEN[:5], TEN[:4], "receipts"),
        (TEN[:5], TWIN[:5], "receipts"),
        (TEN[:5], TWIN[:8], "receipts"),
        (TEN[:5], TWIN[5:8], "receipts"),  # its first one names another fifth
    ],
)
def test_B23_a_server_whose_receipts_go_back_is_refused(
    now: Callable[[], Journal], seen: list[Receipt], then: list[Receipt], reason: str
) -> None:
    """Nor is one accepted whose chain is another one; a refusal is not remembered."""
    now().see_receipts(heads_of(seen))
    head = now().head
    if reason:
        assert code(lambda: now().see_receipts(heads_of(then))) == reason
        assert now().head == head
    else:
        now().see_receipts(heads_of(then))
    now().see_receipts(heads_of(TEN))


def test_what_is_seen_again_is_not_written_again(now: Callable[[], Journal]) -> None:
    now().see_receipts(heads_of([]))
    assert now().head.counter == 0
    now().see_receipts(heads_of(FIVE))
    now().see_receipts(heads_of(FIVE))
    assert now().head.counter == 1


# -- a whole federation, with files


def on_disk(message: Message, context: Context) -> Message:
    """The real app of sites whose journal, sessions and logs are files."""
    context.node_config["sessions"] = "folder"
    return client_app(message, context)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Federation:
    """Two rounds have been made."""
    made = Federation(tmp_path_factory.mktemp("receipts"), "training.rounds=2")
    run(made, made.sites.parent / "run")
    return made


def run(federation: Federation, folder: Path) -> None:
    with federation.rounds(folder, app=on_disk) as rounds:
        audited(federation, rounds).run(federation.initial())


def audited(federation: Federation, rounds: Rounds) -> Rounds:
    """As `server.app.serve` has it."""
    rounds.store = AuditedStore(rounds.store, rounds.run_id, AuditLog(federation.sites / SERVER_FILE))
    return rounds


@pytest.fixture
def copy(world: Federation, tmp_path: Path) -> Federation:
    """The same, to be spoilt; a run of it has another id."""
    other = Federation.__new__(Federation)
    shutil.copytree(world.sites, tmp_path / "sites")
    other.experiment, other.sites = world.experiment, tmp_path / "sites"
    return other


def receipts(path: Path) -> list[Receipt]:
    return [Receipt.decode(bytes.fromhex(e.receipt)) for e in read(path) if isinstance(e, Receipted)]


def test_each_sum_has_a_receipt_and_the_sites_are_shown_it_with_the_next_invitation(
    world: Federation,
) -> None:
    made = receipts(world.sites / SERVER_FILE)
    rows = read_rounds(world.sites.parent / "run" / "rounds.jsonl")
    assert [(r.number, r.round, r.attempt) for r in made] == [(1, 1, 1), (2, 2, 1)]
    assert made[1].previous == made[0].digest and made[0].previous == NO_HEAD
    assert [len(r.survivors) for r in made] == [len(row["survivors"]) for row in rows] == [6, 6]
    assert {r.epsilon for r in made} == {"inf"}  # nothing is promised in this run
    for site in range(6):
        assert receipts(world.sites / str(site) / SITE_FILE) == made[:1]


def test_a_restarted_server_goes_on_with_the_chain(copy: Federation, tmp_path: Path) -> None:
    run(copy, tmp_path / "run-2")
    made = receipts(copy.sites / SERVER_FILE)
    assert [r.number for r in made] == [1, 2, 3, 4] and len({r.run for r in made}) == 2
    assert receipts(copy.sites / "0" / SITE_FILE) == made[:3]


def test_a_sum_has_its_receipt_before_anything_of_it_is_used(
    copy: Federation, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the disk: the file is synced before the strategy sees a reply."""
    file, synced, real = copy.sites / SERVER_FILE, list[tuple[str, int]](), os.fsync
    size = file.stat().st_size

    def fsync(descriptor: int) -> None:
        real(descriptor)
        synced.append((os.readlink(f"/proc/self/fd/{descriptor}"), os.fstat(descriptor).st_size))

    monkeypatch.setattr(os, "fsync", fsync)
    with copy.rounds(tmp_path / "run-2", app=on_disk) as rounds:
        before = rounds.resumed(copy.initial())
        synced.clear()
        replies = rounds.collect(rounds.configure(1, rounds.draw(1), before.arrays))
    assert replies and any(name == str(file) and length > size for name, length in synced)
    assert [r.number for r in receipts(file)] == [1, 2, 3]


def test_without_a_receipt_nothing_is_released(copy: Federation, tmp_path: Path) -> None:
    """The log is held by another process: the run stops, and the round does not exist."""
    with copy.rounds(tmp_path / "run-2", app=on_disk) as rounds:
        descriptor = os.open(copy.sites / SERVER_FILE, os.O_RDWR)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            with pytest.raises(StorageError, match="in use"):
                rounds.run(copy.initial())
        finally:
            os.close(descriptor)
        progress = rounds.store.load()
        assert progress is not None and progress.round == 0
    assert [r.number for r in receipts(copy.sites / SERVER_FILE)] == [1, 2]


def test_one_servers_receipts_are_one_line_whichever_of_its_runs_and_processes_they_are_from(
    copy: Federation,
) -> None:
    file = copy.sites / SERVER_FILE
    one, two = ReceiptFile(file), ReceiptFile(file)
    one.add(receipt(3, one.head), {})
    with pytest.raises(StorageError, match="another server"):
        two.add(receipt(3, two.head, run="another"), {})
    assert [r.number for r in ReceiptFile(file).receipts] == [1, 2, 3]
    AuditLog(file).write(Receipted(receipt(9, bytes(32)).encode().hex(), {}))
    with pytest.raises(StorageError, match="does not follow"):
        ReceiptFile(file)


def test_D9_B23_a_server_put_back_from_a_backup_is_refused_and_brought_back_from_a_sites_log(
    copy: Federation, tmp_path: Path
) -> None:
    state = (copy.sites / SERVER_FILE).parent
    shutil.copytree(state, tmp_path / "backup")
    run(copy, tmp_path / "run-2")
    shutil.rmtree(state)
    shutil.copytree(tmp_path / "backup", state)
    with pytest.raises(RunFailed, match=r"receipts \(6\).*put back from a backup.*docs/audit\.md"):
        run(copy, tmp_path / "run-3")
    # What the restored server signed since is nothing: it opened no sum.
    assert restore(open_side(copy.sites), open_side(copy.sites / "3")) == 1
    run(copy, tmp_path / "run-4")
    assert [r.number for r in receipts(copy.sites / SERVER_FILE)] == [1, 2, 3, 4, 5]
