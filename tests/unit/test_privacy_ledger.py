"""The ledger: spent is spent, over restarts, cut writes and old copies; in use by one process; private.

Longer than 400 lines because each way to lose a debit has its own case.
"""

from __future__ import annotations

import errno
import json
import math
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tacit.errors import StorageError
from tacit.privacy.accountant import Event, epsilon_pld, epsilon_rdp, fits
from tacit.privacy.chain_file import ChainFile
from tacit.privacy.ledger import Ledger
from tacit.privacy.plan import PrivacyPlan

ROUND = Event("poisson_gaussian", 1.5, 0.1, 5)
METRICS = Event("gaussian", 30.0)
DELTA = 1e-5


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledgers" / "clinic.jsonl"


def head_of(path: Path) -> Path:
    return path.with_name(path.name + ".head")


def fill(path: Path, debits: int, *, durable: bool = False) -> tuple[int, str]:
    with Ledger.open(path, durable=durable) as ledger:
        for i in range(debits):
            ledger.debit("run", i + 1, 1, "training", "record", ROUND, delta=DELTA)
        return ledger.head


def crash_while_writing(path: Path, debits: int, cut: int) -> None:
    """The disk after `debits` debits and `cut` bytes of the next, whose head was never written."""
    fill(path, debits)
    head = head_of(path).read_bytes()
    fill(path, 1)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:-1]) + lines[-1][:cut])
    head_of(path).write_bytes(head)


# ---- what is in it


def test_a_debit_is_on_file_with_all_that_it_says(path: Path) -> None:
    with Ledger.open(path) as ledger:
        entry = ledger.debit("run-7", 3, 2, "training", "record", ROUND, delta=1e-4)
        assert ledger.entries == (entry,) and ledger.head == (1, entry.hash)
    record = json.loads(path.read_text())
    assert record["event"] == ROUND.to_dict() and record["delta"] == 1e-4
    assert (record["run"], record["round"], record["attempt"], record["purpose"]) == (
        "run-7",
        3,
        2,
        "training",
    )
    assert (record["unit"], record["sequence"], record["previous"], record["hash"]) == (
        "record",
        1,
        "0" * 64,
        entry.hash,
    )
    assert record["time"].endswith("+00:00")
    with Ledger.open(path) as ledger:
        assert ledger.entries == (entry,)


def test_I11_runs_restarts_and_aborted_attempts_cost_as_one_composition(path: Path) -> None:
    other = Event("poisson_gaussian", 2.0, 0.05, 10)
    for run, event in (("a", ROUND), ("b", other), ("a", ROUND)):
        for attempt in (1, 2):
            with Ledger.open(path, durable=False) as ledger:
                ledger.debit(run, 1, attempt, "training", "record", event)
                ledger.debit(run, 1, attempt, "metrics", "record", METRICS)
    with Ledger.open(path) as ledger:
        at_once = [ROUND.repeated(4), other.repeated(2), METRICS.repeated(6)]
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(at_once, DELTA), abs=1e-9)
        assert ledger.spent_by_run("a", DELTA) == epsilon_pld([ROUND.repeated(4), METRICS.repeated(4)], DELTA)
        assert ledger.spent_by_run("nobody", DELTA) == 0


SUM = Event("discrete_gaussian_sum", 2.0, num_shares=8, share_std=46000.0)


def test_each_unit_has_its_own_figure_in_one_ledger(path: Path) -> None:
    with Ledger.open(path, durable=False) as ledger:
        for number in (1, 2):
            ledger.debit("both", number, 1, "training", "record", ROUND)
            ledger.debit("both", number, 1, "sum", "client", SUM)
        assert ledger.spent(DELTA, "client") == epsilon_rdp(SUM.repeated(2), DELTA)
        assert ledger.spent(DELTA) == epsilon_rdp(ROUND.repeated(2), DELTA)
        assert ledger.spent_by_run("both", DELTA) == epsilon_pld(ROUND.repeated(2), DELTA)
        assert ledger.spent_by_run("both", DELTA, "client") == ledger.spent(DELTA, "client")
        ledger.debit("clients", 1, 1, "sum", "client", SUM)
        assert ledger.spent(DELTA, "client") == pytest.approx(epsilon_rdp(SUM.repeated(3), DELTA))
        # For a record it is as if its client had sent another vector: two replaced by zeros.
        replaced = Event("gaussian", 1.0)
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp([ROUND.repeated(2), replaced], DELTA))
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp([ROUND.repeated(2), replaced], DELTA))


