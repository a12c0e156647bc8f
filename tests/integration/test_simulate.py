"""`tacit simulate` as other tools see it: exit codes, what is printed, what is written."""

import json
import os
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from warm_processes import Run, Warm, warm

from client.site import Site
from tacit.cli import main
from tacit.privacy.ledger import Ledger

EXPERIMENT = """
name = "small"
seed = 11
[partition]
kind = "dirichlet"
num_clients = 5
min_rows = 20
[task.model]
hidden = [4]
[training]
rounds = 3
local_steps = 2
sampling_rate = 0.5
learning_rate = 0.5
[privacy.record]
epsilon = 8.0
delta = 1e-5
[secure_aggregation]
max_dropouts = 1
[checkpoints]
keep = 0
"""

# The search for the noise multiplier takes a second and is the same for every private run here.
NOISE = """
from tacit import config
from tacit.privacy.plan import PrivacyPlan
PrivacyPlan.of(config.loads('''EXPERIMENT'''))
""".replace("EXPERIMENT", EXPERIMENT)

NOT_PRIVATE = ("--set", "privacy=none", "--set", "simulation.baselines=false")

PRIVACY = ["unit", "relation", "epsilon", "delta", "target_epsilon", "accountant", "noise_multiplier"]
SECURE = ["enabled", "protocol", "bits", "threshold", "bytes_up_per_client", "clipped_fraction"]
ROUND = ["round", "seconds", "cohort", "survivors", "metrics"]
TOP = [
    "experiment",
    "engine",
    "rounds",
    "final",
    "baselines",
    "privacy",
    "secure_aggregation",
    "timings",
    "versions",
]


@pytest.fixture(scope="module")
def tacit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Warm]:
    with warm(tmp_path_factory, NOISE) as parent:
        yield parent


@pytest.fixture(scope="module")
def experiment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("experiment") / "small.toml"
    path.write_text(EXPERIMENT)
    return path


@pytest.fixture(scope="module")
def private_run(tacit: Warm, experiment: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """Folder and standard output of a whole private run, with baselines."""
    out = tmp_path_factory.mktemp("private") / "out"
    run = tacit.run("simulate", experiment, "--out", out)
    assert (run.wait(), run.stderr) == (0, "")
    return out, run.stdout


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text())
    return content


# -- the report --------------------------------------------------------------------------------------------------


def test_the_report_has_the_keys_that_other_tools_rely_on(private_run: tuple[Path, str]) -> None:
    content = report(private_run[0])
    assert set(TOP) <= set(content)
    assert content["engine"] == "local"
    assert [row["round"] for row in content["rounds"]] == [1, 2, 3]
    assert all(set(ROUND) <= set(row) for row in content["rounds"])
    assert all(len(row["cohort"]) == len(row["survivors"]) == 5 for row in content["rounds"])
    for metrics in (
        content["final"]["metrics"],
        content["baselines"]["pooled"]["metrics"],
        content["baselines"]["local"]["metrics"],
        content["rounds"][-1]["metrics"],
    ):
        assert 0 < metrics["accuracy"] <= 1
    assert [site["label"] for site in content["final"]["sites"]] == content["rounds"][0]["cohort"]
    [entry] = content["privacy"]
    assert set(PRIVACY) <= set(entry)
    assert (entry["unit"], entry["target_epsilon"], entry["delta"]) == ("record", 8.0, 1e-5)
    assert 7.9 < entry["epsilon"] <= 8.0
    assert entry["noise_multiplier"] > 0.1
    assert set(SECURE) <= set(content["secure_aggregation"])
    assert content["secure_aggregation"]["enabled"] is True
    assert content["secure_aggregation"]["protocol"] == "tacit-1"
    assert content["secure_aggregation"]["threshold"] == 4
    assert 0 <= content["secure_aggregation"]["clipped_fraction"] <= 1
    assert set(content["timings"]) >= {"sites", "rounds", "evaluation", "baselines"}
    assert {"python", "tacit", "torch", "flwr", "opacus"} <= set(content["versions"])


def test_the_experiment_in_the_report_is_the_resolved_one(private_run: tuple[Path, str]) -> None:
    resolved = report(private_run[0])["experiment"]
    assert resolved["seed"] == 11
    assert len(resolved["federation"]["sites"]) == 5
    assert resolved["data"]["schema"]["label"]
    assert resolved["training"]["optimizer"] == "sgd", "defaults are in it"


