"""The grid, the folder and the processes of a sweep: what is kept, what is refused, what one failure costs."""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from simulations.kept_baselines import digest, kept
from simulations.sweep.display import spelled
from simulations.sweep.folder import SweepFolder
from simulations.sweep.grid import Axis, axes_of, cells_of, told
from simulations.sweep.outcome import csv_of, target_of, terminal_table
from simulations.sweep.workers import Job, run_jobs
from tacit import config
from tacit.cli import main
from tacit.errors import ConfigError
from tacit.report.record import Baselines
from tacit.report.sweep_record import Target, band
from tests.unit.sweep_records import sweep_record

BASE = """
name = "small"
[partition]
num_clients = 3
[task.model]
name = "logistic"
[training]
rounds = 2
local_steps = 1
[privacy.record]
epsilon = 3.0
delta = 1e-5
[secure_aggregation]
engine = "ideal"
"""


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(BASE)
    return path


# -- the grid ----------------------------------------------------------------------------------------------------


def test_values_are_toml_words_ranges_and_lists() -> None:
    assert axes_of(["a.b=1,2.5,none", "seed=1..3,7", "hidden=[8,4],[16]", 'name="x,y",z']) == (
        Axis("a.b", (1, 2.5, "none")),
        Axis("seed", (1, 2, 3, 7)),
        Axis("hidden", ([8, 4], [16])),
        Axis("name", ("x,y", "z")),
    )


def test_a_file_says_the_same(tmp_path: Path) -> None:
    path = tmp_path / "grid.toml"
    path.write_text('[sweep]\nprivacy.record.epsilon = [1, 3, "none"]\nseed = "1..3"\n')
    assert axes_of([], path) == axes_of(["privacy.record.epsilon=1,3,none", "seed=1..3"])


BAD = [
    ([], "at least one key"),
    (["seed"], "'seed' is not key=value,value"),
    (["seed="], "is not key=value"),
    (["seed=1,,2"], "a value is empty"),
    (["seed=3..1"], "is no range"),
    (["seed=1,1"], "seed has a value twice"),
    (["seed=1", "seed=2"], "seed is there twice"),
]


@pytest.mark.parametrize(("over", "words"), BAD)
def test_a_grid_that_is_none_is_one_line(over: list[str], words: str) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        axes_of(over)
    assert str(caught.value).startswith("--over: ")


def test_cells_are_every_combination_and_none_takes_a_promise_away(base: Path) -> None:
    cells = cells_of(base, ["training.rounds=3"], axes_of(["privacy.record.epsilon=1,none", "seed=1..2"]))
    found = [(c.name, c.experiment.seed, c.experiment.privacy.record is None) for c in cells]
    assert found == [
        ("epsilon-1_seed-1", 1, False),
        ("epsilon-1_seed-2", 2, False),
        ("epsilon-none_seed-1", 1, True),
        ("epsilon-none_seed-2", 2, True),
    ]
    assert {cell.experiment.training.rounds for cell in cells} == {3}
    assert told(cells[0].values) == "epsilon 1, seed 1"


def test_a_cell_that_cannot_be_is_named_before_anything_runs(base: Path) -> None:
    with pytest.raises(ConfigError, match=r"training\.rounds: .*\(in the cell rounds 0\)"):
        cells_of(base, [], axes_of(["training.rounds=1,0"]))
    with pytest.raises(ConfigError, match="unknown key"):
        cells_of(base, [], axes_of(["training.round=1,2"]))
    with pytest.raises(ConfigError, match="20000 cells; at most 10000"):
        cells_of(base, [], axes_of(["seed=1..200", "data.split_seed=1..100"]))


def test_folders_of_distinct_cells_are_distinct(base: Path) -> None:
    over = ["partition.alpha=0.5,5", 'task.options.a="x/y","x y","x-y"', "privacy.record.epsilon=1,none"]
    names = [cell.name for cell in cells_of(base, [], axes_of(over))]
    assert len(set(names)) == len(names) == 12
    assert all(name.replace("_", "-").replace(".", "-").replace("-", "").isalnum() for name in names)


# -- the folder --------------------------------------------------------------------------------------------------