def test_a_debit_for_clients_counts_for_records_unless_its_own_round_has_paid_for_them(path: Path) -> None:
    """One cheap round for records must not pay for all that is released under the same id."""
    with Ledger.open(path, durable=False) as ledger:
        for experiment in ("aa", ""):  # as it is written down, and as earlier versions left it
            ledger.debit("x", 1, 1, "training", "record", METRICS, experiment=experiment)
            ledger.debit("x", 1, 1, "sum", "client", SUM, experiment=experiment)
            ledger.debit("x", 1, 2, "sum", "client", SUM, experiment=experiment)
        paid = METRICS.repeated(2)
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(paid, DELTA))
        ledger.debit("x", 2, 1, "sum", "client", SUM, experiment="aa")
        ledger.debit("x", 1, 3, "sum", "client", SUM, experiment="bb")
        wanted = epsilon_rdp([paid, SUM.doubled().repeated(2)], DELTA)
        assert ledger.spent(DELTA) == pytest.approx(wanted)
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.spent(DELTA) == pytest.approx(wanted)


def test_F4_a_cut_debit_for_clients_is_charged_to_records_like_a_whole_one(path: Path) -> None:
    with Ledger.open(path, durable=False) as ledger:
        ledger.debit("a", 1, 1, "sum", "client", SUM)
    with path.open("ab") as file:
        file.write(b'{"attempt":1,"del')
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.spent(DELTA, "client") == pytest.approx(epsilon_rdp(SUM.repeated(2), DELTA))
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(SUM.doubled().repeated(2), DELTA))


def test_an_entry_of_a_version_that_wrote_down_no_experiment_is_read_and_binds_its_run_to_none(
    path: Path,
) -> None:
    fields = {
        "time": "2030-01-01T00:00:00+00:00",
        "run": "a",
        "round": 1,
        "attempt": 1,
        "purpose": "training",
    }
    with ChainFile.open(path, durable=False)[0] as file:
        file.append({**fields, "unit": "record", "event": ROUND.to_dict(), "delta": DELTA})
    with Ledger.open(path, durable=False) as ledger:
        assert [entry.experiment for entry in ledger.entries] == [""]
        assert not ledger.is_of_another("a", "aa")
        ledger.debit("a", 2, 1, "training", "record", ROUND, experiment="aa")
    with Ledger.open(path, durable=False) as ledger:
        assert not ledger.is_of_another("a", "aa") and ledger.is_of_another("a", "bb")
        assert not ledger.is_of_another("b", "bb")
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(ROUND.repeated(2), DELTA))


def test_a_ceiling_holds_for_each_unit(path: Path) -> None:
    alone = epsilon_rdp(SUM, DELTA)
    with Ledger.open(path, durable=False) as ledger:
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        assert not ledger.would_exceed(SUM, 1.01 * alone, DELTA, run="a", unit="client")
        ledger.debit("a", 1, 1, "sum", "client", SUM)
        assert ledger.would_exceed(SUM, 1.01 * alone, DELTA, run="a", unit="client")
        assert not ledger.would_exceed(ROUND, 3.0, DELTA, run="a")


def test_a_release_without_noise_costs_infinity(path: Path) -> None:
    with Ledger.open(path, durable=False) as ledger:
        ledger.debit("a", 1, 1, "training", "none", Event("poisson_gaussian", 0.0, 0.1, 5))
        assert ledger.spent(DELTA) == math.inf
        assert ledger.would_exceed(METRICS, 1e6, DELTA)