def test_every_file_is_there_and_the_model_is_the_last_rounds(private_run: tuple[Path, str]) -> None:
    out = private_run[0]
    names = {path.name for path in out.iterdir()}
    expected = {"report.json", "report.html", "privacy-statement.md", "model.safetensors", "ledger.jsonl"}
    assert expected | {"experiment.toml", "sites", "server"} <= names
    last = out / "server" / "checkpoints" / "round-000003" / "model.safetensors"
    from safetensors.numpy import load_file

    released, stored = load_file(out / "model.safetensors"), load_file(last)
    assert all((released[name] == stored[name]).all() for name in stored)


def test_each_site_has_paid_for_each_round_once(private_run: tuple[Path, str]) -> None:
    for site in sorted((private_run[0] / "sites").glob("[0-9]")):
        with Ledger.open(site / "ledger" / "ledger.jsonl") as ledger:
            assert [(e.round, e.purpose) for e in ledger.entries] == [(n, "training") for n in (1, 2, 3)]


def test_only_a_simulation_does_without_waiting_for_the_disk(
    private_run: tuple[Path, str], experiment: Path, tmp_path: Path
) -> None:
    """Folders that `tacit partition` makes are for real processes."""
    with pytest.raises(SystemExit) as end:
        main(["partition", str(experiment), "--out", str(tmp_path)])
    assert end.value.code == 0
    assert not Site.open(private_run[0] / "sites" / "0").durable
    assert Site.open(tmp_path / "sites" / "0").durable


def test_no_part_of_a_run_is_left_out_of_the_timings(private_run: tuple[Path, str]) -> None:
    content = report(private_run[0])
    rounds = sum(row["seconds"] for row in content["rounds"])
    assert 0 < rounds <= content["timings"]["rounds"]
    assert 0 < content["timings"]["prediction"] <= content["timings"]["prediction_p95"]
    card = (private_run[0] / "model-card.md").read_text(encoding="utf-8")
    assert re.search(
        r"Predicting one record by itself.*\d ms, 95 of 100 within .*\d ms, on the machine", card
    )


def test_set_privacy_none_is_said_and_json_prints_nothing_but_the_report(
    tacit: Warm, experiment: Path, tmp_path: Path
) -> None:
    run = tacit.run("simulate", experiment, "--out", tmp_path / "out", *NOT_PRIVATE, "--json")
    assert run.wait() == 0
    content = json.loads(run.stdout)
    assert content == report(tmp_path / "out")
    [entry] = content["privacy"]
    assert (entry["unit"], entry["epsilon"], entry["target_epsilon"]) == ("none", "inf", "inf")
    assert "privacy" not in content["experiment"] or content["experiment"]["privacy"] == {}
    for row in content["ledger"]:
        assert (row["entries"], row["round"], row["event"]["noise_multiplier"]) == (1, 1, 0.0)
    assert len(content["ledger"]) == len(content["final"]["sites"])


# -- what is printed ---------------------------------------------------------------------------------------------


def test_quiet_prints_nothing(tacit: Warm, experiment: Path, tmp_path: Path) -> None:
    run = tacit.run("simulate", experiment, "--out", tmp_path / "out", "--quiet", *NOT_PRIVATE)
    assert (run.wait(), run.stdout, run.stderr) == (0, "", "")


def test_piped_output_has_no_control_codes_and_ends_with_the_report(private_run: tuple[Path, str]) -> None:
    out, printed = private_run
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", printed)
    assert printed.splitlines()[-1] == f"report: {out / 'report.html'}"
    assert "epsilon" in printed


# -- mistakes ----------------------------------------------------------------------------------------------------


def answer(capsys: pytest.CaptureFixture[str], *arguments: object) -> tuple[int, str]:
    """Exit code and the one line on stderr."""
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    out, err = capsys.readouterr()
    assert out in ("", "dividing the data among sites\n", "dividing the data among sites\ntraining\n")
    assert err.count("\n") == 1, err
    assert "Traceback" not in err
    assert isinstance(end.value.code, int)
    return end.value.code, err