def test_a_cell_of_another_experiment_or_on_other_data_is_refused_never_mixed_in(
    base: Path, tmp_path: Path
) -> None:
    folder, axes = SweepFolder(tmp_path / "out"), axes_of(["seed=1..2"])
    (cell, _) = cells_of(base, [], axes)
    folder.note(cell)
    folder.check(cell)
    (changed, _) = cells_of(base, ["training.rounds=9"], axes)
    with pytest.raises(
        ConfigError, match=r"seed 1 was begun with training\.rounds = 2, and now it is 9; choose"
    ):
        folder.check(changed)
    data = tmp_path / "own.csv"
    data.write_text("age,target\n1,0\n")
    own = [f'data.path="{data}"', "data.source=csv", "privacy=none"]
    (cell, _) = cells_of(base, own, axes_of(["seed=3..4"]))
    folder.note(cell)
    data.write_text("age,target\n2,0\n")
    with pytest.raises(ConfigError, match=r"another content of the file data\.path"):
        folder.check(cell)


def test_a_folder_of_something_else_and_one_at_work_are_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(ConfigError, match="holds no earlier sweep"), SweepFolder(tmp_path / "mine").claimed():
        pass
    folder = SweepFolder(tmp_path / "new")
    other = SweepFolder(tmp_path / "new")
    with folder.claimed(), pytest.raises(ConfigError, match="another sweep"), other.claimed():
        pass


def test_a_kept_baseline_is_used_only_where_it_would_be_trained_from_the_same_settings(
    base: Path, tmp_path: Path
) -> None:
    def of(*settings: str) -> config.Experiment:
        return config.load(base, settings)

    same = [
        "privacy.record.epsilon=9",
        "privacy=none",
        "checkpoints.keep=0",
        "secure_aggregation.enabled=false",
    ]
    same += ["training.clients_per_round=3", "simulation.executor=serial", 'name="other"']
    assert {digest(of(setting)) for setting in same} == {digest(of())}
    others = [
        "seed=8",
        "training.rounds=3",
        "data.split_seed=1",
        "partition.alpha=0.6",
        "task.model.name=mlp",
    ]
    others += ["strategy.name=fedprox", "data.test_fraction=0.5", "partition.kind=dirichlet"]
    assert len({digest(of(setting)) for setting in others} | {digest(of())}) == len(others) + 1
    trained = []

    def train() -> Baselines:
        trained.append(1)
        return Baselines()

    for setting in (*same, *others[:1]):
        kept(tmp_path / "kept", of(setting), train)
    assert len(trained) == 2
    kept(None, of(), train)
    assert len(trained) == 3


# -- the processes -----------------------------------------------------------------------------------------------

DIES = """
import os
from tacit.tasks import *
from tacit.tasks.tabular import *
def make(**options):
    os._exit(9)
"""


def alive(pids: set[int]) -> set[int]:
    return {pid for pid in pids if Path(f"/proc/{pid}").exists()}


def children() -> set[int]:
    found = Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text()
    return {int(pid) for pid in found.split()}


def test_a_cell_that_fails_or_whose_process_dies_ends_no_other_and_no_process_is_left(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "dying.py").write_text(DIES)
    monkeypatch.syspath_prepend(tmp_path)
    good = config.load(base, ["privacy=none"]).to_toml()
    few = config.load(base, ["privacy=none", "partition.min_rows=5000"]).to_toml()
    dying = config.load(base, ["privacy=none", "task.kind=dying:make"]).to_toml()
    texts = [dying, few, good]
    before = children()
    jobs = [Job(i, t, tmp_path / "cells" / str(i), False, tmp_path / "kept") for i, t in enumerate(texts)]
    done = {d.number: d.reason for d in run_jobs(jobs, 1, tmp_path / "log.txt")}
    assert done[0].startswith("its process ended with code 9; see log.txt")
    assert "5000 rows need 15000" in done[1]
    assert done[2] == "" and (tmp_path / "cells" / "2" / "report.json").exists()
    assert children() - before <= {pid for pid in children() if "resource_tracker" in _command(pid)}


def _command(pid: int) -> str:
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")


