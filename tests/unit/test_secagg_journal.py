"""The journal of secure sums: what was answered, masked and signed stays so, over restarts and kills.

Longer than 400 lines because each event is forgotten in its own way: by a restart, a kill, a cut, an old copy.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from tacit.errors import ProtocolError, StorageError
from tacit.privacy.chain_file import ChainFile
from tacit.secagg.journal import FileJournal, Journal, MemoryJournal


def h(*what: object) -> bytes:
    return sha256(repr(what).encode()).digest()


CTX0, CTX2, A, B = h("ctx0"), h("ctx2"), h("survivors A"), h("survivors B")
MODEL, CONFIG = h("model"), h("config")
SIGNED = ("answer", "mask", "sign")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "journals" / "clinic.jsonl"


def answer(journal: Journal, round: int = 1, attempt: int = 1, run: str = "run", **changes: bytes) -> None:
    fields = {"model": MODEL, "config": CONFIG, "ctx0": h(run, round, attempt), **changes}
    journal.answered(run, round, attempt, **fields)


def drive(journal: Journal, *steps: str) -> None:
    for step in steps:
        {
            "answer": lambda: answer(journal, ctx0=CTX0),
            "peers": lambda: journal.see_peers({1: 3, 2: 1}),
            "mask": lambda: journal.masked(CTX0, CTX2),
            "sign": lambda: journal.sign(CTX2, A),
        }[step]()


def reason_of(call: Callable[[], object]) -> str:
    with pytest.raises(ProtocolError) as caught:
        call()
    return caught.value.reason


class Kinds:
    """Each rule is tested on a journal in memory, on a file, and on a file opened anew before each event."""

    def __init__(self, kind: str, path: Path) -> None:
        self.kind, self.path = kind, path
        self.journal: Journal = MemoryJournal() if kind == "memory" else FileJournal.open(path, durable=False)

    def __call__(self) -> Journal:
        if self.kind == "reopened":
            self.journal.close()
            self.journal = FileJournal.open(self.path, durable=False)
        return self.journal


@pytest.fixture(params=["memory", "file", "reopened"])
def now(request: pytest.FixtureRequest, path: Path):
    kinds = Kinds(request.param, path)
    yield kinds
    kinds.journal.close()


# ---- attempts


@pytest.mark.parametrize(
    ("before", "then", "reason"),
    [
        ([(5, 1)], (4, 1), "round"),
        ([(5, 1), (6, 1)], (5, 2), "round"),
        ([(5, 1)], (0, 3), "round"),
        ([(5, 1)], (5, 1), "attempt"),
        ([(5, 2)], (5, 1), "attempt"),
        ([(5, 1), (5, 2), (5, 3)], (5, 4), "attempt"),
        ([], (1, 4), "attempt"),
        ([], (1, 0), "attempt"),
        ([(1, 3)], (1, 3), "attempt"),
    ],
)
def test_B23_B20_no_round_goes_back_and_no_attempt_comes_twice_or_a_fourth_time(now, before, then, reason):
    for round, attempt in before:
        answer(now(), round, attempt)
    counter, head = now().counter, now().head
    assert reason_of(lambda: answer(now(), *then)) == reason
    assert (now().counter, now().head) == (counter, head)


@pytest.mark.parametrize("changed", ["model", "config"])
def test_B32_B13_B14_the_attempts_of_a_round_have_one_model_and_one_config(now, changed):
    answer(now(), 2, 1)
    for attempt in (2, 3):
        assert reason_of(lambda a=attempt: answer(now(), 2, a, **{changed: h("other")})) == changed
    answer(now(), 2, 2)
    assert reason_of(lambda: answer(now(), 2, 3, **{changed: h("other")})) == changed
    answer(now(), 3, 1, **{changed: h("other")})  # the next round has its own


def test_honest_rounds_are_never_refused(now):
    for round in range(1, 6):
        for attempt in range(1, 1 + (3 if round % 2 else 1)):
            answer(now(), round, attempt)
            counter = now().counter
            now().see_peers(dict.fromkeys(range(4), counter))
            now().masked(h("run", round, attempt), h("ctx2", round, attempt))
        now().sign(h("ctx2", round, attempt), h("survivors", round))
    answer(now(), 1, 1, run="another run")
    assert now().counter == 12
    assert now().runs["run"].round == 5 and now().runs["run"].attempt == 3


def test_the_counter_counts_attempts_and_the_site_head_moves_with_each_event(now):
    heads = [now().site_head("run")]
    for number, step in enumerate(("answer", "peers", "mask", "sign"), 1):
        drive(now(), step)
        heads.append(now().site_head("run"))
        assert now().counter == 1 and now().head.counter == number
    assert len(set(heads)) == 5 and {len(head) for head in heads} == {32}
    assert now().site_head("run") == heads[-1] != now().site_head("another")


def test_a_file_and_a_memory_agree_about_everything(path: Path):
    with FileJournal.open(path) as file, MemoryJournal() as memory:
        for journal in (file, memory):
            drive(journal, "answer", "peers", "mask", "sign")
        assert file.site_head("run") == memory.site_head("run")
        assert (file.runs, file.counter, file.head) == (memory.runs, memory.counter, memory.head)


# ---- peers


@pytest.mark.parametrize(
    "lie",
    [
        {1: 2, 2: 9},  # one goes back
        {1: 3, 2: 1},  # the very same list: whoever has lost what it dealt must not deal anew
        {1: 3},  # one stands still
        {2: 0},
    ],
)
def test_B34_a_peer_whose_counter_does_not_go_on_is_refused(now, lie):
    drive(now(), "peers")
    head = now().head
    assert reason_of(lambda: now().see_peers(lie)) == "peer-counter"
    assert now().head == head
    now().see_peers({1: 4, 2: 2, 7: 0})
    assert reason_of(lambda: now().see_peers({1: 5, 7: 0})) == "peer-counter"
    now().see_peers({1: 5})  # what a refused list said of member 1 was not kept


# ---- masked


def test_B19_an_attempt_masks_once(now):
    drive(now(), "answer", "mask")
    for ctx2 in (CTX2, h("another U2")):
        assert reason_of(lambda c=ctx2: now().masked(CTX0, c)) == "masked"


@pytest.mark.parametrize("newer", [(1, 2), (2, 1)])
def test_an_attempt_that_was_given_up_is_neither_masked_nor_signed(now, newer):
    drive(now(), "answer")
    assert reason_of(lambda: now().masked(h("never answered"), CTX2)) == "context"
    answer(now(), *newer)
    assert reason_of(lambda: now().masked(CTX0, CTX2)) == "context"

    now().masked(h("run", *newer), h("new"))
    answer(now(), 3, 1)
    assert reason_of(lambda: now().sign(h("new"), A)) == "context"


# ---- signed


def test_B16_B18_a_second_set_of_survivors_is_refused(now):
    drive(now(), *SIGNED)
    head = now().head
    now().sign(CTX2, A)
    assert reason_of(lambda: now().sign(CTX2, B)) == "survivors"
    now().sign(CTX2, A)
    assert now().head == head


def test_nothing_is_signed_without_having_masked(now):
    assert reason_of(lambda: now().sign(CTX2, A)) == "context"
    drive(now(), "answer")
    assert reason_of(lambda: now().sign(CTX2, A)) == "context"
    assert reason_of(lambda: now().sign(CTX0, A)) == "context"


def test_what_is_no_hash_is_our_own_mistake(now):
    drive(now(), "answer")
    for call in (
        lambda: now().sign(b"", A),
        lambda: now().masked(CTX0, b""),
        lambda: now().masked(b"", CTX2),
        lambda: answer(now(), 2, model=b"short"),
    ):
        with pytest.raises(ValueError, match="a hash has 32 bytes"):
            call()
    drive(now(), "mask")
    with pytest.raises(ValueError, match="a hash has 32 bytes"):
        now().sign(CTX2, b"")


# ---- kills

CLIENT = """
import os, signal, sys
from pathlib import Path
from tacit.privacy import chain_file
from tacit.privacy.chain_file import ChainFile
from tacit.secagg.journal import FileJournal