def test_only_the_same_bytes_sent_again_are_free(path: Path) -> None:
    with Ledger.open(path, durable=False) as ledger:
        first = ledger.debit("a", 1, 1, "training", "record", ROUND)
        assert ledger.debit("a", 1, 1, "training", "record", ROUND, cached=True) == first
        assert len(ledger.entries) == 1
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        ledger.debit("a", 1, 2, "training", "record", ROUND, cached=True)
        ledger.debit("a", 1, 1, "training", "record", METRICS, cached=True)
        assert [entry.sequence for entry in ledger.entries] == [1, 2, 3, 4]


def test_a_debit_does_not_import_the_accountant_or_torch() -> None:
    program = """
import sys, tempfile, pathlib
from tacit.privacy.ledger import Ledger
from tacit.privacy.accountant import Event
with Ledger.open(pathlib.Path(tempfile.mkdtemp()) / "x.jsonl") as ledger:
    ledger.debit("a", 1, 1, "training", "record", Event("gaussian", 1.0))
print(*{"dp_accounting", "torch", "scipy", "flwr"} & set(sys.modules))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.strip() == ""


# ---- ceilings


def test_the_ceiling_holds_for_events_chosen_adaptively(path: Path) -> None:
    """Debits are admitted while the filter admits them: never past the ceiling, nor far below it."""
    with Ledger.open(path, durable=False) as ledger:
        while not ledger.would_exceed(ROUND, 3.0, DELTA):
            ledger.debit(f"run-{len(ledger.entries)}", 1, 1, "training", "record", ROUND)
        made = len(ledger.entries)
        assert epsilon_rdp(ROUND.repeated(made), DELTA) <= 3.0
        assert fits(ROUND.repeated(made), 3.0, DELTA) and not fits(ROUND.repeated(made + 1), 3.0, DELTA)
        assert epsilon_pld(ROUND.repeated(made), DELTA) > 2.4
        assert not ledger.would_exceed((), 3.0, DELTA) and ledger.would_exceed([ROUND, METRICS], 3.0, DELTA)


def test_a_single_run_may_use_all_of_its_plan_under_a_ceiling_of_the_same_epsilon(path: Path) -> None:
    plan = PrivacyPlan.from_budget(1.0, 1e-4, sampling_rate=0.1, steps_per_round=5, rounds=20)
    with Ledger.open(path, durable=False) as ledger:
        for debit in range(plan.debits):
            assert not ledger.would_exceed(plan.round_event(), 1.0, 1e-4, run="a")
            ledger.debit("a", debit, 1, "training", "record", plan.round_event())
            if debit == plan.debits - 3:  # a second run could have been chosen for what the first one gave
                assert not ledger.would_exceed(METRICS, 1.0, 1e-4, run="a")
                assert ledger.would_exceed(METRICS, 1.0, 1e-4, run="b")
                assert ledger.would_exceed(METRICS, 1.0, 1e-4, run="a", experiment="another")
        assert ledger.would_exceed(plan.round_event(), 1.0, 1e-4)
        assert ledger.would_exceed(plan.round_event(), 1.0, 1e-4, run="a")


# ---- damage


def test_F3_flipped_byte_is_detected(path: Path) -> None:
    fill(path, 10)
    good = path.read_bytes()
    starts = [0]
    for line in good.splitlines(keepends=True):
        starts.append(starts[-1] + len(line))
    for at in range(len(good)):
        path.write_bytes(good[:at] + bytes([good[at] ^ 0x20]) + good[at + 1 :])
        with pytest.raises(StorageError) as caught:
            Ledger.open(path)
        line = max(i for i in range(10) if starts[i] <= at) + 1
        assert str(caught.value).startswith(f"{path}:{line}: "), at
    path.write_bytes(good)
    with Ledger.open(path) as ledger:
        assert len(ledger.entries) == 10


def test_F3_a_changed_head_is_detected(path: Path) -> None:
    fill(path, 3)
    good = head_of(path).read_bytes()
    for at in range(len(good)):
        head_of(path).write_bytes(good[:at] + bytes([good[at] ^ 1]) + good[at + 1 :])
        with pytest.raises(StorageError, match=r"clinic\.jsonl"):
            Ledger.open(path)


def test_F3_reordered_repeated_and_removed_records_are_detected(path: Path) -> None:
    fill(path, 4)
    a, b, c, d = path.read_bytes().splitlines(keepends=True)
    for lines in ([a, c, b, d], [a, b, b, d], [b, c, d], [a, b, d], [a, b, c], []):
        path.write_bytes(b"".join(lines))
        with pytest.raises(StorageError, match="backup"):
            Ledger.open(path)


def test_F4_truncation_at_each_length_is_refused_when_the_head_knows_better(path: Path) -> None:
    fill(path, 10)
    good = path.read_bytes()
    for length in range(len(good)):
        path.write_bytes(good[:length])
        with pytest.raises(StorageError, match="Put back the newest copy"):
            Ledger.open(path)


def test_F4_a_record_cut_at_any_length_counts_as_spent(tmp_path: Path) -> None:
    fill(tmp_path / "whole" / "l", 3)
    last = (tmp_path / "whole" / "l").read_bytes().splitlines(keepends=True)[-1]
    three, four = epsilon_rdp(ROUND.repeated(3), DELTA), epsilon_rdp(ROUND.repeated(4), DELTA)
    for cut in range(1, len(last) + 1):
        path = tmp_path / f"cut{cut}" / "l"
        crash_while_writing(path, 2, cut)
        with Ledger.open(path, durable=False) as ledger:
            assert ledger.spent(DELTA) == pytest.approx(three, abs=1e-9)
            assert len(ledger.entries) == 3 if cut == len(last) else ledger.num_torn == 1
            ledger.debit("run", 9, 1, "training", "record", ROUND)
            assert ledger.spent(DELTA) == pytest.approx(four, abs=1e-9)
        with Ledger.open(path) as ledger:
            assert ledger.spent(DELTA) == pytest.approx(four, abs=1e-9)


def test_F4_what_a_cut_write_left_is_kept_and_its_hash_named(path: Path) -> None:
    crash_while_writing(path, 1, 40)
    torn = path.read_bytes().splitlines(keepends=True)[1]
    fill(path, 1)
    data = path.read_bytes()
    assert data.splitlines()[1].startswith(torn)
    with Ledger.open(path) as ledger:
        assert ledger.entries[1].torn and ledger.num_torn == 1
    at = data.index(b"\n") + 1
    path.write_bytes(data[:at] + b"X" + data[at + 1 :])
    with pytest.raises(StorageError, match=f"{path}:2: "):
        Ledger.open(path)


def test_F4_a_cut_write_is_charged_like_the_dearest_debit(path: Path) -> None:
    with Ledger.open(path, durable=False) as ledger:
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        ledger.debit("a", 1, 1, "metrics", "record", METRICS)
    with path.open("ab") as file:
        file.write(b'{"attempt":1,"del')
    with Ledger.open(path) as ledger:
        assert ledger.spent(DELTA) == pytest.approx(
            epsilon_rdp([ROUND.repeated(2), METRICS], DELTA), abs=1e-9
        )


def test_F4_a_cut_first_write_is_charged_like_the_next(path: Path) -> None:
    crash_while_writing(path, 0, 17)
    with Ledger.open(path, durable=False) as ledger:
        assert ledger.num_torn == 1 and ledger.entries == ()
        enough_for_one = 1.2 * epsilon_rdp(ROUND, DELTA)
        assert fits(ROUND, enough_for_one, DELTA) and ledger.would_exceed(ROUND, enough_for_one, DELTA)
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(ROUND.repeated(2), DELTA), abs=1e-9)


def test_F4_a_torn_write_whose_last_sector_alone_reached_the_disk_counts(path: Path) -> None:
    """512-byte sectors may arrive in any order, so the end of a line can be there without its start."""
    crash_while_writing(path, 2, 10_000)
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join(lines[:2]) + bytes(200) + lines[2][200:])
    for torn, entries in ((1, 2), (1, 3), (1, 4)):
        with Ledger.open(path, durable=False) as ledger:
            assert (ledger.num_torn, len(ledger.entries)) == (torn, entries)
            ledger.debit("run", 9, 1, "training", "record", ROUND)


def test_F4_an_old_copy_is_refused_when_a_peer_remembers_more(path: Path) -> None:
    fill(path, 3)
    old, old_head = path.read_bytes(), head_of(path).read_bytes()
    witness = fill(path, 2)
    Ledger.open(path, witness=witness).close()
    path.write_bytes(old)
    head_of(path).write_bytes(old_head)
    Ledger.open(path).close()
    with pytest.raises(StorageError, match=r"restored from a backup.*release nothing more"):
        Ledger.open(path, witness=witness)
    other = (2, "ab" * 32)
    with pytest.raises(StorageError, match="backup"):
        Ledger.open(path, witness=other)


def test_F4_a_ledger_ahead_of_its_head_after_a_crash_is_accepted(path: Path) -> None:
    fill(path, 3)
    head = head_of(path).read_bytes()
    ahead = fill(path, 1)
    head_of(path).write_bytes(head)
    with Ledger.open(path) as ledger:
        assert ledger.head == ahead
    assert head_of(path).read_bytes() != head


@pytest.mark.parametrize("lost", ["ledger", "head"])
def test_F4_a_lost_file_is_refused(path: Path, lost: str) -> None:
    fill(path, 3)
    (path if lost == "ledger" else head_of(path)).unlink()
    with pytest.raises(StorageError, match="backup"):
        Ledger.open(path)


def test_a_record_of_another_version_is_refused(path: Path) -> None:
    from tacit.privacy.chain_file import ChainFile

    file, _ = ChainFile.open(path)
    file.append({"kind": "unknown"})
    file.close()
    with pytest.raises(StorageError, match="not a ledger of this version"):
        Ledger.open(path)
    with pytest.raises(StorageError, match="not a ledger of this version"):
        Ledger.open(path)  # the lock was given free


# ---- one owner, private, durable


def test_F5_two_processes_that_use_it_for_a_moment_each_do_not_lose_a_debit(path: Path) -> None:
    program = f"""
