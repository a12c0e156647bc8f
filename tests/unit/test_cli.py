"""The command `tacit`: its help, its exit codes, and the experiment that it writes to begin with."""

import re
import subprocess
import sys
import sysconfig
import time
import tomllib
from pathlib import Path

import pytest

from tacit import __version__, config
from tacit.cli import COMMANDS, main
from tacit.errors import (
    ConfigError,
    DataError,
    MissingExtra,
    PrivacyBudgetExceeded,
    ProtocolError,
    RunFailed,
    TacitError,
)

TACIT = Path(sysconfig.get_path("scripts")) / "tacit"


@pytest.fixture(autouse=True)
def terminal(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    monkeypatch.chdir(tmp_path)


def _tacit(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[object, str, str]:
    """Exit code, standard output and standard error."""
    with pytest.raises(SystemExit) as end:
        main([*arguments])
    captured = capsys.readouterr()
    return end.value.code, captured.out, captured.err


@pytest.mark.parametrize("arguments", [[], ["--help"]])
def test_help_lists_every_command_with_one_line(
    capsys: pytest.CaptureFixture[str], arguments: list[str]
) -> None:
    code, out, err = _tacit(capsys, *arguments)
    assert (code, err) == (0, "")
    for name, (_, line) in COMMANDS.items():
        assert re.search(rf"\b{name} +{re.escape(line)}", out)
    assert max(len(line) for line in out.splitlines()) <= 80
    assert out.count("Usage: tacit ") == 1


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_says_what_it_is_for_and_every_argument_what_it_means(
    capsys: pytest.CaptureFixture[str], name: str
) -> None:
    code, out, err = _tacit(capsys, name, "--help")
    assert (code, err) == (0, "")
    assert f"Usage: tacit {name} " in out
    assert max(len(line) for line in out.splitlines()) <= 80
    text = " ".join(out.replace("│", " ").split())
    for explanation in EXPLAINED[name]:
        assert explanation in text


EXPLAINED = {
    "init": ["runs as it stands", "Where to write it. [default: experiment.toml]"],
    "simulate": [
        "tacit simulate my.toml --set privacy.record.epsilon=1 --set seed=3",
        "What to run. [required]",
        "writes. [default: (runs/NAME)]",
        "rounding; never noise",
    ],
    "scenarios": ["Stories of health and finance", "list", "show", "run"],
    "sweep": ["What to run. [required]", "A key and its values", "[default: (sweeps/NAME)]"],
    "tune": [
        "[tuning] method",
        "[tuning.space] training.learning_rate = {low = 0.1, high = 10.0, log = true}",
        "Where to look",
        "(searches/NAME)",
    ],
    "partition": ["What would be run. [required]", "Folder to write sites/ into."],
    "provision": ["tacit provision federation.toml", "collect", "revoke", "renew"],
    "server": ["The coordinator's kit.", "without TLS", "grpc.health.v1"],
    "client": ["as one site", "enroll", "run", "check", "ledger"],
    "submit": ["What to run; without, see --resume.", "Ctrl-C ends the watching, not the run."],
    "runs": ["the newest last", "The coordinator's kit."],
    "logs": ["First digits of its id; the newest without.", "Until its end."],
    "stop": ["what was complete is kept", "First digits of its id; the newest without."],
    "rehearse": ["one process for each site", "divided. [default: (4, or as many as its secure sum needs)]"],
    "report": ["its privacy statement anew", "First digits of its id; the newest without."],
    "audit": ["verify", "privacy"],
    "export": ["tacit export runs/my --int8 --data holdout.csv", "Folder of a finished run", "NaN and"],
    "synthesize": [
        "tacit synthesize runs/my --data holdout.csv --train data.csv",
        "they cost nothing more, however many there are",
        "CSV, or Parquet by its name. [default: (RUN/synthetic.csv)]",
        "figures are of raw records: do this at the site",
    ],
    "serve": ["tacit serve runs/my --insecure-loopback", "Open Inference Protocol", "readable by you alone"],
    "doctor": ["Exit code 0: a client can run here.", "--json"],
}


def test_a_command_of_a_group_explains_its_arguments(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = _tacit(capsys, "client", "enroll", "--help")
    assert (code, err) == (0, "")
    assert "Usage: tacit client enroll " in out
    assert "This site's folder. [required]" in " ".join(out.replace("│", " ").split())


def test_help_and_version_import_nothing_slow(tmp_path: Path) -> None:
    program = (
        "import sys\nfrom tacit.cli import main\n"
        "for words in (['--help'], ['--version'], ['simulate', '--help'], ['doctor', '--help']):\n"
        "    try: main(words)\n"
        "    except SystemExit: pass\n"
        "print(sorted({'torch', 'flwr', 'opacus', 'numpy', 'pandas', 'grpc'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"


def test_the_installed_command_says_its_version() -> None:
    done = subprocess.run([TACIT, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"tacit {__version__}\n"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["simulat"], "No such command 'simulat'. Did you mean 'simulate'?\n"),
        (["dance"], "No such command 'dance'."),
        (["--verbose"], "No such option '--verbose'."),
        (["simulate"], "Missing argument 'EXPERIMENT.toml'."),
        (["simulate", "a.toml", "--epsilon", "3"], "No such option '--epsilon'."),
        (["simulate", "a.toml", "--seed", "x"], "'x' is not a valid int"),
        (["simulate", "a.toml", "b.toml"], "unexpected extra argument"),
        (["partition", "a.toml"], "Missing option '--out'."),
    ],
)
def test_a_misspelt_command_line_is_answered_with_code_2(
    capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    code, out, err = _tacit(capsys, *arguments)
    assert (code, out) == (2, "")
    assert said in err


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        (ConfigError("no", source="a.toml", key="seed"), 2, "a.toml: seed: no"),
        (DataError("no", path="a.csv", line=3, column="age"), 2, "a.csv:3: column 'age': no"),
        (MissingExtra("a report", "simulation"), 2, "a report needs the extra 'simulation': pip install 'tacit["),
        (RunFailed("no result"), 1, "no result"),
        (ProtocolError("bits", "9"), 1, "bits: 9"),
        (PrivacyBudgetExceeded("all made"), 1, "budget-spent: all made"),
        (KeyboardInterrupt(), 130, "interrupted; what was complete is kept"),
    ],
)  # fmt: skip
def test_an_error_of_ours_is_one_line_and_its_code_says_whose_fault(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    error: TacitError | KeyboardInterrupt,
    code: int,
    said: str,
) -> None:
    def fails(*arguments: object) -> None:
        raise error

    monkeypatch.setattr("tacit.config.load", fails)
    ended, out, err = _tacit(capsys, "simulate", "a.toml")
    assert (ended, out) == (code, "")
    assert err.startswith(f"tacit: {said}") and err.count("\n") == 1


def test_a_ctrl_c_that_comes_while_garbage_is_collected_is_not_lost(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python drops an exception there: one Ctrl-C in a hundred would be without effect."""

    class Collected:
        def __del__(self) -> None:
            raise KeyboardInterrupt

    def busy(*arguments: object) -> None:
        Collected()
        time.sleep(60)

    monkeypatch.setattr("tacit.config.load", busy)
    started = time.monotonic()
    assert _tacit(capsys, "simulate", "a.toml")[0] == 130
    assert time.monotonic() - started < 30


def test_init_writes_an_experiment_that_reads_and_says_how_to_run_it(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    code, out, _ = _tacit(capsys, "init")
    assert (code, out) == (0, "wrote experiment.toml; try it: tacit simulate experiment.toml\n")
    experiment = config.load(tmp_path / "experiment.toml")
    assert experiment.name == "experiment"
    assert experiment.data.source == "breast_cancer"
    assert experiment.privacy.record is not None
    assert experiment.secure_aggregation.enabled


@pytest.mark.parametrize(
    ("file", "name"),
    [("heart study.toml", "heart study"), ("Prüfung", "Pr-fung"), ("$name.toml", "name"), ("中.toml", "experiment")],
)  # fmt: skip
def test_init_names_the_experiment_after_its_file(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, file: str, name: str
) -> None:
    assert _tacit(capsys, "init", file)[0] == 0
    [written] = tmp_path.iterdir()
    assert written.name == (file if file.endswith(".toml") else f"{file}.toml")
    assert config.load(written).name == name


def test_init_leaves_alone_what_is_there(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text("precious")
    code, _, err = _tacit(capsys, "init", "mine.toml")
    assert code == 2
    assert err == "tacit: mine.toml: is there already and is left as it is; name another file\n"
    assert (tmp_path / "mine.toml").read_text() == "precious"
    assert _tacit(capsys, "init", "no/such/folder/x.toml")[0] == 2


def _switched_on(text: str) -> str:
    """The starter with its switched-off lines in force, and without those that they take the place of."""
    replaced = ('source = "breast_cancer"', 'kind = "dirichlet"', "num_clients =", "alpha =")
    kept = [line for line in text.splitlines() if not line.startswith(replaced)]
    return "\n".join(re.sub(r"^#(?=[^ \n])", "", line) for line in kept)


def test_every_setting_that_init_comments_out_is_a_setting(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    _tacit(capsys, "init")
    text = (tmp_path / "experiment.toml").read_text()
    assert text.count("\n#") > len(re.findall(r"^#[^ \n]", text, re.M)) > 10
    experiment = config.loads(_switched_on(text))
    assert experiment.data.source == "csv"
    assert experiment.data.columns is not None
    assert list(experiment.data.columns.columns) == ["age", "creatinine", "ward"]
    assert experiment.partition.column == "hospital"
    assert experiment.task.model.hidden == (16,)
    assert set(tomllib.loads(text)) < set(config.Experiment.model_fields)
