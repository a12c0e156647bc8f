"""`tacit simulate --resume` after `kill -9` and Ctrl-C of real processes."""

import json
import os
import random
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from warm_processes import Run, Warm, warm

from server.state import read_rounds
from tacit.privacy.ledger import Entry, Ledger

EXPERIMENT = """
name = "interrupted"
[partition]
num_clients = 5
[task.model]
hidden = [4]
[training]
rounds = 60
local_steps = 1
sampling_rate = 0.5
learning_rate = 0.5
[secure_aggregation]
max_dropouts = 1
[checkpoints]
keep = 2
[simulation]
baselines = false
"""

PRIVATE = """
[privacy.record]
epsilon = 20.0
delta = 1e-5
reserve = 3.0
"""

# The search for the noise multiplier takes a second and is the same for every run here.
NOISE = """
from tacit import config
from tacit.privacy.plan import PrivacyPlan
PrivacyPlan.of(config.loads('''EXPERIMENT'''))
""".replace("EXPERIMENT", EXPERIMENT + PRIVATE)

NUM_SITES = 5


@pytest.fixture(scope="module")
def tacit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm(tmp_path_factory, NOISE) as parent:
        yield parent


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "interrupted.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def whole(tacit: Warm, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that nobody has interrupted."""
    out = tmp_path_factory.mktemp("whole") / "out"
    run = tacit.run("simulate", experiment, "--out", out, "--quiet")
    assert (run.wait(), run.stderr) == (0, "")
    return out


def rounds(out: Path) -> list[dict[str, Any]]:
    """Rounds as written down, but for what a clock says."""
    return [{**row, "seconds": None, "phases": None} for row in read_rounds(out / "server" / "rounds.jsonl")]


def wait_for(run: Run, out: Path, more: int) -> None:
    """Until so many more rounds are written down, or the run has ended."""
    path = out / "server" / "rounds.jsonl"
    seen = path.read_bytes().count(b"\n") if path.exists() else 0
    while run.running and (not path.exists() or path.read_bytes().count(b"\n") < seen + more):
        time.sleep(0.001)