import pathlib, time
from tacit.errors import StorageError
from tacit.privacy.accountant import Event
from tacit.privacy.ledger import Ledger
for i in range(30):
    time.sleep(0.01)
    for attempt in range(50):  # on a busy machine the other process may be held up while it has the lock
        try:
            with Ledger.open(pathlib.Path({str(path)!r}), durable=False) as ledger:
                ledger.debit("a", i, 1, "training", "record", Event("gaussian", 1.0))
            break
        except StorageError as error:
            assert "in use by another process" in str(error)
    else:
        raise SystemExit(1)
"""
    processes = [subprocess.Popen([sys.executable, "-c", program]) for _ in range(2)]
    assert [process.wait() for process in processes] == [0, 0]
    with Ledger.open(path) as ledger:
        assert len(ledger.entries) == 60


def test_F5_a_second_opener_is_refused_at_once(path: Path) -> None:
    program = f"""
import time, pathlib
from tacit.privacy.ledger import Ledger
from tacit.errors import StorageError
start = time.perf_counter()
try:
    Ledger.open(pathlib.Path({str(path)!r}))
except StorageError as error:
    assert "in use by another process" in str(error)
    assert time.perf_counter() - start < 10  # 0.4 on a quiet machine
    print("refused")
"""
    with Ledger.open(path):
        done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
        assert done.stdout == "refused\n"
        with pytest.raises(StorageError, match="in use"):
            Ledger.open(path)
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout == ""


def test_K2_files_are_0600_in_a_0700_folder_whatever_the_umask(path: Path) -> None:
    before = os.umask(0)
    try:
        fill(path, 1)
    finally:
        os.umask(before)
    modes = {file.name: file.stat().st_mode & 0o777 for file in (path.parent, path, head_of(path))}
    assert modes == {"ledgers": 0o700, "clinic.jsonl": 0o600, "clinic.jsonl.head": 0o600}


@pytest.mark.parametrize("name", ["ledger", "head", "folder"])
@pytest.mark.parametrize("bit", [0o040, 0o020, 0o010, 0o004, 0o002, 0o001])
def test_K2_wider_is_refused_at_open(path: Path, name: str, bit: int) -> None:
    fill(path, 1)
    wide = {"ledger": path, "head": head_of(path), "folder": path.parent}[name]
    wide.chmod((0o700 if name == "folder" else 0o600) | bit)
    with pytest.raises(StorageError, match="chmod go-rwx"):
        Ledger.open(path)
    wide.chmod(0o700 if name == "folder" else 0o600)
    Ledger.open(path).close()


def test_K2_a_link_is_not_followed(path: Path, tmp_path: Path) -> None:
    fill(path, 1)
    for file in (path, head_of(path)):
        target = tmp_path / "elsewhere"
        file.rename(target)
        file.symlink_to(target)
        with pytest.raises(StorageError):
            Ledger.open(path)
        file.unlink()
        target.rename(file)


class Calls:
    """Records the order of the real system calls."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.made: list[str] = []
        for name in ("write", "fsync"):
            monkeypatch.setattr(os, name, self._recorded(name, getattr(os, name)))

    def _recorded(self, name: str, call: Callable[..., int]) -> Callable[..., int]:
        def recorded(descriptor: int, *data: bytes) -> int:
            target = Path(os.readlink(f"/proc/self/fd/{descriptor}")).name
            self.made.append(f"{name} {target}")
            return call(descriptor, *data)

        return recorded


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_D6_record_then_head_are_on_the_disk_before_a_debit_is_answered(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = Calls(monkeypatch)
    with Ledger.open(path) as ledger:
        at_creation, calls.made = calls.made, []
        assert at_creation[-1] == "fsync ledgers"  # the folder, before any debit
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        assert calls.made == [
            "write clinic.jsonl",
            "fsync clinic.jsonl",
            "write clinic.jsonl.head",
            "fsync clinic.jsonl.head",
        ]


@pytest.mark.parametrize("failing", ["fsync", "write"])
def test_F7_after_a_failed_write_nothing_more_is_debited(
    path: Path, monkeypatch: pytest.MonkeyPatch, failing: str
) -> None:
    with Ledger.open(path) as ledger:
        ledger.debit("a", 1, 1, "training", "record", ROUND)
        working = getattr(os, failing)

        def broken(*_: object) -> int:
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(os, failing, broken)
        with pytest.raises(StorageError, match="nothing may be released"):
            ledger.debit("a", 2, 1, "training", "record", ROUND)
        monkeypatch.setattr(os, failing, working)
        with pytest.raises(StorageError, match="open it again"):
            ledger.debit("a", 3, 1, "training", "record", ROUND)
    with Ledger.open(path) as ledger:
        assert len(ledger.entries) == (2 if failing == "fsync" else 1)
        ledger.debit("a", 4, 1, "training", "record", ROUND)


def test_F1_a_full_disk_stops_the_debit_and_the_ledger_resumes_after(path: Path) -> None:
    program = f"""
import pathlib, resource, signal
from tacit.errors import StorageError
from tacit.privacy.accountant import Event
from tacit.privacy.ledger import Ledger
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
with Ledger.open(pathlib.Path({str(path)!r})) as ledger:
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))
    for i in range(100):
        try:
            ledger.debit("a", i, 1, "training", "record", Event("poisson_gaussian", 1.5, 0.1, 5))
        except StorageError:
            print(i)
            break
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    made = int(done.stdout)
    with Ledger.open(path) as ledger:
        assert len(ledger.entries) == made and ledger.num_torn == 1
        assert ledger.spent(DELTA) == pytest.approx(epsilon_rdp(ROUND.repeated(made + 1), DELTA), abs=1e-9)
        ledger.debit("a", made, 2, "training", "record", ROUND)


def test_F2_a_folder_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        Ledger.open(tmp_path / "file" / "ledger")


def test_F8_ten_thousand_records_load_in_under_a_second(path: Path) -> None:
    """Seconds of this process: others on the machine do not count."""
    fill(path, 10_000)
    start = time.process_time()
    with Ledger.open(path) as ledger:
        assert time.process_time() - start < 1
        assert len(ledger.entries) == 10_000
        ledger.would_exceed(ROUND, 1.0, DELTA)  # imports the accountant
        ledger.debit("run", 1, 2, "training", "record", ROUND)
        start = time.process_time()
        assert ledger.would_exceed(ROUND, 1.0, DELTA)
        assert time.process_time() - start < 0.1