path, ctx2, survivors, kill_at = Path(sys.argv[1]), *map(bytes.fromhex, sys.argv[2:4]), int(sys.argv[4])
journal, calls = FileJournal.open(path), 0

def counted(call):
    def real(*arguments):
        global calls
        if calls == kill_at:
            os.kill(os.getpid(), signal.SIGKILL)
        calls += 1
        return call(*arguments)
    return real

class Calls:  # the real calls of the operating system, with a kill before the one asked for
    def __getattr__(self, name):
        return counted(getattr(os, name)) if name in ("write", "fsync") else getattr(os, name)

chain_file.os = Calls()
journal.sign(ctx2, survivors)
print("sent", flush=True)
sys.stdin.read()
"""


def client(path: Path, survivors: bytes, kill_at: int = -1) -> subprocess.Popen[str]:
    arguments = [str(path), CTX2.hex(), survivors.hex(), str(kill_at)]
    return subprocess.Popen(
        [sys.executable, "-c", CLIENT, *arguments],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )


def test_B16_a_second_set_is_refused_after_kill_9_between_the_two(path: Path):
    with FileJournal.open(path) as journal:
        drive(journal, "answer", "mask")
    with client(path, A) as process:
        assert process.stdout and process.stdout.readline() == "sent\n"
        process.kill()
    assert process.returncode == -signal.SIGKILL
    with FileJournal.open(path) as journal:
        assert reason_of(lambda: journal.sign(CTX2, B)) == "survivors"
        journal.sign(CTX2, A)


@pytest.mark.parametrize("kill_at", range(4), ids=["write", "fsync", "write-head", "fsync-head"])
def test_B16_a_kill_while_signing_leaves_one_set_or_none(path: Path, kill_at: int):
    """Nothing was sent. What was written counts all the same: another set is refused from the first byte on."""
    with FileJournal.open(path) as journal:
        drive(journal, "answer", "mask")
    with client(path, A, kill_at) as process:
        said = process.communicate(timeout=60)[0]
    assert (said, process.returncode) == ("", -signal.SIGKILL)
    with FileJournal.open(path) as journal:
        if kill_at == 0:
            journal.sign(CTX2, B)
        else:
            assert reason_of(lambda: journal.sign(CTX2, B)) == "survivors"
            journal.sign(CTX2, A)


def test_an_event_is_on_the_disk_before_the_call_returns(path: Path, monkeypatch: pytest.MonkeyPatch):
    synced: list[int] = []
    real = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (real(descriptor), synced.append(os.fstat(descriptor).st_size))
    )
    with FileJournal.open(path) as journal:
        for step in ("answer", "peers", "mask", "sign"):
            synced.clear()
            drive(journal, step)
            assert path.stat().st_size in synced
    with FileJournal.open(path.with_name("other"), durable=False) as journal:
        synced.clear()
        drive(journal, *SIGNED)
        assert synced == []


# ---- records cut short


def cut(path: Path, *steps: str, bytes_left: int) -> None:
    """A journal whose last step was cut off while it was written, before its head was."""
    head = path.with_name(path.name + ".head")
    with FileJournal.open(path, durable=False) as journal:
        drive(journal, *steps[:-1])
        before = head.read_bytes()
        size = path.stat().st_size
        drive(journal, steps[-1])
    os.truncate(path, size + bytes_left)
    head.write_bytes(before)


@pytest.mark.parametrize("bytes_left", [1, 40, -1])
def test_a_signature_cut_short_may_have_been_any(path: Path, bytes_left: int):
    cut(path, *SIGNED, bytes_left=bytes_left if bytes_left > 0 else 200)
    for _ in range(2):
        with FileJournal.open(path) as journal:
            for survivors in (A, B):
                assert reason_of(lambda s=survivors, j=journal: j.sign(CTX2, s)) == "survivors"


def test_a_mask_cut_short_may_have_been_any(path: Path):
    cut(path, "answer", "mask", bytes_left=50)
    for _ in range(2):
        with FileJournal.open(path) as journal:
            assert reason_of(lambda j=journal: j.masked(CTX0, CTX2)) == "masked"
            assert reason_of(lambda j=journal: j.sign(CTX2, A)) == "context"


def test_an_attempt_cut_short_counts_as_one(path: Path):
    cut(path, "answer", bytes_left=50)
    for _ in range(2):
        with FileJournal.open(path) as journal:
            assert journal.counter == 1
    with FileJournal.open(path) as journal:
        answer(journal)
        assert journal.counter == 2


def test_after_a_record_cut_short_a_new_attempt_goes_through(path: Path):
    cut(path, *SIGNED, bytes_left=50)
    for reopened in (False, True):
        with FileJournal.open(path) as journal:
            if not reopened:
                answer(journal, 1, 2)
                journal.masked(h("run", 1, 2), h("new"))
            journal.sign(h("new"), B)
            assert reason_of(lambda j=journal: j.sign(h("new"), A)) == "survivors"


def test_what_was_signed_before_a_record_cut_short_is_still_signed(path: Path):
    cut(path, *SIGNED, "peers", bytes_left=50)
    with FileJournal.open(path) as journal:
        journal.sign(CTX2, A)
        assert reason_of(lambda: journal.sign(CTX2, B)) == "survivors"


# ---- the file


def test_a_file_for_others_is_refused(path: Path):
    with FileJournal.open(path) as journal:
        drive(journal, *SIGNED)
    for mode in (0o644, 0o640, 0o602):
        path.chmod(mode)
        with pytest.raises(StorageError, match="lets other users in"):
            FileJournal.open(path)


def test_an_old_copy_is_refused_by_its_head_and_by_a_witness(path: Path):
    head = path.with_name(path.name + ".head")
    with FileJournal.open(path) as journal:
        drive(journal, "answer", "mask")
    old = path.read_bytes(), head.read_bytes()
    with FileJournal.open(path) as journal:
        drive(journal, "sign")
        witness = journal.head
    path.write_bytes(old[0])
    with pytest.raises(StorageError, match="damaged or missing"):
        FileJournal.open(path)
    head.write_bytes(old[1])
    with pytest.raises(StorageError, match="damaged or missing"):
        FileJournal.open(path, witness=witness)


def test_a_second_process_is_refused(path: Path):
    with FileJournal.open(path), pytest.raises(StorageError, match="in use"):
        FileJournal.open(path)


@pytest.mark.parametrize(
    "record",
    [{}, {"answered": ["run", 1]}, {"masked": [1, 2]}, {"signed": []}, {"peers": ["x", []]}, {"time": 1}],
)
def test_the_file_of_something_else_is_refused_and_given_free(path: Path, record: dict[str, object]):
    file, _ = ChainFile.open(path)
    file.append(record)
    file.close()
    for _ in range(2):
        with pytest.raises(StorageError, match="not a journal"):
            FileJournal.open(path)


def test_a_refused_write_changes_nothing(path: Path, monkeypatch: pytest.MonkeyPatch):
    with FileJournal.open(path) as journal:
        drive(journal, "answer", "mask")
        runs = journal.runs

        def full(descriptor: int, data: bytes) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", full)
        with pytest.raises(StorageError, match="No space left"):
            journal.sign(CTX2, A)
        monkeypatch.undo()
        assert journal.runs == runs
        with pytest.raises(StorageError, match="an earlier write failed"):
            journal.sign(CTX2, A)


def test_a_journal_of_10_000_rounds_opens_in_seconds(path: Path):
    with FileJournal.open(path, durable=False) as journal:
        for round in range(1, 10_001):
            answer(journal, round)
            journal.see_peers(dict.fromkeys(range(10), round))
            journal.masked(h("run", round, 1), h(round))
            journal.sign(h(round), A)
    start = time.process_time()
    with FileJournal.open(path) as journal:
        assert journal.counter == 10_000
    assert time.process_time() - start < 5  # about half a second
    assert path.stat().st_size < 20e6