def interrupted(run: Run, out: Path, rng: random.Random, whole: Path) -> None:
    """`kill -9` at a random moment of a random round, or while the run is still beginning.

    Moments are measured by the run that nobody interrupts: on a fast machine too, rounds are left when it is killed.
    """
    if rng.random() < 0.8:
        wait_for(run, out, rng.randrange(1, 5))
        seconds = sorted(row["seconds"] for row in read_rounds(whole / "server" / "rounds.jsonl"))
        time.sleep(rng.uniform(0, 2 * seconds[len(seconds) // 2]))
    else:
        time.sleep(rng.uniform(0, json.loads((whole / "report.json").read_text())["timings"]["sites"]))
    run.send(signal.SIGKILL)
    run.wait()


def test_D1_D2_kill_9_at_random_moments_loses_no_round_and_the_model_is_bit_equal(
    tacit: Warm, experiment: Path, whole: Path, tmp_path: Path
) -> None:
    rng, out, killed = random.Random(1), tmp_path / "out", 0
    run = tacit.start("simulate", experiment, "--out", out, "--quiet")
    for _ in range(7):
        interrupted(run, out, rng, whole)
        killed += run.code == -signal.SIGKILL
        done = len(rounds(out))
        run = tacit.start("simulate", experiment, "--out", out, "--quiet", "--resume")
    assert (run.wait(), run.stderr) == (0, "")
    assert killed >= 3  # 7, unless this process slept while the other made dozens of rounds
    assert done > 0
    assert rounds(out) == rounds(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    a, b = (json.loads((folder / "report.json").read_text()) for folder in (out, whole))
    assert a["final"] == b["final"]
    assert [row["round"] for row in a["rounds"]] == list(range(1, 61))


def entries(out: Path) -> list[tuple[Entry, ...]]:
    """What each site has written down, and that it can be read at all."""
    found: list[tuple[Entry, ...]] = []
    for i in range(NUM_SITES):
        path = out / "sites" / str(i) / "ledger" / "ledger.jsonl"
        if path.exists():
            with Ledger.open(path) as ledger:
                found.append(ledger.entries)
        else:
            found.append(())
    return found


def test_D5_kill_9_never_lowers_what_is_spent_nor_leaves_a_release_unpaid(
    tacit: Warm, whole: Path, tmp_path: Path
) -> None:
    experiment = tmp_path / "private.toml"
    experiment.write_text(EXPERIMENT + PRIVATE)
    rng, out, killed = random.Random(2), tmp_path / "out", 0
    before: list[tuple[Entry, ...]] = [()] * NUM_SITES
    run = tacit.start("simulate", experiment, "--out", out, "--quiet")
    for _ in range(6):
        interrupted(run, out, rng, whole)
        killed += run.code == -signal.SIGKILL
        now = entries(out)
        for earlier, later in zip(before, now, strict=True):
            assert later[: len(earlier)] == earlier, "what was spent stays spent"
        check_paid(out, now)
        before = now
        run = tacit.start("simulate", experiment, "--out", out, "--quiet", "--resume")
    assert (run.wait(), run.stderr) == (0, "")
    assert killed >= 3
    check_paid(out, entries(out))
    [entry] = json.loads((out / "report.json").read_text())["privacy"]
    assert entry["epsilon_spent"] <= entry["epsilon"] <= 20.0


def check_paid(out: Path, paid: list[tuple[Entry, ...]]) -> None:
    """Every vector that is in a released sum has been debited at its site, in this run."""
    if not (out / "server" / "run.json").exists():
        return
    run = json.loads((out / "server" / "run.json").read_text())["run"]
    for row in rounds(out):
        for label in row["survivors"]:
            site = int(label.removeprefix("site-")) - 1
            assert any(e.round == row["round"] and e.run == run for e in paid[site]), (row["round"], label)


def test_ctrl_c_is_one_line_and_130_and_leaves_a_run_that_goes_on(
    tacit: Warm, experiment: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run = tacit.start("simulate", experiment, "--out", out)
    for resumed in (True, True, False):
        wait_for(run, out, 3)
        run.send(signal.SIGINT)
        assert run.wait() == 130
        assert run.stderr.strip() == "tacit: interrupted; what was complete is kept"
        assert "Traceback" not in run.stdout
        assert "\x1b" not in run.stdout
        if resumed:
            run = tacit.start("simulate", experiment, "--out", out, "--resume")
    assert 9 <= len(rounds(out)) < 60
    run = tacit.run("simulate", experiment, "--out", out, "--resume", "--quiet")
    assert (run.wait(), run.stderr) == (0, "")
    assert rounds(out) == rounds(whole)
    assert (out / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


def test_ctrl_c_leaves_the_terminal_as_it_was(tacit: Warm, experiment: Path, tmp_path: Path) -> None:
    master, slave = os.openpty()
    screen = bytearray()

    def watch() -> None:
        with suppress(OSError):  # the other end is closed
            while part := os.read(master, 4096):
                screen.extend(part)

    watcher = threading.Thread(target=watch)
    try:
        run = tacit.start("simulate", experiment, "--out", tmp_path / "out", terminal=os.ttyname(slave))
        watcher.start()
        wait_for(run, tmp_path / "out", 3)
        run.send(signal.SIGINT)
        assert run.wait() == 130
    finally:
        os.close(slave)
        watcher.join()
        os.close(master)
    shown = screen.decode()
    assert "training" in shown
    assert "/60" in shown
    assert shown.count("\x1b[?25l") == shown.count("\x1b[?25h") == 1, "the cursor is hidden, and shown again"
    assert shown.rindex("\x1b[?25h") > shown.rindex("training")
    assert "Traceback" not in shown + run.stderr


def test_a_finished_run_resumed_gives_its_report_again(
    tacit: Warm, experiment: Path, whole: Path, tmp_path: Path
) -> None:
    before = json.loads((whole / "report.json").read_text())
    run = tacit.run("simulate", experiment, "--out", whole, "--resume", "--quiet")
    assert (run.wait(), run.stderr) == (0, "")
    after = json.loads((whole / "report.json").read_text())
    for key in ("run_id", "rounds", "final", "privacy", "experiment", "partition"):
        assert after[key] == before[key], key
