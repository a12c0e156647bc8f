"""The queue of runs on disk, and the commands that use nothing else."""

import json
import shutil
import threading
import time
from pathlib import Path

import pytest

from server.experiments import ready_for
from server.runs import Queue, Run
from server.state import RunState, is_worked_on, locked, starts_of
from tacit import config
from tacit.cli import main
from tacit.config import Experiment
from tacit.errors import ConfigError, RunFailed, StorageError
from tests.unit.federation_kits import enrolled, revoked, signed
from tests.unit.run_folders import progress, record

# Flower's own use of pathspec, for the hash of the bundle in the roster.
pytestmark = pytest.mark.filterwarnings("ignore:GitWildMatchPattern:DeprecationWarning")

EXPERIMENT = """
name = "clinics"
[data.schema]
label = "y"
classes = ["0", "1"]
[data.schema.columns]
x = { kind = "numeric", range = [0, 1] }
[training]
rounds = 3
"""


def experiment(*overrides: str) -> Experiment:
    return config.loads(EXPERIMENT, overrides=overrides)


@pytest.fixture(scope="module")
def first_kit(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A coordinator's kit with four sites in the second epoch of the roster, and one that was revoked."""
    rules = {"max_dropouts": 1, "min_clients": 4, "max_clients": 4, "rounds": [1, 50]}
    rows = {f"site-{i}": 100 + i for i in range(5)}
    kit = enrolled(tmp_path_factory.mktemp("kits"), rows, rules=rules)
    signed(kit)
    revoked(kit, "site-2")
    return kit.folder


@pytest.fixture
def kit(first_kit: Path, tmp_path: Path) -> Path:
    return shutil.copytree(first_kit, tmp_path / "kit")


@pytest.fixture
def queue(kit: Path) -> Queue:
    return Queue(kit / "state" / "runs")


# -- the queue ---------------------------------------------------------------------------------------------------


def test_the_run_that_was_begun_is_next_then_the_oldest(queue: Queue) -> None:
    first, second, third = (queue.submit(experiment()) for _ in range(3))
    assert [run.id for run in queue.runs()] == [first.id, second.id, third.id]
    assert queue.next() == first
    first.set("failed", "why")
    assert queue.next() == second
    third.set("running")  # of a server that was killed
    assert queue.next() == third
    for run in (second, third):
        run.set("finished")
    assert queue.next() is None


def test_a_run_has_its_id_from_the_beginning(queue: Queue) -> None:
    run = queue.submit(experiment())
    state = RunState(run.folder, run.experiment, 0)
    assert state.run_id == run.id
    assert starts_of(run.folder) == 1
    assert is_worked_on(run.folder)
    state.close()
    assert not is_worked_on(run.folder)
    with pytest.raises(StorageError, match="another experiment"):
        RunState(run.folder, experiment("seed=9").to_toml(), 0)


def test_a_run_that_is_half_written_is_not_in_the_queue(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(self: Run, text: str) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "log", killed)  # the last thing before it gets its name
    with pytest.raises(KeyboardInterrupt):
        queue.submit(experiment())
    assert queue.runs() == []
    assert queue.next() is None


def test_what_the_serverapp_leaves_decides(queue: Queue) -> None:
    run = queue.submit(experiment())
    assert run.outcome is None
    state = RunState(run.folder, run.experiment, 0)
    state.fail("no sum")
    assert run.outcome == ("failed", "no sum")
    state.save(progress(0), None)
    state.save(progress(1), record(1))
    state.finish(progress(1), "stopped early", 1)
    state.close()
    assert run.outcome == ("finished", "stopped early")
    assert run.num_rounds == 1


def test_only_what_failed_or_was_stopped_is_resumed_and_it_goes_to_the_end(queue: Queue) -> None:
    run, later = queue.submit(experiment()), queue.submit(experiment())
    for state, allowed in (("queued", False), ("running", False), ("finished", False), ("stopped", True)):
        run.set(state)
        run.ask_to_stop()
        if not allowed:
            with pytest.raises(ConfigError, match="nothing to resume"):
                queue.resume(run)
    (run.folder / "failure.json").write_text('{"error": "x"}')
    queue.resume(run)
    assert (run.status.state, run.outcome, run.is_asked_to_stop) == ("queued", None, False)
    assert [each.id for each in queue.runs()] == [later.id, run.id]


def test_runs_are_found_by_the_beginning_of_their_id(queue: Queue) -> None:
    with pytest.raises(ConfigError, match="no runs begin with ''"):
        queue.find("")
    first, second = queue.submit(experiment()), queue.submit(experiment())
    assert queue.find(first.id[:12]) == first
    assert queue.find("") == second
    with pytest.raises(ConfigError, match="no runs begin with 'x'"):
        queue.find("x")


def test_a_damaged_status_is_named(queue: Queue) -> None:
    run = queue.submit(experiment())
    (run.folder / "status.json").write_text("{}")
    with pytest.raises(StorageError, match=r"status\.json: damaged"):
        _ = run.status


def test_F5_two_servers_never_work_in_one_folder(tmp_path: Path) -> None:
    with (
        locked(tmp_path),
        pytest.raises(StorageError, match="another server is working here"),
        locked(tmp_path),
    ):
        pass
    with locked(tmp_path):
        pass


# -- what a federation can run -----------------------------------------------------------------------------------


def test_an_experiment_without_sites_gets_the_members_who_may_take_part(kit: Path) -> None:
    ready = ready_for(experiment(), kit)
    assert [(s.label, s.rows) for s in ready.federation.sites] == [
        ("site-0", 100),
        ("site-1", 101),
        ("site-3", 103),
        ("site-4", 104),
    ]


@pytest.mark.parametrize(
    ("overrides", "said"),
    [
        (
            ['federation.sites=[{label="x", rows=1}]', "secure_aggregation.enabled=false"],
            "no 'x' that may take part",
        ),
        (
            ['federation.sites=[{label="site-2", rows=102}]', "secure_aggregation.enabled=false"],
            "no 'site-2'",
        ),
        (
            ['federation.sites=[{label="site-0", rows=99}]', "secure_aggregation.enabled=false"],
            "'site-0' declared 100 rows in the roster, not 99",
        ),
        (["training.clients_per_round=3"], "a cohort of 3, but the roster allows 4 to 4"),
        (['simulation.faults="f.toml"'], "simulation.faults"),
        (['secure_aggregation.engine="ideal"'], "secure_aggregation.engine"),
        (["training.rounds=51"], "the members have agreed otherwise: limits: number of rounds"),
        (["secure_aggregation.update_clip=1000"], "the members have agreed otherwise: limits: clip norm"),
        (["data.schema=none"], "data.schema"),
    ],
)
def test_what_the_members_would_refuse_is_not_even_queued(
    kit: Path, queue: Queue, overrides: list[str], said: str
) -> None:
    with pytest.raises(ConfigError) as refused:
        ready_for(experiment(*overrides), kit)
    assert said in str(refused.value)
    assert queue.runs() == []


def test_B25_a_model_that_the_members_did_not_agree_on_is_not_even_queued(
    first_kit: Path, tmp_path: Path, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tacit("provision", "schema", file) == 0
    own = capsys.readouterr().out.strip()
    for listed, refused in (("00" * 32, True), (own, False)):
        rules = {"min_clients": 4, "model_schemas": [listed]}
        kit = enrolled(tmp_path / listed[:4], {f"site-{i}": 100 + i for i in range(4)}, rules=rules).folder
        if refused:
            with pytest.raises(ConfigError, match=f"agreed otherwise: model-schema: .* schema, {own}"):
                ready_for(experiment(), kit)
        else:
            ready_for(experiment(), kit)


def test_a_kit_without_a_roster_says_what_to_do(kit: Path) -> None:
    for path in (kit / "roster.json", kit / "rosters" / "1.json"):
        path.unlink()
    with pytest.raises(ConfigError, match="tacit provision collect makes it"):
        ready_for(experiment(), kit)


# -- the commands ------------------------------------------------------------------------------------------------


def tacit(*arguments: object) -> object:
    """The exit code."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    return end.value.code


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "experiment.toml"
    path.write_text(EXPERIMENT)
    return path


def ended(queue: Queue, state: str, reason: str) -> threading.Thread:
    """Somebody who works like a server: waits for a run, makes a round and ends it."""

    def work() -> None:
        while (run := queue.next()) is None:
            time.sleep(0.02)
        run.set("running")
        (run.folder / "rounds.jsonl").write_text(json.dumps({"round": 1, "seconds": 0.5}) + "\n")
        time.sleep(0.5)
        run.set(state, reason)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


@pytest.mark.parametrize(
    ("state", "reason", "code"),
    [("finished", "finished", 0), ("failed", "no sum over at least 4", 1), ("stopped", "by tacit stop", 1)],
)
def test_the_exit_code_of_submit_tells_the_truth(
    kit: Path,
    queue: Queue,
    file: Path,
    capsys: pytest.CaptureFixture[str],
    state: str,
    reason: str,
    code: int,
) -> None:
    worker = ended(queue, state, reason)
    assert tacit("submit", file, "--kit", kit) == code
    worker.join()
    said = capsys.readouterr()
    assert "round 1  0.5 s" in said.out
    assert state in said.out + said.err
    assert reason in said.out + said.err


def test_ctrl_c_leaves_the_run_and_says_so(
    kit: Path, queue: Queue, file: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupt(seconds: float) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("server.submit_cli.time.sleep", interrupt)
    assert tacit("submit", file, "--kit", kit) == 130
    (run,) = queue.runs()
    assert run.status.state == "queued"
    assert f"tacit: run {run.id[:8]} goes on without you" in capsys.readouterr().err


def test_detached_runs_are_listed_shown_stopped_and_resumed(
    kit: Path, queue: Queue, file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tacit("submit", file, "--kit", kit, "--detach", "--set", "training.rounds=5") == 0
    (run,) = queue.runs()
    assert capsys.readouterr().out == f"{run.id}\n"
    assert tacit("runs", "--kit", kit) == 0
    assert capsys.readouterr().out == f"{run.id[:8]}  queued          0/5  clinics\n"
    assert tacit("stop", run.id[:6], "--kit", kit) == 0
    assert "no server is at work" in capsys.readouterr().out
    assert run.is_asked_to_stop
    run.set("stopped", "by tacit stop")
    assert tacit("logs", "--kit", kit) == 0
    assert capsys.readouterr().out.splitlines()[-1].endswith("  stopped: by tacit stop")
    assert tacit("submit", "--resume", run.id, "--kit", kit, "--detach") == 0
    assert run.status.state == "queued"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["submit"], "tacit submit EXPERIMENT.toml, or tacit submit --resume RUN"),
        (["submit", "--resume", "abc"], "no runs begin with 'abc'"),
        (["stop"], "no runs begin with ''"),
        (["logs", "abc"], "no runs begin with 'abc'"),
    ],
)
def test_what_cannot_be_done_is_one_line_and_code_2(
    kit: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    assert tacit(*arguments, "--kit", kit) == 2
    error = capsys.readouterr().err
    assert said in error
    assert error.count("\n") == 1


@pytest.mark.parametrize("command", ["submit", "runs", "logs", "stop"])
def test_a_folder_that_is_no_kit_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    assert tacit(command, "--kit", tmp_path) == 2
    assert "is no coordinator's kit" in capsys.readouterr().err


def test_a_run_that_failed_says_why_to_whoever_follows_it_later(kit: Path, queue: Queue) -> None:
    from server.submit_cli import follow

    run = queue.submit(experiment())
    run.set("failed", "no sum over at least 4 of 4 sites; sites refused: 1 (budget-spent)")
    with pytest.raises(RunFailed, match=r"failed: no sum .* 1 \(budget-spent\)"):
        follow(run, kit)
