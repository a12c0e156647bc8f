"""`tacit scenarios`: what it lists, what it tells, and that the CI version of every scenario trains.

The commands of each scenario's page are run as they stand there; those in full size only as far as their options.
"""

import json
import os
import re
import shlex
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from simulations.scenarios import catalogue
from simulations.scenarios.comparison import compare
from simulations.scenarios.fairness import by_group
from simulations.sources import CREDIT_LABELS, HEART_COLUMNS, HOSPITALS
from tacit import config
from tacit.cli import main
from tests.architecture.sources import ROOT, text

STORIES = catalogue.STORIES
PUBLISHED = {
    "heart_disease": "heart-disease",
    "credit_default": "credit-default",
}  # files that are downloaded
QUICK = ("--set", "simulation.baselines=false", "--set", "secure_aggregation.engine=ideal")


def tacit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return content


def commands(name: str) -> list[list[str]]:
    """What a page says to type."""
    blocks = re.findall(r"^```\n(.*?)^```$", text(f"docs/scenarios/{name}.md"), re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith("tacit ")]


def invented(name: str, folder: Path) -> Path:
    """Files in the published form with made-up rows; the published ones where TACIT_TEST_DATA has them."""
    if root := os.environ.get("TACIT_TEST_DATA"):
        return Path(root) / PUBLISHED[name]
    rng = np.random.default_rng(3)
    if name == "heart_disease":
        for site, rows in HOSPITALS.items():
            age, rest = rng.integers(30, 80, rows), rng.integers(0, 2, (rows, len(HEART_COLUMNS) - 1))
            np.savetxt(folder / f"processed.{site}.data", np.column_stack([age, rest]), "%d", ",")
        return folder
    names = [f"X{i}" for i in range(1, 24)]
    x = rng.integers(0, 3, (4000, len(names)))
    y = rng.random(4000) < 0.1 + 0.2 * (x[:, 5] == 2)
    header = ",".join([*names, CREDIT_LABELS[-1]])
    np.savetxt(folder / "data.csv", np.column_stack([x, y]), "%d", ",", header=header, comments="")
    return folder


def test_there_are_six_of_each_field_each_with_its_file_its_page_and_a_line_in_the_table() -> None:
    fields = [story.field for story in STORIES.values()]
    assert fields.count("healthcare") >= 6 and fields.count("finance") >= 6
    overview = text("docs/scenarios.md")
    for name, story in STORIES.items():
        experiment = config.load(catalogue.experiment_file(name), story.ci)
        assert experiment.privacy.record is not None and experiment.secure_aggregation.enabled
        assert f"[`{name}`](scenarios/{name}.md)" in overview
        assert text(f"docs/scenarios/{name}.md").startswith(f"# {story.title}\n")
    assert {path.stem for path in (ROOT / "simulations" / "scenarios").glob("*.toml")} == set(STORIES)


def test_the_list_is_a_table_without_colours_when_piped(capsys: pytest.CaptureFixture[str]) -> None:
    assert tacit("scenarios", "list") == 0
    shown = capsys.readouterr().out
    assert "\x1b" not in shown
    assert all(re.search(rf"^{name} ", shown, re.M) for name in STORIES)
    assert tacit("scenarios", "list", "--json") == 0
    assert [row["name"] for row in json.loads(capsys.readouterr().out)] == list(STORIES)