def sweep(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main(["sweep", *(str(argument) for argument in arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_a_finished_cell_is_never_run_again_and_more_values_can_be_added(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    arguments = (base, "--out", out, "--jobs", 1, "--set", "privacy=none")
    assert sweep(*arguments, "--over", "seed=1") == 0
    first = out / "cells" / "seed-1" / "report.json"
    made = first.stat().st_mtime_ns, first.read_bytes()
    assert sweep(*arguments, "--over", "partition.min_rows=10,5000", "--over", "seed=1", "--json") == 1
    printed = capsys.readouterr()
    assert "min_rows 5000, seed 1: partition.min_rows: 3 clients of at least 5000 rows" in printed.err
    content = json.loads(printed.out[printed.out.index("{\n") :])
    assert [cell["outcome"][:8] for cell in content["cells"]] == ["finished", "failed: "]
    assert sweep(*arguments, "--over", "seed=1") == 0
    assert (first.stat().st_mtime_ns, first.read_bytes()) == made
    assert sweep(*arguments, "--over", "seed=1", "--set", "training.rounds=7") == 2
    assert "training.rounds = 2, and now it is 7" in capsys.readouterr().err
    for name in ("sweep.json", "sweep.csv", "sweep.html"):
        assert (out / name).stat().st_size > 200
    assert (
        len(list((out / "baselines").glob("*.json"))) == 1
    )  # min_rows = 10 is what it is without being stated


@pytest.mark.slow
def test_ctrl_c_leaves_nothing_broken_and_the_same_command_goes_on(base: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-m", "tacit.cli", "sweep", str(base), "--out", str(out), "--jobs", "2"]
    command += ["--over", "seed=1..2", "--set", "privacy=none", "--set", "training.rounds=200"]
    # A shell in the background has switched Ctrl-C off, which a process inherits.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command[1:3] = ["-c", f"{code}; from tacit.cli import main; main(sys.argv[1:])"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not list(out.glob("cells/*/server/rounds.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; what was complete is kept" in said
    left = [pid for pid in Path("/proc").glob("[0-9]*") if f"{out}" in _command_of(pid)]
    assert left == []
    begun = {path.parent.parent.name: path.stat().st_size for path in out.glob("cells/*/server/rounds.jsonl")}
    assert begun
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    rows = list(csv.DictReader((out / "sweep.csv").read_text().splitlines()))
    assert [row["outcome"] for row in rows] == ["finished"] * 2 and {row["rounds"] for row in rows} == {"200"}


def _command_of(folder: Path) -> str:
    try:
        return (folder / "cmdline").read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""


# -- table, figures ----------------------------------------------------------------------------------------------


def test_a_band_is_students_interval_of_the_mean() -> None:
    found = band([1.0, 2.0, 3.0])
    assert found is not None and found.low is not None and found.high is not None
    assert (found.mean, found.size) == (2.0, 3)
    assert found.high - found.mean == pytest.approx(4.30265 / 3**0.5, rel=1e-5)  # t of 2 degrees, 97.5 %
    assert band([]) is None and band([4.0]) == (4.0, None, None, 1)


def test_the_table_and_the_csv_have_a_line_for_each_group_and_cell() -> None:
    record = sweep_record({"privacy.record.epsilon": [1, 3, "none"], "seed": [1, 2]})
    rows = list(csv.DictReader(io.StringIO(csv_of(record))))
    assert [(row["privacy.record.epsilon"], row["seed"]) for row in rows][:3] == [
        ("1", "1"),
        ("1", "2"),
        ("3", "1"),
    ]
    assert float(rows[0]["auroc"]) == record.cells[0].metrics["auroc"] and rows[4]["epsilon"] == "inf"
    assert terminal_table(record).row_count == 3


def test_a_target_is_a_metric_and_a_number() -> None:
    assert target_of("auroc=0.9") == Target(metric="auroc", value=0.9, stated=True)
    with pytest.raises(ConfigError, match="--target: 'auroc' is not METRIC=NUMBER"):
        target_of("auroc")
    low = Target(metric="loss", value=0.3, stated=True)
    assert low.is_reached(0.2) and not low.is_reached(0.4) and not low.is_reached(None)


def test_a_target_that_no_task_computes_is_refused_before_anything_runs(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with pytest.raises(SystemExit):
        main(["sweep", str(base), "--over", "seed=1,2", "--target", "acuracy=0.9", "--out", str(out)])
    assert "--target: there is no metric 'acuracy'; there are accuracy, auroc" in capsys.readouterr().err
    assert not out.exists()


def test_a_length_of_time_is_said_as_one_says_it() -> None:
    assert [spelled(s) for s in (0.2, 61, 600, 9000)] == ["1 s", "61 s", "10 min", "2.5 h"]