MISTAKES: dict[str, tuple[list[str], str]] = {
    "unknown key": (["--set", "training.round=3"], "training.round: unknown key"),
    "wrong type": (["--set", "training.rounds=many"], "training.rounds:"),
    "not a number": (["--set", "privacy.record.epsilon=nan"], "privacy.record.epsilon:"),
    "threshold above the cohort": (["--set", "secure_aggregation.max_corrupt=5"], "secure_aggregation"),
    "unknown engine": (["--engine", "magic"], "--engine:"),
    "negative seed": (["--seed=-1"], "seed:"),
    "not key=value": (["--set", "rounds"], "--set"),
    "delta above one over the rows": (["--set", "privacy.record.delta=0.5"], "privacy.record.delta"),
    "patience without metrics": (["--set", "evaluation.patience=2"], "evaluation.patience"),
    "a metric that never comes": (
        ["--set", "evaluation={metrics=true, patience=1, monitor='auroc'}", "--set", "privacy=none"],
        "evaluation.monitor:",
    ),
}


@pytest.mark.parametrize("case", MISTAKES)
def test_G1_a_mistake_is_one_line_and_exit_code_2(
    capsys: pytest.CaptureFixture[str], experiment: Path, tmp_path: Path, case: str
) -> None:
    arguments, named = MISTAKES[case]
    code, line = answer(capsys, "simulate", experiment, "--out", tmp_path / "out", *arguments)
    assert code == 2
    assert named in line


