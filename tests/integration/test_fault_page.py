"""docs/faults.md as it stands: its list is played by its commands, and so is the list that comes with Tacit."""

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from simulations.faults import KINDS, LIES, PHASES
from tacit import config
from tacit.cli import main
from tests.architecture.sources import ROOT, text

PAGE = text("docs/faults.md")
COMMANDS, LIST, ERROR, STORM = re.findall(r"^```(?:toml)?\n(.*?)^```$", PAGE, re.M | re.S)
EXAMPLE = ROOT / "simulations" / "scenarios" / "faults" / "dropouts_and_lies.toml"
SCENARIO = ROOT / "simulations" / "scenarios" / "breast_cancer.toml"
SHORT = ("--quiet", "--set", "simulation.baselines=false", "--set", "training.rounds=5")
FAILS = '[[fault]]\nround = 2\nsite = "site-03"\nphase = "training"\nkind = "drop"\n'
NOT_PRIVATE = ("--set", "privacy=none")


def tacit(*arguments: object) -> int:
    with pytest.raises(SystemExit) as end:
        main([str(argument) for argument in arguments])
    assert isinstance(end.value.code, int)
    return end.value.code


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a reader stands, with the list of the page and an experiment."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "faults.toml").write_text(LIST)
    assert tacit(*shlex.split(COMMANDS.splitlines()[0])[1:]) == 0
    return tmp_path