@pytest.mark.parametrize("name", STORIES)
def test_show_tells_story_schema_truth_and_how_to_run_it(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tacit("scenarios", "show", name) == 0
    shown = " ".join(capsys.readouterr().out.split())
    for key in ("question", "sites", "schema", "compared with", "privacy", f"tacit scenarios run {name}"):
        assert key in shown
    assert STORIES[name].title[:40] in shown and f"{name}.toml" in shown.replace(" ", "")


def test_a_scenario_that_is_not_there_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for what in ("show", "run"):
        assert tacit("scenarios", what, "nothing") == 2
        said = capsys.readouterr().err
        assert said.startswith("tacit: NAME: there is no scenario 'nothing'; there are heart_disease, ")
        assert said.count("\n") == 1
    data = ("--set", "data.source=generated", "--set", "data.generator=breast_cancer")
    assert tacit("simulate", catalogue.experiment_file("breast_cancer"), "--out", "never", *data) == 2
    assert (
        "data.generator: there is no generator 'breast_cancer'; there are icu_vitals"
        in capsys.readouterr().err
    )


@pytest.mark.parametrize("name", STORIES)
def test_the_ci_version_on_its_page_trains(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    data = ("--set", f"data.dir={invented(name, tmp_path)}") if name in PUBLISHED else ()
    first, *others = commands(name)
    assert first[:4] == ["scenarios", "run", name, "--size"] and first[4] == "ci"
    assert tacit(*first, *data, *QUICK, "--quiet") == 0
    content = report(tmp_path / "runs" / name)
    metric = STORIES[name].metric
    assert content["outcome"] == "finished" and content["final"]["metrics"][metric] is not None
    assert {unit["unit"] for unit in content["privacy"]} == {"record"}
    best = content["baselines"]["best"]
    assert (best is not None) == (name not in (*PUBLISHED, "breast_cancer"))
    if best is not None:
        assert (
            content["final"]["metrics"][metric] < best["metrics"][metric] + 0.03
        )  # chance, on few held-out records
        assert {site["label"] for site in best["sites"]} == {s["label"] for s in content["partition"]}
    for command in others:  # in full size: every option and key is one that there is
        assert command[:3] in (["scenarios", "run", name], ["scenarios", "show", name])
        keys = [part for flag, part in pairwise(command) if flag == "--set"]
        config.load(catalogue.experiment_file(name), keys)


def test_a_comparison_is_one_table_over_promises_and_failures(tmp_path: Path) -> None:
    settings = (*STORIES["loss_given_default"].ci, "training.rounds=2", "simulation.tune_baselines=false")
    lines = compare(STORIES["loss_given_default"], tmp_path, settings, epsilons=(8.0,))
    assert [line.model for line in lines] == [
        "best achievable",
        "pooled, not private",
        "each site alone, not private",
        "federated, not private",
        "federated",
        "federated, a fifth of the sites failing",
    ]
    assert [line.epsilon for line in lines[-3:]] == [None, 8.0, 8.0]
    assert all(line.gaining is not None for line in lines[-3:])
    written = json.loads((tmp_path / "comparison.json").read_text())
    assert [row["model"] for row in written["lines"]] == [line.model for line in lines]
    failing = report(tmp_path / "failing")
    assert [len(row["survivors"]) for row in failing["rounds"]] == [8, 6]
    assert report(tmp_path / "epsilon-8")["privacy"][0]["epsilon"] <= 8


def test_groups_that_no_feature_names_are_compared(tmp_path: Path) -> None:
    settings = ("--set", "training.rounds=2", "--out", tmp_path / "run", "--quiet")
    assert tacit("scenarios", "run", "credit_scoring", "--size", "ci", *settings, *QUICK) == 0
    found = by_group(tmp_path / "run", "group")
    assert list(found) == ["federated", "best achievable"]
    for groups in found.values():
        assert list(groups) == ["A", "B"]
        assert all(0 <= value <= 1 for scores in groups.values() for value in scores.values())
    # Group B has lower income and a shorter history, which the best possible score cannot but see.
    assert found["best achievable"]["B"]["rejected"] > found["best achievable"]["A"]["rejected"]


def test_the_newest_bank_has_no_payments_before_it_opened_and_joins_late(tmp_path: Path) -> None:
    story = STORIES["card_fraud"]
    assert story.table is not None
    frame, _ = story.table(6000, 1)
    assert frame.loc[frame["bank"] == "neobank", "month"].min() == 7
    assert set(frame.loc[frame["split"] == "test", "month"]) == {10, 11, 12}
    [shift] = config.load(catalogue.experiment_file("card_fraud")).partition.shifts
    assert (shift.kind, shift.sites) == ("joins", ("neobank",))