def test_a_missing_experiment_is_named(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    code, line = answer(capsys, "simulate", tmp_path / "nowhere.toml")
    assert code == 2
    assert "nowhere.toml" in line


def test_a_folder_that_is_not_ours_is_left_alone(
    capsys: pytest.CaptureFixture[str], experiment: Path, tmp_path: Path
) -> None:
    (tmp_path / "sites").mkdir()
    (tmp_path / "sites" / "thesis.txt").write_text("years of work")
    for resume in ([], ["--resume"]):
        code, line = answer(capsys, "simulate", experiment, "--out", tmp_path, *resume)
        assert code == 2
        assert str(tmp_path) in line
    assert [p.name for p in tmp_path.rglob("*")] == ["sites", "thesis.txt"]


@pytest.mark.parametrize("kind", ["file", "below a file", "too long"])
def test_F2_G7_a_folder_that_cannot_be_is_one_line(
    capsys: pytest.CaptureFixture[str], experiment: Path, tmp_path: Path, kind: str
) -> None:
    (tmp_path / "file").write_text("x")
    out = {"file": "file", "below a file": "file/out", "too long": "x" * 300}[kind]
    code, line = answer(capsys, "simulate", experiment, "--out", tmp_path / out)
    assert code == 2
    assert "--out" in line


def test_resume_needs_a_run(capsys: pytest.CaptureFixture[str], experiment: Path, tmp_path: Path) -> None:
    code, line = answer(capsys, "simulate", experiment, "--out", tmp_path / "out", "--resume")
    assert code == 2
    assert "--resume: there is no run to resume" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("changed", [["--seed", "12"], ["--set", "privacy.record.epsilon=9"], [*NOT_PRIVATE]])
def test_D10_a_run_is_not_resumed_with_another_experiment(
    capsys: pytest.CaptureFixture[str], private_run: tuple[Path, str], experiment: Path, changed: list[str]
) -> None:
    out = private_run[0]
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    code, line = answer(capsys, "simulate", experiment, "--out", out, "--resume", *changed)
    assert code == 2
    assert "another experiment" in line
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def test_a_run_that_fails_says_why_with_exit_code_1(tacit: Warm, experiment: Path, tmp_path: Path) -> None:
    """Sites whose operators have lowered the ceiling refuse to go on."""
    out = tmp_path / "out"
    quick = ("--set", "simulation.baselines=false", "--quiet")
    assert tacit.run("simulate", experiment, "--out", out, *quick).code == 0
    for site in (out / "sites").glob("[0-4]"):
        policy = site / "policy.toml"
        policy.write_text(f"epsilon_ceiling = 0.5\ndelta = 1e-5\n{policy.read_text()}")
    for path in (out / "server" / "checkpoints").glob("round-00000[123]"):
        (path / "manifest.json").unlink()  # so that there is something left to do
    run = tacit.run("simulate", experiment, "--out", out, "--resume", *quick)
    assert run.wait() == 1
    assert run.stderr.count("\n") == 1
    assert "no sum over at least 4 of 5 sites" in run.stderr
    assert "budget (5)" in run.stderr
    assert not (out / "report.json").exists(), "an old report must not pass for this run's"
    assert "no sum" in json.loads((out / "server" / "failure.json").read_text())["error"]


def test_a_second_simulation_in_the_same_folder_is_refused(
    capsys: pytest.CaptureFixture[str], tacit: Warm, experiment: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    long = ("--set", "training.rounds=100000", "--quiet", *NOT_PRIVATE)
    first = tacit.start("simulate", experiment, "--out", out, *long)
    try:
        while first.running and not (out / "server" / "rounds.jsonl").exists():
            time.sleep(0.01)
        for resume in ([], ["--resume"]):
            code, line = answer(capsys, "simulate", experiment, "--out", out, *long, *resume)
            assert code == 2
            assert "another simulation is running in it" in line
        assert first.running
    finally:
        import signal

        first.send(signal.SIGKILL)
        first.wait()


# -- the same command --------------------------------------------------------------------------------------------


def result(run: Run, out: Path) -> tuple[Any, bytes]:
    assert run.wait() == 0, run.stderr
    return report(out)["final"]["metrics"], (out / "model.safetensors").read_bytes()


def test_G7_G9_G10_the_same_command_gives_the_same_result_on_one_core_too(
    tacit: Warm, experiment: Path, tmp_path: Path
) -> None:
    command = ("simulate", experiment, "--quiet", *NOT_PRIVATE)
    first = result(tacit.run(*command, "--out", tmp_path / "a"), tmp_path / "a")
    # Again in the same folder, which replaces the run; on one core, in a folder with an awkward name.
    run_id = report(tmp_path / "a")["run_id"]
    assert result(tacit.run(*command, "--out", tmp_path / "a"), tmp_path / "a") == first
    assert report(tmp_path / "a")["run_id"] != run_id
    awkward = tmp_path / "Größe 数据 ' \" % {x} $HOME" / ("long " * 40)
    one = {min(os.sched_getaffinity(0))}
    assert result(tacit.run(*command, "--out", awkward, cores=one), awkward) == first
    other = tacit.run(*command, "--seed", 12, "--out", tmp_path / "c")
    assert result(other, tmp_path / "c")[1] != first[1]
    assert report(tmp_path / "c")["experiment"]["seed"] == 12


def test_seeded_noise_is_said_to_be_none(tacit: Warm, experiment: Path, tmp_path: Path) -> None:
    command = (
        "simulate",
        experiment,
        "--insecure-seeded-noise",
        "--set",
        "simulation.baselines=false",
        "--quiet",
    )
    a = result(tacit.run(*command, "--out", tmp_path / "a"), tmp_path / "a")
    b = result(tacit.run(*command, "--out", tmp_path / "b"), tmp_path / "b")
    assert a == b
    content = report(tmp_path / "a")
    assert content["privacy"][0]["epsilon"] == "inf"
    assert content["privacy"][0]["epsilon_if_os_noise"] <= 8.0
    assert any("NOT PRIVATE" in warning for warning in content["warnings"])


def test_the_seed_does_not_fix_the_noise(
    tacit: Warm, experiment: Path, private_run: tuple[Path, str], tmp_path: Path
) -> None:
    again = tacit.run("simulate", experiment, "--out", tmp_path / "out", "--quiet")
    assert result(again, tmp_path / "out")[1] != (private_run[0] / "model.safetensors").read_bytes()


def test_early_stopping_from_end_to_end(tacit: Warm, experiment: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the model: the best round is an early one, and its model is what comes out."""
    ruin = ("evaluation={metrics=true, patience=2}", "training.learning_rate=1e4", "training.rounds=20")
    settings = [part for setting in ruin for part in ("--set", setting)]
    out = tmp_path / "out"
    run = tacit.run("simulate", experiment, "--out", out, "--quiet", *NOT_PRIVATE, *settings)
    assert (run.wait(), run.stderr) == (0, "")
    outcome = json.loads((out / "server" / "result.json").read_text())
    content = report(out)
    assert content["outcome"] == outcome["outcome"] == "stopped early"
    assert outcome["rounds"] == len(content["rounds"]) == outcome["model_round"] + 3
    best = out / "server" / "checkpoints" / f"round-{outcome['model_round']:06d}" / "model.safetensors"
    from safetensors.numpy import load_file

    released, stored = load_file(out / "model.safetensors"), load_file(best)
    assert all((released[name] == stored[name]).all() for name in stored)