def report(out: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((out / "report.json").read_text(encoding="utf-8"))
    return content


def history(out: Path) -> list[dict[str, Any]]:
    rows = [json.loads(line) for line in (out / "server" / "rounds.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in ("seconds", "phases")} for row in rows]


def result(out: Path) -> tuple[Any, ...]:
    played = (out / "server" / "faults.jsonl").read_bytes()
    return history(out), played, (out / "model.safetensors").read_bytes(), report(out)["faults"]


def test_the_commands_of_the_page_play_its_list(folder: Path) -> None:
    command = shlex.split(COMMANDS.splitlines()[1])[1:]
    assert tacit(*command, *SHORT) == 0
    out = folder / "runs" / "my"
    assert (out / "faults.toml").read_text() == LIST
    found = {(row["round"], row["site"], row["kind"]): row["happened"] for row in report(out)["faults"]}
    assert found.pop((2, "site-03", "drop")) == "no answer; not in the sum"
    for number in (3, 4):
        assert found.pop((number, "site-01", "bad-share")) == "lied; in the sum; blamed"
    assert [(key[0], key[2], happened) for key, happened in found.items()] == [
        (5, "drop", "no answer; not in the sum")
    ] * 2
    assert "faults.toml" in report(out)["warnings"][0]
    assert "Faults that were played" in (out / "report.html").read_text(encoding="utf-8")
    # Without the option the folder is a run without faults again.
    assert tacit(*command[:2], *SHORT) == 0
    assert report(out)["faults"] == [] and not (out / "faults.toml").exists()


def test_the_error_on_the_page_is_what_is_said_with_exit_code_2(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first, second = LIST.split("\n\n")[:2]
    wrong = second.replace("share = 0.2 ", 'site = "site-11"')
    (folder / "faults.toml").write_text(f"{first}\n\n{wrong}\n")
    assert tacit("simulate", "my.toml", "--faults", "faults.toml", *SHORT) == 2
    assert capsys.readouterr().err == ERROR


def test_the_page_has_every_kind_and_phase() -> None:
    rows = re.findall(r"^\| `([\w-]+)` \|(.*)$", PAGE, re.M)
    assert {name for name, _ in rows} >= set(KINDS)
    [phases] = [row for name, row in rows if name == "phase"]
    assert all(f"`{phase}`" in phases for phase in (*PHASES, "training"))
    for kind, where in KINDS.items():
        for name, row in rows:
            if name == kind and len(where) == 1 and kind in LIES:
                assert f" `{where[0]}` |" in row


def test_what_was_drawn_is_written_out_and_plays_the_same(folder: Path) -> None:
    command = ("simulate", "my.toml", *SHORT, *NOT_PRIVATE, "--set", 'secure_aggregation.engine="ideal"')
    drawn = STORM.replace('"vector"', '"training"').replace('"keys"', '"training"')
    (folder / "faults.toml").write_text(drawn)
    assert tacit(*command, "--faults", "faults.toml", "--out", "a") == 0
    assert tacit(*command, "--faults", "a/faults-drawn.toml", "--out", "b") == 0
    assert history(folder / "a") == history(folder / "b")
    assert (folder / "a" / "model.safetensors").read_bytes() == (
        folder / "b" / "model.safetensors"
    ).read_bytes()
    happened = [[row["happened"] for row in report(folder / name)["faults"]] for name in "ab"]
    assert happened[0] == happened[1] != []


def test_the_engine_on_ray_refuses_a_list(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tacit("simulate", "my.toml", "--faults", "faults.toml", "--engine", "ray") == 2
    said = 'tacit: simulation.faults: needs --engine local: "ray" plays no faults yet\n'
    assert capsys.readouterr().err == said
    assert not (folder / "runs").exists()


def test_the_same_list_and_seed_give_the_same_history_and_model_also_when_resumed(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ("simulate", "my.toml", "--faults", "faults.toml", *SHORT, *NOT_PRIVATE)
    assert tacit(*command, "--out", "a") == 0
    assert tacit(*command, "--out", "b") == 0
    whole = result(folder / "a")
    assert result(folder / "b") == whole
    for number in (4, 5):  # as if it had been stopped after round 3
        (folder / "b" / "server" / "checkpoints" / f"round-{number:06d}" / "manifest.json").unlink()
    assert tacit(*command, "--out", "b", "--resume") == 0
    again = result(folder / "b")
    assert (again[0], again[2], again[3]) == (whole[0], whole[2], whole[3])
    (folder / "faults.toml").write_text(f"{LIST}\n# more\n")
    assert tacit(*command, "--out", "b", "--resume") == 2
    assert capsys.readouterr().err == "tacit: faults.toml: is not what the run began with: b/faults.toml\n"
    assert tacit(*command, "--out", "a", "--seed", 8) == 0
    assert history(folder / "a") != whole[0]


@pytest.mark.parametrize("mode", ['engine="ideal"', "enabled=false"])
def test_sites_fail_in_a_simulation_without_the_protocol(folder: Path, mode: str) -> None:
    (folder / "faults.toml").write_text(FAILS)
    command = ("simulate", "my.toml", "--faults", "faults.toml", *SHORT, *NOT_PRIVATE)
    assert tacit(*command, "--set", f"secure_aggregation.{mode}") == 0
    rows = report(folder / "runs" / "my")["rounds"]
    assert [len(row["survivors"]) for row in rows] == [10, 9, 10, 10, 10]
    assert rows[1]["refusals"] == {"no-answer": 1}


def test_the_list_that_comes_with_tacit_is_played_to_the_end(tmp_path: Path) -> None:
    out = tmp_path / "out"
    quick = ("--quiet", "--set", "simulation.baselines=false")
    assert tacit("simulate", SCENARIO, "--faults", EXAMPLE, "--out", out, *quick) == 0
    content, rounds = report(out), config.load(SCENARIO).training.rounds
    assert (content["outcome"], len(content["rounds"])) == ("finished", rounds)
    found = {(row["round"], row["kind"]): row["happened"] for row in content["faults"]}
    assert found == {
        (1, "drop"): "no answer; not in the sum",
        (2, "late"): "answered, too late; not in the sum",
        (2, "crash"): "crashed; in the sum",
        (3, "refuse"): "refused: maintenance; not in the sum",
        **dict.fromkeys([(4, "boost"), (6, "boost")], "lied; in the sum"),
        **dict.fromkeys([(5, "drop"), (10, "drop"), (15, "drop")], "no answer; not in the sum"),
        (20, "drop"): found[20, "drop"],  # of these one may be the clinic that is asked no more
        **dict.fromkeys([(7, "wrong-length"), (8, "replay")], "lied; not in the sum"),
        (9, "bad-share"): "lied; in the sum; blamed",
        (11, "swap-key"): "refused: signature; not in the sum",
        (12, "other-model"): "refused: context; not in the sum",
        (13, "two-sets"): "one set: answered; another: refused: phase; in the sum",
        (14, "bad-share"): "attempt 1: lied; not in the sum; blamed",
    }
    refused = {row["round"]: row["refusals"] for row in content["rounds"] if row["refusals"]}
    assert refused[7] == {"vector-size": 1} and refused[8] == {"context": 1}
    assert refused[13] == {"phase": 1, "survivors": 1}
    assert [row["round"] for row in content["rounds"] if row["attempts"] != 1] == [14]
    assert {tuple(row["blamed"]) for row in content["rounds"]} == {(), ("site-03",), ("site-08",)}
