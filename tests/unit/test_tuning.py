"""A search: its space, what it asks next, and what it keeps."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from simulations.sweep.grid import Axis, Cell
from simulations.tuning.folder import SearchFolder
from simulations.tuning.space import Range, Trials, tuning_of
from tacit import config
from tacit.errors import ConfigError
from tacit.tasks.anomaly import Anomalies
from tacit.tasks.classification import Classification
from tacit.tasks.multilabel import MultiLabel
from tacit.tasks.regression import Regression
from tests.unit.searches import BASE, PRIVATE, SPACE, finish, goodness, lines, search, searched, tune


@pytest.fixture
def base(tmp_path: Path) -> Path:
    path = tmp_path / "small.toml"
    path.write_text(BASE)
    return path


# -- the space ---------------------------------------------------------------------------------------------------


def test_a_space_has_ranges_lists_and_whole_numbers(tmp_path: Path) -> None:
    space = SPACE + 'training.local_steps = "1..5"\ntraining.rounds = {low = 1, high = 9}\n'
    _, dimensions, _ = searched(tmp_path, "", space)
    assert dimensions == (
        Range(key="training.learning_rate", low=0.1, high=10.0, log=True),
        Range(key="training.local_steps", low=1, high=5),
        Range(key="training.rounds", low=1, high=9),
        Axis("task.model.hidden", ([8], [16, 8])),
        Range(key="privacy.record.max_grad_norm", low=0.5, high=2.0),
    )
    assert [d.is_whole for d in dimensions if isinstance(d, Range)] == [False, True, True, False]


BAD = [
    ("", "[tuning.space]\nseed = 3", r"tuning\.space\.seed: needs a list of values, a range"),
    ("", "[tuning.space]\nseed = [1, 1]", r"tuning\.space\.seed: has a value twice"),
    ("", "[tuning.space]\nseed = {low = 3, high = 3}", r"tuning\.space\.seed: low must be below high"),
    ("", "[tuning.space]\nseed = {low = 3}", r"tuning\.space\.seed: high: required key is missing"),
    ("", "[tuning.space]\nseed = {low = 1, high = 3, step = 1}", r"step: unknown key"),
    ("", "[tuning.space]\nseed = {low = 0, high = 3, log = true}", "log = true needs low above 0"),
    ("", "[tuning.space]", r"tuning\.space: "),
    ("", "", r"tuning\.space: required key is missing"),
    ('method = "magic"', SPACE, r"tuning\.method: "),
    ("trails = 3", SPACE, r"tuning\.trails: unknown key"),
    ("eta = -1.0", SPACE, r"tuning\.eta: "),
    ('method = "grid"', SPACE, r"tuning\.space\.training\.learning_rate: a grid needs a list"),
    ('method = "grid"\ntrials = 3', "[tuning.space]\nseed = [1, 2]", r"tuning\.trials: a grid has as many"),
    ('method = "grid"', '[tuning.space]\nseed = "1..200"\ntraining.rounds = "1..200"', "40000 combinations"),
]


@pytest.mark.parametrize(("settings", "space", "words"), BAD)
def test_a_space_that_is_none_is_one_line_that_names_the_key(
    tmp_path: Path, settings: str, space: str, words: str
) -> None:
    with pytest.raises(ConfigError, match=words) as caught:
        searched(tmp_path, settings, space)
    assert str(caught.value).startswith(f"{tmp_path / 'search.toml'}: tuning.")


def test_a_file_without_the_table_is_refused(tmp_path: Path) -> None:
    (tmp_path / "grid.toml").write_text("[sweep]\nseed = [1]")
    with pytest.raises(ConfigError, match=r"needs one table \[tuning\] and nothing else"):
        tuning_of(tmp_path / "grid.toml")


def test_a_key_that_there_is_not_is_named_before_anything_runs(base: Path, tmp_path: Path) -> None:
    for space, words in (
        ("[tuning.space]\ntraining.rat = [1]", r"search\.toml: training\.rat: unknown key"),
        (
            "[tuning.space]\ntraining.rounds = {low = 0, high = 3}",
            r"training\.rounds: .*in the trial rounds 0",
        ),
        (
            "[tuning.space]\ntask.model.heads = [2, 4]",
            r'search\.toml: task\.model\.heads: is no key of name = "mlp"',
        ),
    ):
        _, dimensions, path = searched(tmp_path, "", space)
        with pytest.raises(ConfigError, match=words):
            Trials(base, (), path).corners(dimensions)


@pytest.mark.parametrize(
    ("settings", "known"),
    [
        ("", "accuracy, auroc, balanced_accuracy, loss"),
        (PRIVATE + "trials = 4\n", "accuracy, loss"),  # no more is paid for
    ],
)
def test_a_metric_that_there_is_not_costs_no_trial(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], settings: str, known: str
) -> None:
    *_, path = searched(tmp_path, f'{settings}metric = "aurocc"\n', "[tuning.space]\nseed = [1, 2]\n")
    assert tune(base, path, "--out", tmp_path / "out") == 2
    assert f"{path}: tuning.metric: there is no metric 'aurocc'; there are {known}" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_wrong_base_is_not_told_by_values_that_it_has_not(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        Trials(base, ["training.rounds=0"], tmp_path / "search.toml").trial({})
    assert "in the trial" not in str(caught.value)


def test_a_folder_of_images_that_has_changed_is_noticed(base: Path, tmp_path: Path) -> None:
    images = tmp_path / "images" / "a"
    images.mkdir(parents=True)
    (images / "1.png").write_bytes(b"one")
    folder = SearchFolder(tmp_path / "out")
    arrays = 'data.arrays={shape=[1, 4, 4], classes=["a", "b"], images={}}'
    experiment = config.load(base, ["data.source=images", f"data.path={images.parent}", arrays])
    cell = Cell("0001", {"seed": 1}, experiment)
    folder.note(cell)
    folder.check(cell)
    (images / "1.png").rename(images / "2.png")
    with pytest.raises(ConfigError, match=r"another content of the file data\.path"):
        folder.check(cell)


def test_values_that_do_not_go_together_are_drawn_again(base: Path, tmp_path: Path) -> None:
    space = "[tuning.space]\ntask.model.heads = [2, 3]\ntask.model.hidden = [[16], [18]]\n"
    found = search(base, tmp_path / "out", "trials = 30", space, "task.model.name=transformer")
    tried = {json.dumps(cell.values) for _, cell in found.cells()}
    assert len(tried) == 3 and '{"task.model.heads": 3, "task.model.hidden": [16]}' not in tried
    none = "[tuning.space]\ntask.model.heads = [3, 5]\ntask.model.hidden = [[16], [22]]\n"
    found = search(base, tmp_path / "none", "trials = 3", none, "task.model.name=transformer")
    with pytest.raises(ConfigError, match=r"of 100 trials none is possible; the last: .*heads"):
        list(found.cells())


# -- what is asked -----------------------------------------------------------------------------------------------


def test_a_grid_is_every_combination(base: Path, tmp_path: Path) -> None:
    space = '[tuning.space]\nseed = "1..2"\ntask.model.hidden = [[8], [4, 4]]'
    found = search(base, tmp_path / "out", 'method = "grid"', space)
    assert [cell.values for _, cell in found.cells()] == [
        {"seed": 1, "task.model.hidden": [8]},
        {"seed": 1, "task.model.hidden": [4, 4]},
        {"seed": 2, "task.model.hidden": [8]},
        {"seed": 2, "task.model.hidden": [4, 4]},
    ]


@pytest.mark.parametrize("method", ["random", "bayesian"])
def test_a_seed_gives_the_same_trials_interrupted_or_not(base: Path, tmp_path: Path, method: str) -> None:
    def run(name: str, stops: bool, settings: str = "") -> list[Any]:
        out, text = tmp_path / name, f'method = "{method}"\ntrials = 14\n{settings}'
        found = search(base, out, text)
        for number in range(14):
            if stops:  # a process that has only the files to go on with
                next(cell for n, cell in found.cells() if n == number)
                found = search(base, out, text)
            next(cell for n, cell in found.cells() if n == number)
            finish(found, out, number, goodness)
        return found.values

    whole = run("whole", False)
    assert run("pieces", True) == whole
    assert len({json.dumps(values) for values in whole}) == 14
    assert run("other", False, "seed = 1") != whole


def test_a_model_of_the_trials_before_finds_better_values_than_draws(base: Path, tmp_path: Path) -> None:
    best, last = {}, {}
    for method in ("random", "bayesian"):
        out = tmp_path / method
        found = search(base, out, f'method = "{method}"\ntrials = 24')
        for number, _ in found.cells():
            finish(found, out, number, goodness)
        reached = [goodness(values) for values in found.values]
        best[method], last[method] = max(reached), sum(reached[12:]) / 12
        shares = found.importances()
        assert sum(shares.values()) == pytest.approx(1)
        assert (
            shares["privacy.record.max_grad_norm"]
            < shares["training.learning_rate"] + shares["task.model.hidden"]
        )
    assert last["bayesian"] > last["random"] and best["bayesian"] > 0.89


def test_a_search_that_is_gone_on_with_keeps_its_trials_and_refuses_to_be_another_one(
    base: Path, tmp_path: Path
) -> None:
    out, text = tmp_path / "out", 'method = "bayesian"\ntrials = 4'
    found = search(base, out, text)
    for number, _ in found.cells():
        finish(found, out, number, goodness)
    more = search(base, out, text.replace("4", "6"))
    assert (more.total, more.num_finished, more.values) == (6, 4, found.values)
    assert [n for n, cell in more.cells() if not SearchFolder(out).is_finished(cell)] == [4, 5]
    with pytest.raises(
        ConfigError, match=r'tuning\.method: the search was begun with "bayesian", and now it is "ra'
    ):
        search(base, out, text.replace("bayesian", "random"))
    with pytest.raises(ConfigError, match=r"tuning\.space: the search was begun with .*choose another --out"):
        search(base, out, text, SPACE.replace("[16, 8]", "[32]"))
    folder = SearchFolder(out)
    folder.note(more.cell(0))
    with pytest.raises(
        ConfigError, match=r"the trial .* was begun with training\.rounds = 2, and now it is 9"
    ):
        search(base, out, text, SPACE, "training.rounds=9")


# -- the command -------------------------------------------------------------------------------------------------


def test_a_search_gives_an_experiment_that_runs_and_goes_on_without_running_anything_again(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out, file = tmp_path / "out", tmp_path / "search.toml"
    arguments = (base, file, "--out", out, "--jobs", 1, "--set", "privacy=none")
    searched(tmp_path, "trials = 1", SPACE.replace("privacy.record.max_grad_norm", "training.l1"))
    assert tune(*arguments) == 0
    printed = capsys.readouterr().out
    assert "best.toml" in printed and "no private data were looked at" in " ".join(printed.split())
    reports = sorted(out.glob("trials/*/report.json"))
    made = [(path.name, path.stat().st_mtime_ns) for path in reports]
    assert len(made) == 1
    searched(tmp_path, "trials = 2", SPACE.replace("privacy.record.max_grad_norm", "training.l1"))
    assert tune(*arguments, "--json") == 0
    content = json.loads(capsys.readouterr().out.partition("{\n")[2].join(["{", ""]))
    assert [trial["outcome"] for trial in content["trials"]] == ["finished"] * 2
    assert [(path.name, path.stat().st_mtime_ns) for path in reports] == made
    best = max(content["trials"], key=lambda trial: trial["value"])
    assert content["best"] == best and content["metric"] == "auroc"
    rows = lines(out / "tuning.csv")
    assert [row["trial"] for row in rows] == ["0001", "0002"]
    assert "<svg" in (out / "tuning.html").read_text()
    loaded = config.load(out / "best.toml")
    assert loaded == config.load(
        base, ["privacy=none", *(f"{key}={json.dumps(value)}" for key, value in best["values"].items())]
    )


@pytest.mark.slow
def test_ctrl_c_in_a_search_leaves_nothing_broken_and_the_same_command_goes_on(
    base: Path, tmp_path: Path
) -> None:
    out, file = tmp_path / "out", tmp_path / "search.toml"
    searched(
        tmp_path,
        'method = "bayesian"\ntrials = 3',
        SPACE.replace("privacy.record.max_grad_norm", "training.l1"),
    )
    # A shell in the background has switched Ctrl-C off, which a process inherits.
    code = "import signal, sys; signal.signal(signal.SIGINT, signal.default_int_handler)"
    command = [sys.executable, "-c", f"{code}; from tacit.cli import main; main(sys.argv[1:])", "tune"]
    command += [str(base), str(file), "--out", str(out), "--jobs", "2"]
    command += ["--set", "privacy=none", "--set", "training.rounds=200"]
    process = subprocess.Popen(command, start_new_session=True, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 150
    while not list(out.glob("trials/*/server/rounds.jsonl")) and time.monotonic() < deadline:
        time.sleep(0.2)
    time.sleep(1)
    os.killpg(process.pid, signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130 and "interrupted; what was complete is kept" in said
    asked = json.loads((out / "search.json").read_text())["values"]
    assert 1 <= len(asked) <= 3
    again = subprocess.run(command, capture_output=True, text=True)
    assert again.returncode == 0, again.stderr
    values = json.loads((out / "search.json").read_text())["values"]
    assert values[: len(asked)] == asked and len(values) == 3
    rows = lines(out / "tuning.csv")
    assert [row["outcome"] for row in rows] == ["finished"] * 3


@pytest.mark.parametrize("kind", [Classification, MultiLabel, Regression, Anomalies])
def test_a_task_tells_all_metrics_that_its_summary_gives(kind: type[Any]) -> None:
    torch.manual_seed(1)
    targets = {Classification: torch.arange(6) % 2, MultiLabel: torch.arange(12.0).reshape(6, 2) % 3 % 2}
    wanted = targets.get(kind, torch.cat([torch.randn(6, 1), torch.arange(6).reshape(6, 1) % 2], dim=1))
    assert set(kind().summary(torch.randn(6, 2), wanted)) == set(kind.summary_names)
