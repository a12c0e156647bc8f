"""The tutorial, as it stands on the page: its files are written out and its commands run."""

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from simulations.cli import find_tasks_in
from tacit.cli import main

PAGE = (Path(__file__).parents[2] / "docs" / "tutorial-own-model.md").read_text(encoding="utf-8")
BLOCKS = [(found[1], found[2]) for found in re.finditer(r"^```(\w*)\n(.*?)^```$", PAGE, re.M | re.S)]
FILES = {text.split("\n")[0].removeprefix("# "): text for kind, text in BLOCKS if kind}
COMMANDS = [line for kind, text in BLOCKS if not kind for line in text.splitlines()]
TASK = "my_task.py"
SHORTER = {  # each command, with less to do
    "digits": ("--set", "training.rounds=2", "--set", "simulation.baselines=false"),
    "not-private": ("--set", "training.rounds=12", "--set", "checkpoints.keep=0"),
}

# what goes wrong -> (text on the page, what stands there instead, what is said)
MISTAKES = {
    "one loss for all": ('reduction="none"', 'reduction="mean"', "loss() has shape (): one value per record"),
    "no such column": ('row["target"]', 'row["taget"]', r"read(): KeyError: 'taget' (wrong_1.py:"),
    "layers that do not fit": ("Linear(64, 10)", "Linear(65, 10)", "the model's forward(): RuntimeError: mat1"),
    "another metric": ('"accuracy": (', '"hits": (', "metrics(): ValueError: gives ['hits']"),
    "not records": ("return Records(images,", "return (images,", "read() gives no tacit.tasks.Records"),
    "a missing module": ("import csv", "import csvv", "cannot import"),
    "a broken file": ("class Digits:", "class Digits(:", "import: SyntaxError"),
    "a method that is not there": ("def loss", "def lost", "lacks loss of tacit.tasks.Task"),
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tutorial")
    for name, text in FILES.items():
        (path / name).write_text(text, encoding="utf-8")
    subprocess.run([sys.executable, "make_data.py"], cwd=path, check=True)
    return path


@pytest.fixture
def folder(data: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The tutorial's folder, to stand in; the process forgets it afterwards."""
    monkeypatch.chdir(data)
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    return data


def _simulate(*arguments: str) -> int:
    with pytest.raises(SystemExit) as end:
        main(["simulate", *arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def _report(folder: Path, name: str) -> dict[str, Any]:
    report: dict[str, Any] = json.loads((folder / "runs" / name / "report.json").read_text())
    return report


def test_the_page_has_the_files_and_commands_that_it_speaks_of() -> None:
    assert list(FILES) == ["make_data.py", TASK, "digits.toml"]
    assert [command.split()[0] for command in COMMANDS] == ["python", "tacit", "tacit", "tacit:"]


def test_a_model_of_ones_own_takes_fewer_than_60_lines() -> None:
    assert sum(len(FILES[name].splitlines()) - 1 for name in (TASK, "digits.toml")) < 60


def test_the_commands_of_the_page_train_privately_and_not_privately(folder: Path) -> None:
    for command, shorter in zip(COMMANDS[1:3], SHORTER.values(), strict=True):
        assert _simulate(*shlex.split(command)[2:], *shorter, "--quiet") == 0
    private, plain = (_report(folder, name) for name in SHORTER)
    assert private["privacy"][0]["unit"] == "record"
    assert 0 < private["privacy"][0]["epsilon"] <= 8
    assert plain["privacy"][0]["epsilon"] == "inf"
    for report in (private, plain):
        assert report["experiment"]["task"]["kind"] == "my_task:Digits"
        assert report["secure_aggregation"]["enabled"] is True
        assert report["secure_aggregation"]["protocol"] == "tacit-1"
        assert list(report["final"]["metrics"]) == ["accuracy"]
        assert len(report["final"]["sites"]) == 5
    accuracy = [entry["metrics"]["accuracy"] for entry in plain["rounds"]]
    assert accuracy[-1] > 0.5 > accuracy[0]
    assert plain["baselines"]["pooled"]["metrics"]["accuracy"] > 0.5


@pytest.mark.parametrize(("there", "instead", "said"), MISTAKES.values(), ids=MISTAKES)
def test_a_mistake_in_a_task_is_one_line_before_the_rounds_begin(
    folder: Path, capsys: pytest.CaptureFixture[str], there: str, instead: str, said: str
) -> None:
    number = [mistake[0] for mistake in MISTAKES.values()].index(there)
    assert FILES[TASK].count(there) == 1
    (folder / f"wrong_{number}.py").write_text(FILES[TASK].replace(there, instead))
    settings = ("--set", f"task.kind=wrong_{number}:Digits", "--set", "privacy=none", "--out", "runs/wrong")
    assert _simulate("digits.toml", *settings, "--quiet") == 2
    message = capsys.readouterr().err
    assert message.startswith("tacit: task.kind: ") and message.count("\n") == 1
    assert said in message
    assert not (folder / "runs" / "wrong" / "server").exists()


def test_a_process_that_is_started_finds_the_task_too(folder: Path) -> None:
    find_tasks_in(folder)
    program = "import my_task; print(my_task.Digits.metric_names)"
    done = subprocess.run([sys.executable, "-P", "-c", program], cwd="/", capture_output=True, text=True)
    assert done.stdout == "('accuracy',)\n"
